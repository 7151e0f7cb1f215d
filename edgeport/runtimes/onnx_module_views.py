"""ONNX operators that move elements, in torch: shapes, slices, gathers, pads.

Each function takes a Node and returns its Operation (`edgeport.runtimes.onnx_module`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeport.runtimes.onnx_module import Node, Operation, normal_axes

# Shapes


def _identity(node: Node) -> Operation:
    return lambda x: x


def _dropout(node: Node) -> Operation:
    node.attribute("seed")
    training = node.constant(2)
    if node.outputs > 1 or (training is not None and training.any()):
        raise node.refusal("it is dropout for training")
    node.constant(1)
    return lambda x, *_: x


def _reshape(node: Node) -> Operation:
    shape, keep_zero = node.integers(1), node.attribute("allowzero")
    assert shape is not None

    def reshape(x: Tensor, _: None) -> Tensor:
        sizes = [x.shape[i] if one == 0 and not keep_zero else one for i, one in enumerate(shape)]
        return x.reshape(sizes)

    return reshape


def _flatten(node: Node) -> Operation:
    axis = node.attribute("axis")

    def flatten(x: Tensor) -> Tensor:
        split = axis + x.ndim if axis < 0 else axis
        return x.reshape(x.shape[:split].numel(), x.shape[split:].numel())

    return flatten


def _squeeze(node: Node) -> Operation:
    axes = node.integers(1)
    return lambda x, *_: torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(axes))


def _unsqueeze(node: Node) -> Operation:
    axes = node.integers(1)
    assert axes is not None

    def unsqueeze(x: Tensor, _: None) -> Tensor:
        for axis in sorted(normal_axes(axes, x.ndim + len(axes))):
            x = torch.unsqueeze(x, axis)
        return x

    return unsqueeze


def _transpose(node: Node) -> Operation:
    perm = node.attribute("perm")
    return lambda x: x.permute(perm or tuple(reversed(range(x.ndim))))


def _expand(node: Node) -> Operation:
    shape = node.integers(1)
    assert shape is not None
    return lambda x, _: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


def _tile(node: Node) -> Operation:
    repeats = node.integers(1)
    return lambda x, _: x.repeat(repeats)


def _shape(node: Node) -> Operation:
    start, end = node.attribute("start"), node.attribute("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def _size(node: Node) -> Operation:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


def _filled(node: Node) -> Operation:
    shape, value = node.integers(0), node.attribute("value")
    array = np.zeros(1, np.float32) if value is None else _array(value)
    filled = torch.from_numpy(np.full(shape or (), array.reshape(-1)[0], array.dtype))
    return lambda _: filled.clone()


def _array(tensor: Any) -> NDArray[Any]:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _triangle(node: Node) -> Operation:
    upper, diagonals = node.attribute("upper"), node.integers(1) or [0]
    function = torch.triu if upper else torch.tril
    return lambda x, *_: function(x, diagonals[0])


# Parts


def _concat(node: Node) -> Operation:
    axis = node.attribute("axis")
    return lambda *tensors: torch.cat(tensors, axis)


def _split(node: Node) -> Operation:
    axis, sizes, count = node.attribute("axis"), node.integers(1), len(node.proto.output)
    node.attribute("num_outputs")

    def split(x: Tensor, *_: None) -> tuple[Tensor, ...]:
        each = -(-x.shape[axis] // count)
        even = [min(each, x.shape[axis] - i * each) for i in range(count)]
        return tuple(torch.split(x, sizes or even, axis))

    return split


def _slice(node: Node) -> Operation:
    starts, ends = node.integers(1), node.integers(2)
    assert starts is not None and ends is not None
    axes = node.integers(3) or list(range(len(starts)))
    steps = node.integers(4) or [1] * len(starts)

    def cut(x: Tensor, *_: None) -> Tensor:
        for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
            # An end before the first element, for a negative step, comes out as -1.
            x = _along(x, axis, range(*slice(*bounds).indices(x.shape[axis])))
        return x

    return cut


def _along(x: Tensor, axis: int, chosen: range | Sequence[int]) -> Tensor:
    """Returns these positions of an axis, by a slice where they are evenly spaced."""
    line = _as_range(chosen)
    if line is None:
        return x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    if line == range(x.shape[axis]):
        return x
    if not line:
        return x.narrow(axis, 0, 0)
    index: list[Any] = [slice(None)] * x.ndim
    if line.step > 0:
        index[axis] = slice(line[0], line[-1] + 1, line.step)
        return x[tuple(index)]
    index[axis] = slice(line[-1], line[0] + 1, -line.step)
    return torch.flip(x[tuple(index)], [axis])


def _as_range(chosen: range | Sequence[int]) -> range | None:
    """Returns the positions as a range that starts and ends within the axis, or None."""
    if isinstance(chosen, range):
        return chosen
    step = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    line = range(chosen[0], chosen[-1] + (1 if step > 0 else -1), step) if step and chosen else None
    return line if line is not None and list(line) == list(chosen) else None


# Gathers


def _gather(node: Node) -> Operation:
    axis = node.attribute("axis")
    if not node.is_constant(1):
        return lambda x, indices: _lookup(x, indices, axis)
    indices = node.constant(1)
    assert indices is not None

    def gather(x: Tensor, _: None) -> Tensor:
        size = x.shape[axis]
        chosen = [int(one) % size for one in indices.reshape(-1)]
        if indices.ndim == 0:
            return x.select(axis, chosen[0])
        found = _along(x, axis, chosen)
        place = axis % x.ndim
        shape = (*x.shape[:place], *indices.shape, *x.shape[place + 1 :])
        return found if indices.ndim == 1 else found.reshape(shape)

    return gather


def _lookup(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Returns the entries of an axis at indices that are computed, and may be negative."""
    wide = indices.to(torch.int64)
    wide = torch.where(wide < 0, wide + x.shape[axis], wide)
    if x.ndim == 2 and axis % x.ndim == 0:
        return F.embedding(wide, x)
    place = axis % x.ndim
    found = x.index_select(place, wide.reshape(-1))
    return found.reshape(*x.shape[:place], *indices.shape, *x.shape[place + 1 :])


def _counted(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def _gather_elements(node: Node) -> Operation:
    axis = node.attribute("axis")
    return lambda x, indices: torch.gather(x, axis, _counted(indices, x.shape[axis]))


def _gather_nd(node: Node) -> Operation:
    batch = node.attribute("batch_dims")
    if batch and node.is_constant(1):
        raise node.refusal(f"batch_dims {batch} is not translated, only 0")
    node.only(batch_dims=0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        parts = [_counted(one, size) for one, size in zip(indices.unbind(-1), x.shape)]
        return x[tuple(parts)]

    return gather


def _scatter_elements(node: Node) -> Operation:
    axis, reduction = node.attribute("axis"), node.attribute("reduction")
    forms = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _counted(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, forms[reduction], include_self=True)

    return scatter


def _scatter_nd(node: Node) -> Operation:
    node.only(reduction="none")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        parts = [_counted(one, size) for one, size in zip(indices.unbind(-1), x.shape)]
        return x.index_put(tuple(parts), updates)

    return scatter


def _one_hot(node: Node) -> Operation:
    depth, values = node.integers(1), node.constant(2)
    axis = node.attribute("axis")
    assert depth is not None and values is not None
    off, on = (torch.from_numpy(values[i : i + 1].copy())[0] for i in (0, 1))

    def spread(indices: Tensor, *_: None) -> Tensor:
        place = axis % (indices.ndim + 1)
        shape = [1] * (indices.ndim + 1)
        shape[place] = depth[0]
        classes = torch.arange(depth[0]).reshape(shape)
        wide = _counted(indices.to(torch.int64), depth[0]).unsqueeze(place)
        return torch.where(wide == classes, on, off)

    return spread


# Pads


def _pad(node: Node) -> Operation:
    mode, amounts, axes = node.attribute("mode"), node.integers(1), node.integers(3)
    filler = node.constant(2)
    value = 0 if filler is None or not filler.size else filler.reshape(-1)[0].item()
    assert amounts is not None

    def pad(x: Tensor, *_: None) -> Tensor:
        half = len(amounts) // 2
        placed = normal_axes(axes, x.ndim) if axes is not None else range(x.ndim)
        by_axis = {a: (amounts[i], amounts[half + i]) for i, a in enumerate(placed)}
        by_axis = {axis: pair for axis, pair in by_axis.items() if pair != (0, 0)}
        if mode == "constant":
            return F.pad(x, _torch_pads(by_axis, x.ndim), value=value)
        return _pad_from_inside(x, by_axis, mode)

    return pad


def _torch_pads(by_axis: Mapping[int, tuple[int, int]], rank: int) -> list[int]:
    """Returns torch's list of pads: pairs, from the last axis to the first that is padded."""
    first = min(by_axis, default=rank)
    return [one for axis in reversed(range(first, rank)) for one in by_axis.get(axis, (0, 0))]


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad_from_inside(x: Tensor, by_axis: Mapping[int, tuple[int, int]], mode: str) -> Tensor:
    """Returns x padded with its own elements: torch's own form for pictures, else axis by axis."""
    picture = x.ndim == 4 and min(by_axis, default=4) >= 2
    whole = all(0 <= amount < x.shape[axis] for axis in by_axis for amount in by_axis[axis])
    if picture and whole and by_axis and mode != "wrap":
        pads = [one for axis in (3, 2) for one in by_axis.get(axis, (0, 0))]
        return F.pad(x, pads, mode=_MODES[mode])
    for axis, (before, after) in by_axis.items():
        x = _along(x, axis, _sources(x.shape[axis], before, after, mode))
    return x


def _sources(size: int, before: int, after: int, mode: str) -> list[int]:
    """Returns the position that each place of a padded axis is read from."""
    places = np.arange(-before, size + after)
    if mode == "edge":
        places = places.clip(0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        places = np.abs((places + size - 1) % max(1, 2 * size - 2) - (size - 1))
    return [int(one) for one in places]


VIEWS: Mapping[str, Callable[[Node], Operation]] = {
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
