"""Replaces Linear layers between two Transposes with 1x1 convolutions, without the Transposes.

Pictures of shape [batch, channels, height, width] go channels-last into MatMul by a constant, and
back. A Conv computes the same where they are; operators between the Linears move with them as
`remove Transposes` moves them. A LayerNorm over the channels stays channels-last, and a
Linear stays where its move would save no Transpose.

A Conv takes the bias, and its quantized weights have a scale per channel. A depthwise convolution
and an MLP on Qualcomm's HTP (v75, QAIRT 2.51, emulated), before and after: fp16 63.7 dB each way
with 12 and 8 operators, w8a16 44.8 and 45.3 dB, w8a8 29.6 and 31.3 dB with 10 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeport.passes.graph import (
    Editor,
    array_of,
    is_operator,
    nodes_of,
    only_user,
    opset,
    shape_of,
)
from edgeport.passes.layout import fewest_transposes
from edgeport.passes.layout_rules import Moved, Perm, has_rank, rule_of
from edgeport.passes.shapes import SHAPES_OPSET
from edgeport.types import PassResult

NAME = "Linear to 1x1 Conv"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y)
<float[2, 3] wide = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[3] bias = {0.5, -0.5, 1.0},
 float[3, 2] narrow = {0.1, 0.2, -0.3, 0.4, 0.5, -0.6}> {
  a = Transpose <perm = [0, 2, 3, 1]> (x)
  b = MatMul(a, wide)
  c = Add(b, bias)
  d = Relu(c)
  e = MatMul(d, narrow)
  y = Transpose <perm = [0, 3, 1, 2]> (e)
}
"""
_CHANNELS_FIRST = (0, 3, 1, 2)


def linear_to_conv(model: ir.Model) -> PassResult:
    """Returns the model with such Linears as convolutions; counts the Transposes that it saves."""
    editor = Editor(model)
    if opset(model) < SHAPES_OPSET:
        return editor.result(NAME)
    for graph in model.graphs():
        if any(_linear(node, _CHANNELS_FIRST) for node in graph if is_operator(node, "MatMul")):
            editor.count += fewest_transposes(editor, graph, _CHANNELS_FIRST, _rule)
    if editor.count:
        for node in nodes_of(model, "Conv"):
            _take_bias(editor, node)
    return editor.result(NAME)


def _rule(node: ir.Node, perm: Perm) -> Moved | None:
    return _linear(node, perm) if is_operator(node, "MatMul") else rule_of(node, perm)


def _linear(node: ir.Node, perm: Perm) -> Moved | None:
    weight = array_of(node.inputs[1])
    if weight is None or weight.ndim != 2 or not has_rank(node.inputs[0], len(perm)):
        return None
    if array_of(node.inputs[0]) is not None or weight.dtype.kind != "f":
        return None
    kernel = weight.T[:, :, None, None]

    def build(editor: Editor, moved: Mapping[int, ir.Value]) -> tuple[ir.Value, ...]:
        filters = editor.constant(node, kernel, "filters")
        return (editor.add(node, "Conv", [moved[0], filters], kernel_shape=[1, 1]),)

    return Moved((0,), True, build)


def _take_bias(editor: Editor, node: ir.Node) -> None:
    """Puts a constant per channel, added to a Conv that has none, into the Conv."""
    shape, user = shape_of(node.outputs[0]), only_user(node.outputs[0])
    if shape is None or len(node.inputs) > 2 or user is None or not is_operator(user, "Add"):
        return
    others = [array_of(value) for value in user.inputs if value is not node.outputs[0]]
    if not others or others[0] is None or others[0].size != shape[1]:
        return
    if others[0].shape[-len(shape) + 1 :] != (shape[1], *(1 for _ in shape[2:])):
        return
    attributes = {name: one.value for name, one in node.attributes.items()}
    bias = editor.constant(node, others[0].reshape(-1), "bias")
    inputs = [*node.inputs[:2], bias]
    made = editor.add(user, "Conv", inputs, **attributes)
    editor.replace(user.outputs[0], made, counted=False)
