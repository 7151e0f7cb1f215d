"""Replaces ScatterElements with a MatMul of a one-hot matrix (add) or a Gather (plain).

Qualcomm's HTP refuses ScatterElements with reduction "add" in fp16, and computes it wrongly where
it is quantized (0 dB in w8a8 and w8a16, emulated, v75, QAIRT 2.51); the plain form is wrong in
w8a16 (14 dB). After the rewrite: 67 dB or more in fp16, 44 dB or more in w8a16. A ScatterND is left
as it is: 67 dB in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import view
from edgeport.types import PassResult

NAME = "scatter to MatMul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[3, 2] x, float[4, 2] updates) => (float[3, 2] y)
<int64[4, 2] rows = {2, 2, 0, 0, 2, 2, 1, 1}>
{ y = ScatterElements <axis = 0, reduction = "add"> (x, rows, updates) }
"""
MAX_ONE_HOT = 1 << 22  # elements of the one-hot matrix: 4 MiB in 8 bits
_OPSET = 16  # reduction is stated from here on


@dataclass(frozen=True)
class _Scatter:
    """`before` x `rows` x `after`: the data; `count` updates along the axis, in shape `updates`."""

    axis: int
    before: int
    rows: int
    after: int
    count: int
    dtype: np.dtype[Any]


def scatter_to_matmul(model: ir.Model) -> PassResult:
    """Returns the model with ScatterElements replaced.

    Refuses other reductions than add, plain scatters whose indices are computed or repeat, and
    one-hot matrices of more than MAX_ONE_HOT elements.
    """
    editor = Editor(model)
    for node in nodes_of(model, "ScatterElements") if opset(model) >= _OPSET else ():
        data, indices, updates = (shape_of(value) for value in node.inputs)
        if data is None or indices is None or updates is None or 0 in data or 0 in updates:
            continue
        axis = attribute(node, "axis", 0) % len(data)
        known, reduction = array_of(node.inputs[1]), attribute(node, "reduction", "none")
        dtype = _dtype(node.inputs[2])
        if reduction == "none":
            _replace_plain(editor, node, data, axis, known)
        elif reduction != "add":
            editor.refuse(node, f"no matrix product reduces by {reduction}")
        elif dtype.kind != "f":
            editor.refuse(node, "a MatMul adds no integers exactly on every runtime")
        elif data[:axis] + data[axis + 1 :] != updates[:axis] + updates[axis + 1 :]:
            editor.refuse(node, "the updates cover a part of the other axes")
        else:
            split = math.prod(data[:axis]), data[axis], math.prod(data[axis + 1 :])
            _replace_add(editor, node, _Scatter(axis, *split, updates[axis], dtype), known)
    return editor.result(NAME)


def _dtype(value: ir.Value | None) -> np.dtype[Any]:
    assert value is not None and value.dtype is not None
    return value.dtype.numpy()


# reduction "none": each result is an element of the data or of the updates


def _replace_plain(
    editor: Editor,
    node: ir.Node,
    data: tuple[int, ...],
    axis: int,
    indices: NDArray[np.int64] | None,
) -> None:
    if indices is None:
        return editor.refuse(node, "its indices are computed, so they may repeat")
    targets = np.indices(indices.shape).reshape(len(data), -1)
    targets[axis] = indices.reshape(-1) % data[axis]
    flat: NDArray[np.int64] = np.asarray(np.ravel_multi_index(tuple(targets), data))
    if len(np.unique(flat)) != len(flat):
        return editor.refuse(node, "its indices repeat, and which update wins is not defined")
    if math.prod(data) + len(flat) > MAX_ONE_HOT:
        return editor.refuse(node, "the data is too large to gather from")
    sources = np.arange(math.prod(data), dtype=np.int64)
    sources[flat] = math.prod(data) + np.arange(len(flat))
    parts = [
        view(editor, node, node.inputs[at], (size,))
        for at, size in ((0, math.prod(data)), (2, len(flat)))
    ]
    joined = editor.add(node, "Concat", parts, axis=0)
    taken = editor.add(node, "Gather", [joined, editor.constant(node, sources, "sources")], axis=0)
    editor.replace(node.outputs[0], view(editor, node, taken, data))


# reduction "add": the one-hot matrix of the indices times the updates


def _replace_add(
    editor: Editor, node: ir.Node, scatter: _Scatter, indices: NDArray[np.int64] | None
) -> None:
    shared = None if indices is None else _shared_rows(indices, scatter)
    lines = 1 if shared is not None else scatter.before * scatter.after
    if lines * scatter.rows * scatter.count > MAX_ONE_HOT:
        return editor.refuse(node, f"its one-hot matrix has over {MAX_ONE_HOT} elements")
    if shared is not None:
        total = _add_shared(editor, node, scatter, shared)
    else:
        total = _add_by_line(editor, node, scatter, indices)
    data = node.inputs[0]
    known, sizes = array_of(data), shape_of(data)
    value = view(editor, node, total, sizes or ())
    if known is None or known.any():
        value = editor.add(node, "Add", [data, value])
    editor.replace(node.outputs[0], value)


def _shared_rows(indices: NDArray[np.int64], scatter: _Scatter) -> NDArray[np.int64] | None:
    """Returns the indices along the axis where they are the same on all other axes."""
    lines = np.moveaxis(indices % scatter.rows, scatter.axis, -1).reshape(-1, scatter.count)
    return lines[0] if (lines == lines[0]).all() else None


def _add_shared(
    editor: Editor, node: ir.Node, scatter: _Scatter, rows: NDArray[np.int64]
) -> ir.Value:
    matrix = np.arange(scatter.rows)[:, None] == rows[None]
    one_hot = editor.constant(node, matrix.astype(scatter.dtype), "one_hot")
    shape = (scatter.before, scatter.count, scatter.after)
    return editor.add(node, "MatMul", [one_hot, view(editor, node, node.inputs[2], shape)])


def _add_by_line(
    editor: Editor, node: ir.Node, scatter: _Scatter, indices: NDArray[np.int64] | None
) -> ir.Value:
    """Returns before x rows x after sums, each line along the axis with its own matrix."""
    lines = scatter.before * scatter.after
    if indices is not None:
        by_line = np.moveaxis(indices % scatter.rows, scatter.axis, -1).reshape(lines, -1, 1)
        matrix = (by_line == np.arange(scatter.rows)).astype(scatter.dtype)
        one_hot = editor.constant(node, matrix, "one_hot")
    else:
        one_hot = _computed_one_hot(editor, node, scatter)
    updates = _lines(editor, node, scatter, node.inputs[2])
    row = view(editor, node, updates, (lines, 1, scatter.count))
    sums = editor.add(node, "MatMul", [row, one_hot])
    sums = view(editor, node, sums, (scatter.before, scatter.after, scatter.rows))
    return editor.add(node, "Transpose", [sums], perm=[0, 2, 1])


def _computed_one_hot(editor: Editor, node: ir.Node, scatter: _Scatter) -> ir.Value:
    """Returns the lines x count x rows matrix; an index and the same less `rows` are one row."""
    numbers = np.arange(scatter.rows, dtype=_dtype(node.inputs[1]))
    lines = _lines(editor, node, scatter, node.inputs[1])
    column = view(editor, node, lines, (scatter.before * scatter.after, scatter.count, 1))
    hits = [
        editor.add(node, "Equal", [column, editor.constant(node, numbers - shift, "rows")])
        for shift in (0, scatter.rows)
    ]
    either = editor.add(node, "Or", hits)
    return editor.add(node, "Cast", [either], to=ir.DataType.from_numpy(scatter.dtype))


def _lines(editor: Editor, node: ir.Node, scatter: _Scatter, value: ir.Value | None) -> ir.Value:
    """Returns `value` as before x after x count."""
    assert value is not None
    cube = view(editor, node, value, (scatter.before, scatter.count, scatter.after))
    return editor.add(node, "Transpose", [cube], perm=[0, 2, 1])
