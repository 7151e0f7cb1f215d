"""Replaces a CumSum along any axis but the last with the product with a triangle of ones.

In 8 bits Qualcomm's HTP sums wrongly along such an axis (-12 dB along the channels, v75, QAIRT
2.51, emulated; 78 dB in w8a16, 30 along the last axis). As MatMul: 39 and 71 dB.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of, scalar_of, shape_of
from edgeport.passes.shapes import view
from edgeport.types import PassResult

NAME = "CumSum to MatMul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3, 4] x) => (float[2, 3, 4] y) <int64 axis = {1}> { y = CumSum(x, axis) }
"""
_MOST = 1024  # numbers along the axis: a triangle of 1 MiB in 8 bits


def cumsum_to_matmul(model: ir.Model) -> PassResult:
    """Returns the model without such CumSum; refuses an axis that is computed or too long."""
    editor = Editor(model)
    for node in nodes_of(model, "CumSum"):
        x, shape, stated = node.inputs[0], shape_of(node.inputs[0]), scalar_of(node.inputs[1])
        if x is None or x.dtype is None or not x.dtype.is_floating_point() or shape is None:
            continue
        if stated is None:
            editor.refuse(node, "its axis is computed")
            continue
        axis = int(stated) % len(shape)
        if axis == len(shape) - 1 or 0 in shape:
            continue
        if shape[axis] > _MOST:
            editor.refuse(node, f"more than {_MOST} numbers along its axis")
            continue
        _replace(editor, node, x, shape, axis)
    return editor.result(NAME)


def _replace(editor: Editor, node: ir.Node, x: ir.Value, shape: tuple[int, ...], axis: int) -> None:
    assert x.dtype is not None
    size = shape[axis]
    ones = np.tri(size, k=-1 if attribute(node, "exclusive", 0) else 0)
    if attribute(node, "reverse", 0):
        ones = ones[::-1, ::-1]
    triangle = editor.constant(node, ones.astype(x.dtype.numpy()), "triangle")
    lines = (math.prod(shape[:axis]), size, math.prod(shape[axis + 1 :]))
    sums = editor.add(node, "MatMul", [triangle, view(editor, node, x, lines)])
    editor.replace(node.outputs[0], view(editor, node, sums, shape))
