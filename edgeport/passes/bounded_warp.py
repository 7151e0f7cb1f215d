"""Replaces GridSample that moves each pixel by a bounded distance with a sum of shifted pictures.

Bilinear sampling at x + u is the sum over whole shifts d of hat(u - d) F(x + d), hat(a) being
max(0, 1 - |a|), where |u| <= R and d goes from -R to R; outside of the picture F is 0. Each axis is
one such sum, so that (2 R + 1)^2 shifts are needed. GPU delegates (LiteRT's among them) have
no GridSample; Qualcomm's HTP has.

The bound must follow from the graph: a Clip by constants, a Tanh or a Sigmoid, scaled by constants
and added to a constant grid. R is at most 3, which are 49 shifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    is_operator,
    nodes_of,
    opset,
    producer_of,
    shape_of,
)
from edgeport.passes.shapes import SHAPES_OPSET, cut, view
from edgeport.types import PassResult

NAME = "bounded warp"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 2, 2] x, float[1, 2, 2, 2] flow) => (float[1, 2, 2, 2] y)
<float[1, 2, 2, 2] base = {-0.5, -0.5, 0.5, -0.5, -0.5, 0.5, 0.5, 0.5}> {
  bounded = Tanh(flow)
  grid = Add(base, bounded)
  y = GridSample <align_corners = 0> (x, grid)
}
"""
MAX_RADIUS = 3
_RESIDUE = 1e-4  # pixels by which a constant grid of float32 may miss whole ones

Bound = NDArray[np.float64]
"""The largest magnitude along x and along y."""


@dataclass(frozen=True)
class _Warp:
    """A GridSample: displacements, the base grid's pixels, and (x, y) pixels per unit of grid."""

    node: ir.Node
    flow: ir.Value
    residue: NDArray[np.float64]
    scale: NDArray[np.float64]
    radius: tuple[int, int]


def bounded_warp(model: ir.Model) -> PassResult:
    """Returns the model without the GridSamples whose reach is known to be small."""
    editor = Editor(model)
    for node in nodes_of(model, "GridSample"):
        if opset(model) < SHAPES_OPSET or shape_of(node.outputs[0]) is None:
            continue
        found = _match(node)
        if isinstance(found, str):
            editor.refuse(node, found)
        else:
            _write(editor, found)
    return editor.result(NAME)


def _match(node: ir.Node) -> _Warp | str:
    """Returns the warp, or why there is none."""
    shape, points = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if shape is None or points is None or len(shape) != 4 or 0 in shape:
        return "its shapes are not static, or not those of pictures"
    if points[1:3] != shape[2:]:
        return "its result has another size than its input"
    if attribute(node, "mode", "linear") not in ("linear", "bilinear"):
        return "it does not interpolate linearly"
    if attribute(node, "padding_mode", "zeros") != "zeros":
        return "it pads with something else than zeros"
    add = producer_of(node.inputs[1], "Add")
    inputs = [] if add is None else [value for value in add.inputs if value is not None]
    bases = [value for value in inputs if array_of(value) is not None]
    flows = [value for value in inputs if array_of(value) is None]
    if len(bases) != 1 or shape_of(flows[0]) != points:
        return "its grid is not a constant plus displacements"
    size = np.array(shape[:1:-1], np.float64)
    aligned = bool(attribute(node, "align_corners", 0))
    scale = (size - 1) / 2 if aligned else size / 2
    base = array_of(bases[0])
    assert base is not None
    pixels = np.broadcast_to(base, points) * scale + (size - 1) / 2
    whole = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="xy"), axis=-1)
    residue = pixels - whole
    bound = _bound(flows[0], 16)
    if bound is None:
        return "nothing in the graph bounds its displacements"
    reach = bound * scale + np.abs(residue).max(axis=(0, 1, 2))
    radius = tuple(max(0, math.ceil(one - _RESIDUE)) for one in reach)
    if max(radius) > MAX_RADIUS:
        return f"it may move pixels by {max(radius)}, more than {MAX_RADIUS} take too many shifts"
    return _Warp(node, flows[0], residue, scale, (radius[0], radius[1]))


def _bound(value: ir.Value | None, depth: int) -> Bound | None:
    """Returns the largest magnitude of the last axis's two components, where the graph has one."""
    if (array := array_of(value)) is not None:
        wide = np.abs(array.astype(np.float64))
        pairs = wide.ndim > 0 and wide.shape[-1] == 2
        return wide.reshape(-1, 2).max(axis=0) if pairs else np.full(2, wide.max())
    node = None if value is None else value.producer()
    if node is None or depth == 0 or not node.inputs:
        return None
    if is_operator(node, "Tanh", "Sigmoid"):
        return np.ones(2)
    if is_operator(node, "Clip"):
        limits = [array_of(one) for one in (*node.inputs, None, None)[1:3]]
        known = [float(np.abs(one).max()) for one in limits if one is not None]
        return np.full(2, max(known)) if len(known) == 2 else None
    bounds = [_bound(one, depth - 1) for one in node.inputs[: 2 if _joins(node) else 1]]
    present = [bound for bound in bounds if bound is not None]
    if len(present) < len(bounds):
        return None
    if is_operator(node, "Mul"):
        return present[0] * present[1]
    if is_operator(node, "Add", "Sub"):
        return present[0] + present[1]
    if is_operator(node, "Transpose", "Reshape", "Slice"):
        return np.full(2, present[0].max())  # what was the last axis may be another
    return present[0] if is_operator(node, "Identity", "Neg") else None


def _joins(node: ir.Node) -> bool:
    return is_operator(node, "Mul", "Add", "Sub")


def _write(editor: Editor, warp: _Warp) -> None:
    """Sums the shifted rows of each shifted column, padded once with zeros."""
    node, shape = warp.node, shape_of(warp.node.inputs[0])
    assert shape is not None and node.inputs[0] is not None and node.inputs[0].dtype is not None
    (right, down), (batch, _, height, width) = warp.radius, shape
    pads = editor.constant(node, np.array([0, 0, down, right] * 2, np.int64), "pads")
    padded = editor.add(node, "Pad", [node.inputs[0], pads])
    across = _hats(editor, warp, 0, (batch, 1, height, width))
    along = _hats(editor, warp, 1, (batch, 1, height, width))
    rows = []
    for y, weight in enumerate(along):
        row = cut(editor, node, padded, 2, y, y + height)
        parts = [
            editor.add(node, "Mul", [cut(editor, node, row, 3, x, x + width), hat])
            for x, hat in enumerate(across)
        ]
        rows.append(editor.add(node, "Mul", [_sum(editor, node, parts), weight]))
    editor.replace(node.outputs[0], _sum(editor, node, rows))


def _hats(editor: Editor, warp: _Warp, axis: int, shape: tuple[int, ...]) -> list[ir.Value]:
    """Returns the weight of each whole shift along x (0) or y (1)."""
    node, radius = warp.node, warp.radius[axis]
    assert warp.flow.dtype is not None
    kind = warp.flow.dtype.numpy()

    def number(array: float | NDArray[np.float64], hint: str) -> ir.Value:
        return editor.constant(node, np.asarray(array, kind), hint)

    value = view(editor, node, cut(editor, node, warp.flow, 3, axis, axis + 1), shape)
    value = editor.add(node, "Mul", [value, number(warp.scale[axis], "pixels")])
    residue = warp.residue[..., axis]
    if np.abs(residue).max() > _RESIDUE:
        value = editor.add(node, "Add", [value, number(residue[:, None], "residue")])
    hats = []
    for shift in range(-radius, radius + 1):
        apart = editor.add(node, "Sub", [value, number(float(shift), "shift")])
        far = editor.add(node, "Abs", [apart])
        hats.append(editor.add(node, "Relu", [editor.add(node, "Sub", [number(1.0, "one"), far])]))
    return hats


def _sum(editor: Editor, node: ir.Node, parts: list[ir.Value]) -> ir.Value:
    total = parts[0]
    for part in parts[1:]:
        total = editor.add(node, "Add", [total, part])
    return total
