"""Replaces Gather and GatherND with constant indices of any shape with a Gather of one row of them.

Qualcomm's HTP computes a GatherND whose indices have one column wrongly (x[:, indices] in torch:
-2 dB in fp16 and in w8a16, v75, QAIRT 2.51) and refuses indices that raise the rank above 5
(torch's unfold and uneven adaptive pooling). GPU delegates of LiteRT have no GATHER_ND. After the
rewrite: 73 dB in fp16, 74 dB or more in w8a16. Indices that count up are a Slice, and those that
count through the whole axis are nothing.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    nodes_of,
    opset,
    producer_of,
    shape_of,
)
from edgeport.passes.shapes import SHAPES_OPSET, cut, view
from edgeport.types import PassResult

NAME = "constant gathers"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[4, 2] x) => (float[3, 2] y)
<int64[3, 1] rows = {3, 0, 0}>
{ y = GatherND(x, rows) }
"""

Indices = NDArray[np.int64]


def flatten_gathers(model: ir.Model) -> PassResult:
    """Returns the model whose constant gathers have one row of indices, or are slices."""
    editor = Editor(model)
    for node in nodes_of(model, "Gather", "GatherND") if opset(model) >= SHAPES_OPSET else ():
        source, indices = node.inputs[0], array_of(node.inputs[1])
        shape, result = shape_of(source), shape_of(node.outputs[0])
        if source is None or indices is None or shape is None or result is None:
            continue
        if 0 in shape or 0 in result:
            continue
        if node.op_type == "Gather":
            axis = attribute(node, "axis", 0) % len(shape)
            indices = indices % shape[axis]
            if indices.ndim == 1 and not _run(indices):
                continue
            value = _take(editor, node, source, axis, indices.reshape(-1))
        elif attribute(node, "batch_dims", 0):
            editor.refuse(node, "GatherND with batch dimensions")
            continue
        else:
            value = _take_points(editor, node, source, shape, indices)
        editor.replace(node.outputs[0], view(editor, node, value, result))
    return editor.result(NAME)


def _take_points(
    editor: Editor, node: ir.Node, source: ir.Value, shape: tuple[int, ...], points: Indices
) -> ir.Value:
    """Returns the slices of `source` at `points`, whose last axis holds coordinates."""
    depth = points.shape[-1]
    if depth == 1:
        turned = producer_of(source, "Transpose")
        rows = points.reshape(-1) % shape[0]
        if turned is None or turned.inputs[0] is None:
            return _take(editor, node, source, 0, rows)
        # torch turns the axis to the front for GatherND; Gather takes it where it is.
        perm = attribute(turned, "perm", list(range(len(shape)))[::-1])
        taken = _take(editor, node, turned.inputs[0], perm[0], rows)
        return editor.add(node, "Transpose", [taken], perm=list(perm))
    coordinates = np.moveaxis(points.reshape(-1, depth), -1, 0) % np.array(shape[:depth])[:, None]
    rows = np.ravel_multi_index(tuple(coordinates), shape[:depth])
    flat = view(editor, node, source, (math.prod(shape[:depth]), *shape[depth:]))
    return _take(editor, node, flat, 0, np.asarray(rows, np.int64))


def _take(editor: Editor, node: ir.Node, source: ir.Value, axis: int, indices: Indices) -> ir.Value:
    """Returns `source` at these indices of one axis: a Gather, a Slice, or `source` itself."""
    shape = shape_of(source)
    assert shape is not None
    step = _run(indices)
    if not step:
        rows = editor.constant(node, indices.astype(np.int64), "indices")
        return editor.add(node, "Gather", [source, rows], axis=axis)
    start, stop = int(indices[0]), int(indices[-1]) + 1
    if (start, stop, step) == (0, shape[axis], 1):
        return source
    return cut(editor, node, source, axis, start, stop, step)


def _run(indices: Indices) -> int:
    """Returns the positive step by which the indices count up, 0 where they do not."""
    if len(indices) == 1:
        return 1
    steps = np.diff(indices)
    return int(steps[0]) if steps[0] > 0 and (steps == steps[0]).all() else 0
