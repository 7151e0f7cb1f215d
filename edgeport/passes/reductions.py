"""Replaces ReduceProd, ReduceL1 and ReduceLogSumExp with the operators that they are made of.

Qualcomm's HTP has no ReduceProd and no ReduceL1, in any precision, and no quantized ReduceLogSumExp
(v75, QAIRT 2.51). Emulated as the parts, in fp16 / w8a16 / w8a8: a product of 8 numbers 62 / 78 /
31 dB, a sum of absolute values 73 / 95 / 50, a log-sum-exp 72 dB in fp16 and 51 in w8a8 (in
w8a16 83 where the grid of its Log spans 4 or more; below, a 16-bit Log is wrong).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import cut, view
from edgeport.types import PassResult

NAME = "reductions to parts"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2] y) <int64[1] axes = {1}> {
  y = ReduceProd <keepdims = 0> (x, axes)
}
"""
_OPSET = 18  # from here on all reductions take their axes as an input


def reductions_to_parts(model: ir.Model) -> PassResult:
    """Returns the model without these reductions of floats; their axes must be constant."""
    editor = Editor(model)
    if opset(model) < _OPSET:
        return editor.result(NAME)
    for node in nodes_of(model, "ReduceProd", "ReduceL1", "ReduceLogSumExp"):
        x, shape, result = node.inputs[0], shape_of(node.inputs[0]), shape_of(node.outputs[0])
        if x is None or x.dtype is None or not x.dtype.is_floating_point():
            continue
        axes = _axes(node, len(shape)) if shape is not None else None
        if shape is None or result is None or axes is None:
            editor.refuse(node, "its shape or axes are not known")
        elif 0 not in shape and axes and shape:
            value = _reduced(editor, node, x, shape, axes)
            editor.replace(node.outputs[0], view(editor, node, value, result))
    return editor.result(NAME)


def _axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Returns the axes counted from 0, () where it reduces none; None where they are computed."""
    stated = node.inputs[1] if len(node.inputs) > 1 else None
    array = None if stated is None else array_of(stated)
    if stated is not None and array is None:
        return None
    if array is None or array.size == 0:
        return () if attribute(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in array))


def _reduced(
    editor: Editor, node: ir.Node, x: ir.Value, shape: tuple[int, ...], axes: tuple[int, ...]
) -> ir.Value:
    """Returns the reduction with axes of size 1 in the place of those reduced."""
    if node.op_type == "ReduceProd":
        for axis in axes:
            x = _product(editor, node, x, axis, shape[axis])
        return x
    over = editor.constant(node, np.array(axes, np.int64), "axes")
    if node.op_type == "ReduceL1":
        return editor.add(node, "ReduceSum", [editor.add(node, "Abs", [x]), over], keepdims=1)
    greatest = editor.add(node, "ReduceMax", [x, over], keepdims=1)
    powers = editor.add(node, "Exp", [editor.add(node, "Sub", [x, greatest])])
    total = editor.add(node, "Log", [editor.add(node, "ReduceSum", [powers, over], keepdims=1)])
    return editor.add(node, "Add", [total, greatest])


def _product(editor: Editor, node: ir.Node, x: ir.Value, axis: int, size: int) -> ir.Value:
    """Returns the product along an axis: of both halves, until one is left."""
    odd: list[ir.Value] = []
    while size > 1:
        half = size // 2
        if size % 2:
            odd.append(cut(editor, node, x, axis, size - 1, size))
        lower = cut(editor, node, x, axis, 0, half)
        x = editor.add(node, "Mul", [lower, cut(editor, node, x, axis, half, 2 * half)])
        size = half
    for one in odd:
        x = editor.add(node, "Mul", [x, one])
    return x
