"""Replaces a depthwise convolution of one point with Mul and Add per channel.

Why: Qualcomm's HTP compiler dies with SIGSEGV on a quantized one (384 channels of 8 x 8, w8a16,
v75, QAIRT 2.51), as FastViT's branch `conv_scale` is.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, shape_of
from edgeport.types import PassResult

NAME = "depthwise 1x1 to Mul, Add"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y)
<float[2, 1, 1, 1] weight = {2.0, 3.0}, float[2] bias = {0.5, -0.5}> {
  y = Conv <group = 2> (x, weight, bias)
}
"""


def depthwise_point_to_mul(model: ir.Model) -> PassResult:
    """Returns the model with Mul and Add for each such Conv of stride 1 without padding."""
    editor = Editor(model)
    for node in nodes_of(model, "Conv"):
        x, weight = node.inputs[0], array_of(node.inputs[1])
        shape = shape_of(node.inputs[0])
        if x is None or weight is None or shape is None or weight.size != shape[1]:
            continue
        steps, pads = attribute(node, "strides", ()), attribute(node, "pads", ())
        group = int(attribute(node, "group", 1))
        if group != shape[1] or any(step != 1 for step in steps) or any(pads):
            continue
        column = (shape[1], *(1,) * (len(shape) - 2))
        value = editor.add(node, "Mul", [x, editor.constant(node, weight.reshape(column), "scale")])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            value = editor.add(node, "Add", [value, editor.reshape(node, bias, column)])
        editor.replace(node.outputs[0], value)
    return editor.result(NAME)
