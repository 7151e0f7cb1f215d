"""Replaces Div(a, Sqrt(b)) with Mul(a, Pow(b, -1/2)).

A norm over channels divides each element by a root of few. XNNPACK divides no integers: LiteRT
then runs its reference Div, one element at a time (PADRe-3 at 224 x 224 in w8a8, 25 norms: 7 %
slower than with the product). Converters take Pow(b, -1/2) as rsqrt.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, producer_of, scalar_of, shape_of
from edgeport.types import PassResult

NAME = "Div by a root to rsqrt"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] a, float[2, 1] b) => (float[2, 3] y) {
  positive = Exp(b)
  root = Sqrt(positive)
  y = Div(a, root)
}
"""


def div_by_root_to_rsqrt(model: ir.Model) -> PassResult:
    """Returns the model without such Div."""
    editor = Editor(model)
    for node in nodes_of(model, "Div"):
        root = producer_of(node.inputs[1], "Sqrt")
        if root is None:
            continue
        radicand = root.inputs[0]
        if radicand is None or radicand.dtype is None:
            editor.refuse(node, "the type of the root is not known")
            continue
        half = editor.constant(node, np.array(-0.5, radicand.dtype.numpy()), "exponent")
        inverse = editor.add(node, "Pow", [radicand, half])
        if scalar_of(node.inputs[0]) != 1.0 or shape_of(radicand) != shape_of(node.outputs[0]):
            inverse = editor.add(node, "Mul", [node.inputs[0], inverse])
        editor.replace(node.outputs[0], inverse)
    return editor.result(NAME)
