"""Replaces Pow(x, n) of a constant whole n of 3 or 4 with multiplications.

Qualcomm's HTP computes x^3 in w8a16 with 13 dB (v75, QAIRT 2.51, emulated; x^2 with 90 dB, and
both right in fp16). As multiplications x^3 has 86 dB.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, scalar_of
from edgeport.types import PassResult

NAME = "Pow to Mul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) <float three = {3.0}> { y = Pow(x, three) }
"""
_POWERS = (3.0, 4.0)  # x^2 is computed right, and compilers look for it in norms


def power_to_mul(model: ir.Model) -> PassResult:
    """Returns the model without such Pow; each is two Mul."""
    editor = Editor(model)
    for node in nodes_of(model, "Pow"):
        base, exponent = node.inputs[0], scalar_of(node.inputs[1])
        rank = node.inputs[1].shape if node.inputs[1] is not None else None
        if base is None or base.dtype is None or not base.dtype.is_floating_point():
            continue
        if exponent not in _POWERS or rank is None or base.shape is None:
            continue
        if len(rank) > len(base.shape):  # an exponent of more axes gives them to the result
            continue
        square = editor.add(node, "Mul", [base, base])
        value = editor.add(node, "Mul", [square, base if exponent == 3 else square])
        editor.replace(node.outputs[0], value)
    return editor.result(NAME)
