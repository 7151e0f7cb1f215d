"""Replaces Mul(a, Reciprocal(b)) with Div(a, b), and a lone Reciprocal(b) with Div(1, b).

Why: Qualcomm's HTP computes a 16-bit Reciprocal wrongly where its result exceeds 1 (1 / (x^2 + 0.1)
in w8a16, v75, QAIRT 2.51: 3 dB in the emulator, where Div gives 65 dB or more), and every rsqrt
of a normalisation is exported as Sqrt and Reciprocal.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, is_operator, nodes_of, only_user
from edgeport.types import PassResult

NAME = "reciprocal to Div"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] a, float[2, 3] b) => (float[2, 3] y) {
  root = Sqrt(b)
  inverse = Reciprocal(root)
  y = Mul(a, inverse)
}
"""


def reciprocal_to_div(model: ir.Model) -> PassResult:
    """Returns the model without Reciprocal; refuses a lone one whose type cannot be inferred."""
    editor = Editor(model)
    for node in nodes_of(model, "Reciprocal"):
        denominator, quotient = node.inputs[0], node.outputs[0]
        product, numerator = _product(quotient)
        if product is not None:
            editor.replace(product.outputs[0], editor.add(product, "Div", [numerator, denominator]))
        elif denominator is None or denominator.dtype is None:
            editor.refuse(node, "the type of its input is not known")
        else:
            one = editor.constant(node, np.ones((), denominator.dtype.numpy()), "one")
            editor.replace(quotient, editor.add(node, "Div", [one, denominator]))
    return editor.result(NAME)


def _product(quotient: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """Returns the Mul that alone reads the Reciprocal, and its other factor."""
    product = only_user(quotient)
    if product is None or not is_operator(product, "Mul"):
        return None, None
    return product, next(value for value in product.inputs if value is not quotient)
