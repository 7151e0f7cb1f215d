"""Replaces operators on tensors of high rank with the same operators on merged axes.

Qualcomm's HTP takes no Reshape, Transpose, Add or ReduceMean above rank 5, in no precision (v75,
QAIRT 2.51: error 3110): window partitions of more than one image, PixelUnshuffle and decomposed
relative positions then run on the CPU. GPU delegates stop at rank 4. Axes that an operator treats
alike are one axis to it, so that Reshape - operator - Reshape computes the same at a lower rank;
a Transpose that stays above the limit becomes several, each a swap of two neighbouring blocks of
axes. Emulated after the rewrite: 72 dB or more in fp16, 77 dB or more in w8a16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx_ir as ir

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
from edgeport.types import PassResult

NAME = "reduce rank"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 4, 4, 3] x) => (float[8, 4, 3] y)
<int64[6] windows = {2, 2, 2, 2, 2, 3}, int64[3] tokens = {8, 4, 3}>
{
  a = Reshape(x, windows)
  b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
  y = Reshape(b, tokens)
}
"""
HTP_RANK = 5  # Reshape, Transpose and elementwise operators
_OPSET = 18  # from here on all reductions take their axes as an input

Shape = tuple[int, ...]
# One key an axis: neighbouring axes of the same key are merged; None is never merged.
Keys = Sequence[Hashable | None]

_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")
_ELEMENTWISE = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Floor"),
    *("Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less"),
    *("LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "PRelu"),
    *("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Tanh", "Where"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Gather": 0}  # axis if not stated
_PER_CHANNEL = ("BatchNormalization", "GroupNormalization", "InstanceNormalization")
# What HTP takes only up to a rank below HTP_RANK.
_LOWER_RANK = dict.fromkeys((*_PER_CHANNEL, "LogSoftmax"), 4)


def reduce_rank(model: ir.Model, limit: int = HTP_RANK) -> PassResult:
    """Returns the model with operators above rank `limit` on merged axes.

    A Transpose of a view also loses its axes of size 1. Refuses operators above the limit whose
    axes do not merge far enough, or for which there is no rule.
    """
    editor = Editor(model)
    if opset(model) < _OPSET:
        return editor.result(NAME)
    for node in nodes_of(model, "Transpose"):
        _lower_transpose(editor, node, limit)
    rules = _rules()
    for node in nodes_of(model, *rules):
        most = min(limit, _LOWER_RANK.get(node.op_type, limit))
        if _rank(node) > most:
            _lower(editor, node, rules[node.op_type], most)
    for node in nodes_of(model, *_VIEWS):
        _join_views(editor, node, limit)
    return editor.result(NAME)


def _rules() -> dict[str, Callable[[ir.Node, list[Shape]], Keys | None]]:
    return {
        **dict.fromkeys(_ELEMENTWISE, _keys_elementwise),
        **dict.fromkeys(_REDUCTIONS, _keys_reduction),
        **dict.fromkeys(_ALONG_AXIS, _keys_along_axis),
        **dict.fromkeys(_PER_CHANNEL, lambda node, shapes: _keys_around(shapes[0], 0, 2, "")),
        "MatMul": _keys_matmul,
        "Slice": _keys_slice,
    }


def _rank(node: ir.Node) -> int:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return max((len(value.shape) for value in values if value.shape is not None), default=0)


# Which axes an operator treats alike


def _keys_elementwise(node: ir.Node, shapes: list[Shape]) -> Keys:
    """Returns, per axis, which of the inputs are broadcast along it."""
    sizes = np.broadcast_shapes(*shapes)
    return [tuple(shape[axis] == size for shape in shapes) for axis, size in enumerate(sizes)]


def _keys_reduction(node: ir.Node, shapes: list[Shape]) -> Keys | None:
    axes = _reduced_axes(node, len(shapes[0]))
    return None if axes is None else [axis in axes for axis in range(len(shapes[0]))]


def _reduced_axes(node: ir.Node, rank: int) -> frozenset[int] | None:
    stated = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if stated is None or not stated.size:  # all axes, unless they are not known or a no-op
        known = len(node.inputs) < 2 or node.inputs[1] is None or stated is not None
        every = known and not attribute(node, "noop_with_empty_axes", 0)
        return frozenset(range(rank)) if every else None
    return frozenset(int(axis) % rank for axis in stated.reshape(-1))


def _keys_along_axis(node: ir.Node, shapes: list[Shape]) -> Keys:
    rank = len(shapes[0])
    axis = _axis(node, rank)
    return _keys_around(shapes[0], axis, axis + 1, "before")


def _axis(node: ir.Node, rank: int) -> int:
    return int(attribute(node, "axis", _ALONG_AXIS[node.op_type])) % rank


def _keys_slice(node: ir.Node, shapes: list[Shape]) -> Keys | None:
    """Returns keys that keep the axes apart that are cut; None where they are not stated."""
    axes = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None:
        return None
    rank = len(shapes[0])
    cut = {int(axis) % rank for axis in axes.reshape(-1)}
    return [None if axis in cut else sum(one < axis for one in cut) for axis in range(rank)]


def _keys_matmul(node: ir.Node, shapes: list[Shape]) -> Keys | None:
    if min(len(value.shape) for value in node.inputs if value and value.shape) < 2:
        return None  # a vector has no second axis to keep
    batch = [shape[:-2] for shape in shapes]
    return [*_keys_elementwise(node, batch), None, None]


def _keys_around(shape: Shape, start: int, stop: int, before: str) -> Keys:
    """Returns keys that keep the axes from `start` to `stop` apart."""
    return [
        before if axis < start else None if axis < stop else "after" for axis in range(len(shape))
    ]


def _groups(keys: Keys, sizes: Sequence[int]) -> list[list[int]]:
    """Returns the axes that become one; an axis of size 1 joins the one before it."""
    groups: list[list[int]] = []
    last: Hashable | None = None
    for axis, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        if groups and key is not None and (key == last or (size == 1 and last is not None)):
            groups[-1].append(axis)
        else:
            groups.append([axis])
            last = key
    return groups


# The rewrite of one operator


def _lower(
    editor: Editor,
    node: ir.Node,
    rule: Callable[[ir.Node, list[Shape]], Keys | None],
    limit: int,
) -> None:
    """Replaces the operator with Reshape - operator on merged axes - Reshape, or refuses."""
    shape = shape_of(node.outputs[0])
    tensors = _tensor_inputs(node)
    shapes = [shape_of(value) for value in tensors]
    if shape is None or any(one is None or 0 in one for one in shapes) or len(node.outputs) != 1:
        return editor.refuse(node, f"{node.op_type} above rank {limit} without a static shape")
    rank = max(len(one) for one in shapes if one is not None)
    padded = [(1,) * (rank - len(one)) + one for one in shapes if one is not None]
    if rank <= limit:
        return editor.refuse(node, f"the result of this {node.op_type} alone is above rank {limit}")
    keys = rule(node, padded)
    if keys is None:
        return editor.refuse(node, f"the axes of this {node.op_type} are not known")
    groups = _groups(keys, [max(one[axis] for one in padded) for axis in range(rank)])
    if len(groups) > limit:
        return editor.refuse(
            node, f"{node.op_type} of rank {rank} has {len(groups)} axes that do not merge"
        )
    merged = {
        value: _view(editor, node, value, _merge(one, groups))
        for value, one in zip(tensors, padded, strict=True)
    }
    inputs = [merged.get(value, value) if value is not None else None for value in node.inputs]
    attributes = {name: one.value for name, one in node.attributes.items()}
    _restate_axes(editor, node, rank, groups, inputs, attributes)
    result = editor.add(node, node.op_type, inputs, **attributes)
    editor.replace(node.outputs[0], _view(editor, node, result, shape))


def _tensor_inputs(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs that have the axes in question: no scales, axes or bounds."""
    if node.op_type in (*_REDUCTIONS, *_PER_CHANNEL, "Gather", "Slice"):
        first = node.inputs[0]
        return [first] if first is not None else []
    # A scalar broadcasts at any rank; Clip's bounds must stay scalars.
    values = [value for value in node.inputs if value is not None and shape_of(value) != ()]
    return list(dict.fromkeys(values))


def _restate_axes(
    editor: Editor,
    node: ir.Node,
    rank: int,
    groups: list[list[int]],
    inputs: list[ir.Value | None],
    attributes: dict[str, object],
) -> None:
    """Changes, in `inputs` and `attributes`, axes of the old rank to groups."""
    place = {axis: index for index, group in enumerate(groups) for axis in group}
    if node.op_type in _ALONG_AXIS:
        attributes["axis"] = place[_axis(node, rank)]
    if node.op_type == "Slice":
        cut = array_of(node.inputs[3])
        assert cut is not None
        at = [place[int(axis) % rank] for axis in cut.reshape(-1)]
        inputs[3] = editor.constant(node, np.array(at, np.int64), "axes")
    if node.op_type in _REDUCTIONS:
        axes = _reduced_axes(node, rank)
        assert axes is not None
        merged = sorted({place[axis] for axis in axes})
        inputs[1:] = [editor.constant(node, np.array(merged, np.int64), "axes")]


def _merge(shape: Shape, groups: list[list[int]]) -> Shape:
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def _view(editor: Editor, before: ir.Node, value: ir.Value, shape: Shape) -> ir.Value:
    """Returns `value` in another shape, from what it is itself a view of where it is one."""
    while (view := producer_of(value, *_VIEWS)) is not None and shape_of(view.inputs[0]):
        assert view.inputs[0] is not None
        value = view.inputs[0]
    if shape_of(value) == shape:
        return value
    array = array_of(value)
    if array is not None:
        return editor.constant(before, array.reshape(shape), "merged")
    sizes = editor.constant(before, np.array(shape, np.int64), "shape")
    return editor.add(before, "Reshape", [value, sizes])


def _join_views(editor: Editor, node: ir.Node, limit: int) -> None:
    """Replaces a view of a view of high rank with a view of its source."""
    inner, shape = producer_of(node.inputs[0], *_VIEWS), shape_of(node.outputs[0])
    if inner is None or shape is None or 0 in shape or shape_of(inner.inputs[0]) is None:
        return
    if _rank(inner) > limit or (_rank(inner) > 4 and is_operator(inner, "Reshape")):
        assert node.inputs[0] is not None
        source = _view(editor, node, node.inputs[0], shape)
        editor.replace(node.outputs[0], source)


# Transpose


def _lower_transpose(editor: Editor, node: ir.Node, limit: int) -> None:
    """Replaces a Transpose of high rank with one of merged axes, or with several."""
    shape, source = shape_of(node.outputs[0]), node.inputs[0]
    sizes = shape_of(source)
    if source is None or shape is None or sizes is None or len(sizes) <= 4 or 0 in sizes:
        return
    perm = attribute(node, "perm", list(range(len(sizes)))[::-1])
    merged_sizes, merged_perm = merge_transpose(sizes, perm, limit)
    view = producer_of(source, *_VIEWS) is not None
    if len(sizes) <= limit and not (view and len(merged_sizes) < len(sizes)):
        return
    value = source
    for step_sizes, step_perm in _steps(merged_sizes, merged_perm, limit):
        value = _view(editor, node, value, step_sizes)
        value = editor.add(node, "Transpose", [value], perm=list(step_perm))
    editor.replace(node.outputs[0], _view(editor, node, value, shape))


def merge_transpose(sizes: Shape, perm: Sequence[int], limit: int) -> tuple[Shape, Shape]:
    """Returns sizes and permutation without axes of size 1, and of at most `limit` axes if it can.

    Neighbours that stay neighbours are merged from the front on, and no more than need be: HTP
    prepares 8 x 7 x 8 x 7 x 96 in a fraction of the time that 8 x 7 x 8 x 672 takes.
    """
    groups: list[Shape] = [(axis,) for axis in perm if sizes[axis] != 1]
    kept = [axis for axis, size in enumerate(sizes) if size != 1]
    while len(groups) > limit:
        pairs = itertools.pairwise(groups)
        joined = [
            at for at, (a, b) in enumerate(pairs) if kept.index(b[0]) == kept.index(a[-1]) + 1
        ]
        if not joined:
            break
        at = min(joined, key=lambda at: groups[at][0])
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    order = sorted(groups)
    merged = tuple(math.prod(sizes[axis] for axis in group) for group in order)
    return merged, tuple(order.index(group) for group in groups)


def _steps(sizes: Shape, perm: Shape, limit: int) -> list[tuple[Shape, Shape]]:
    """Returns (sizes, permutation) of transposes within `limit` that together do `perm`.

    Each of several swaps two neighbouring blocks of axes, so its rank is 4.
    """
    if list(perm) == sorted(perm):
        return []
    if len(sizes) <= limit:
        return [(sizes, perm)]
    steps: list[tuple[Shape, Shape]] = []
    order = list(range(len(sizes)))
    for place in range(len(perm)):
        start = order.index(perm[place])
        if start == place:
            continue
        length = 1
        while order[start : start + length + 1] == list(perm[place : place + length + 1]):
            if start + length == len(order):
                break
            length += 1
        blocks = (order[:place], order[place:start], order[start : start + length])
        rest = order[start + length :]
        steps.append((_sizes_of(sizes, (*blocks, rest)), (0, 2, 1, 3)))
        order = [*blocks[0], *blocks[2], *blocks[1], *rest]
    return steps


def _sizes_of(sizes: Shape, blocks: Sequence[Sequence[int]]) -> Shape:
    return tuple(math.prod(sizes[axis] for axis in block) for block in blocks)
