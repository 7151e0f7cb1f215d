"""Replaces a Gather whose constant indices step evenly with Reshape, Slice and Transpose.

Why: exporters write as_strided as Reshape([-1]) and a Gather with as many indices as elements,
though it is mostly a view of the same tensor. A session of Qualcomm's HTP compiler aborts on
one where a Transpose follows (v75, QAIRT 2.51, fp16 and w8a16).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, producer_of, shape_of
from edgeport.types import PassResult

NAME = "strided Gather to a view"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[3, 2] y)
<int64[1] flat = {-1}, int64[3, 2] indices = {0, 3, 1, 4, 2, 5}> {
  line = Reshape(x, flat)
  y = Gather(line, indices)
}
"""


@dataclass(frozen=True)
class View:
    """An axis of `length` elements seen as `dims`, cut from `starts` for `sizes`, transposed."""

    dims: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    perm: tuple[int, ...]


def gather_to_view(model: ir.Model) -> PassResult:
    """Returns the model with views in place of such Gathers; one index alone stays a Gather."""
    editor = Editor(model)
    for node in nodes_of(model, "Gather"):
        data, indices = node.inputs[0], array_of(node.inputs[1])
        shape = shape_of(data)
        if indices is None or indices.size < 2 or not shape or array_of(data) is not None:
            continue
        axis = int(attribute(node, "axis", 0)) % len(shape)
        strided = _strides(np.where(indices < 0, indices + shape[axis], indices))
        view = strided and _view(shape[axis], *strided, indices.shape)
        if view:
            _replace(editor, node, axis, shape, view, indices.shape)
        elif strided and producer_of(data, "Reshape") and len(shape) == 1:
            editor.refuse(node, "its evenly spaced indices overlap, or do not divide the tensor")
    return editor.result(NAME)


def _strides(indices: NDArray[np.int64]) -> tuple[int, tuple[int, ...]] | None:
    """Returns the first index and the step along each axis where the steps are constant."""
    base = int(indices.flat[0])
    steps = tuple(
        0 if size == 1 else int(indices.take(1, axis).flat[0]) - base
        for axis, size in enumerate(indices.shape)
    )
    grids = np.indices(indices.shape)
    expected = base + sum(step * grid for step, grid in zip(steps, grids))
    return (base, steps) if np.array_equal(indices, expected) else None


def _view(length: int, base: int, steps: tuple[int, ...], shape: tuple[int, ...]) -> View | None:
    """Returns the view of `length` elements that has these steps, where there is one."""
    axes = sorted((a for a, size in enumerate(shape) if size > 1), key=lambda a: -steps[a])
    falling = [steps[a] for a in axes]
    if not falling or falling[-1] <= 0:
        return None
    units = falling if falling[-1] == 1 else [*falling, 1]
    wholes = [length, *units[:-1]]
    if any(whole % unit for whole, unit in zip(wholes, units)):
        return None
    dims = tuple(whole // unit for whole, unit in zip(wholes, units))
    starts = tuple(base // unit % dim for unit, dim in zip(units, dims))
    sizes = tuple(shape[a] for a in axes) + (1,) * (len(units) - len(falling))
    if any(start + size > dim for start, size, dim in zip(starts, sizes, dims)):
        return None
    return View(dims, starts, sizes, tuple(int(i) for i in np.argsort(axes)))


def _replace(
    editor: Editor,
    node: ir.Node,
    axis: int,
    shape: tuple[int, ...],
    view: View,
    indices: tuple[int, ...],
) -> None:
    before, after = shape[:axis], shape[axis + 1 :]
    value = node.inputs[0]
    flat = producer_of(value, "Reshape")
    if flat is not None and len(shape) == 1:  # see through the as_strided's own Reshape
        value = flat.inputs[0]
    assert value is not None
    cut = [k for k, (size, dim) in enumerate(zip(view.sizes, view.dims)) if size != dim]
    if cut:
        value = editor.reshape(node, value, (*before, *view.dims, *after))
        parts = {
            "starts": [view.starts[k] for k in cut],
            "ends": [view.starts[k] + view.sizes[k] for k in cut],
            "axes": [axis + k for k in cut],
        }
        inputs = [editor.constant(node, np.array(part), name) for name, part in parts.items()]
        value = editor.add(node, "Slice", [value, *inputs])
    kept = tuple(size for size in view.sizes if size > 1)
    perm = [*range(axis), *(axis + p for p in view.perm)]
    perm += range(len(perm), len(before) + len(kept) + len(after))
    if perm != sorted(perm):
        value = editor.reshape(node, value, (*before, *kept, *after))
        value = editor.transpose(node, value, perm)
    value = editor.reshape(node, value, (*before, *indices, *after))
    editor.replace(node.outputs[0], value)
