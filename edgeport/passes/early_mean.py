"""Replaces a ReduceMean of an unsqueezed Transpose with the same mean before both.

Why: an average pool over tokens is exported as Transpose, Unsqueeze and ReduceMean over the last
two axes. Qualcomm's HTP computes that chain wrongly in w8a16 (v75, QAIRT 2.51, emulated on 784
tokens of 64 channels behind a LayerNormalization: -10 dB against the same integers on the host; the
mean alone is right). The mean taken first has 93 dB, and what is turned afterwards is one token.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    nodes_of,
    only_user,
    opset,
    producer_of,
    shape_of,
)
from edgeport.types import PassResult

NAME = "mean before the view"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 4, 3] x) => (float[1, 3, 1, 1] y)
<int64[1] height = {2}, int64[2] pooled = {2, 3}> {
  turned = Transpose <perm = [0, 2, 1]> (x)
  line = Unsqueeze (turned, height)
  y = ReduceMean (line, pooled)
}
"""
_OPSET = 18  # from here on ReduceMean takes its axes as an input


def mean_before_view(model: ir.Model) -> PassResult:
    """Returns the model with such means first; only where nothing else reads the view."""
    editor = Editor(model)
    for node in nodes_of(model, "ReduceMean") if opset(model) >= _OPSET else ():
        line = producer_of(node.inputs[0], "Unsqueeze")
        turned = producer_of(line.inputs[0], "Transpose") if line is not None else None
        shape = shape_of(node.outputs[0])
        if line is None or turned is None or shape is None or len(node.inputs) < 2:
            continue
        axis = _source_axis(node, line, turned)
        if axis is None or not all(only_user(one.outputs[0]) for one in (line, turned)):
            continue
        source = turned.inputs[0]
        axes = editor.constant(node, np.array([axis], np.int64), "axes")
        mean = editor.add(node, "ReduceMean", [source, axes], keepdims=1)
        # What is left of the reduced axis is 1: turning the others is needed only where they move.
        perm = attribute(turned, "perm")
        moved = editor.transpose(node, mean, perm)
        editor.replace(node.outputs[0], editor.reshape(node, moved, shape))
    return editor.result(NAME)


def _source_axis(node: ir.Node, line: ir.Node, turned: ir.Node) -> int | None:
    """Returns the one axis of the Transpose's input that is averaged, beside those of size 1."""
    axes, added = array_of(node.inputs[1]), array_of(line.inputs[1])
    rank, perm = len(line.outputs[0].shape or ()), attribute(turned, "perm")
    if axes is None or added is None or not rank or perm is None:
        return None
    new = {int(one) % rank for one in added.reshape(-1)}
    old = {int(one) % rank for one in axes.reshape(-1)} - new
    if len(old) != 1:
        return None
    (axis,) = old
    return int(perm[axis - sum(one < axis for one in new)])
