"""How each operator computes on tensors whose axes are in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute

Perm = tuple[int, ...]
Build = Callable[[Editor, Mapping[int, ir.Value]], tuple[ir.Value, ...]]


@dataclass(frozen=True)
class Moved:
    """A node in another order of axes.

    `inputs` are those that come in that order, `outputs` is whether its outputs leave in it, and
    `build` makes the node from those inputs.
    """

    inputs: tuple[int, ...]
    outputs: bool
    build: Build


Rule = Callable[[ir.Node, Perm], Moved | None]

_ELEMENTWISE = frozenset(
    """Abs Neg Relu LeakyRelu PRelu Sigmoid Tanh Erf Exp Log Sqrt Reciprocal Gelu HardSwish
    HardSigmoid Elu Selu Celu Softplus Softsign Mish ThresholdedRelu Clip Cast Identity Floor
    Ceil Round Sign Sin Cos Not Add Sub Mul Div Pow Min Max Mean Sum Where Equal Greater
    GreaterOrEqual Less LessOrEqual And Or Xor""".split()  # noqa: SIM905
)
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")


def rule_of(node: ir.Node, perm: Perm) -> Moved | None:
    """Returns how `node` computes after `perm`, else None; from opset 13 on."""
    if node.domain not in ("", "ai.onnx") or any(a.is_ref() for a in node.attributes.values()):
        return None
    if node.op_type in _ELEMENTWISE:
        return _elementwise(node, perm)
    if not has_rank(node.inputs[0] if node.inputs else None, len(perm)):
        return None
    if node.op_type in _REDUCTIONS:
        return _reduction(node, perm)
    rules: Mapping[str, Rule] = {
        "Softmax": _softmax,
        "LogSoftmax": _softmax,
        "LayerNormalization": _normalization,
        "RMSNormalization": _normalization,
        "Concat": _concat,
        "Split": _split,
        "Slice": _slice,
        "Pad": _pad,
    }
    rule = rules.get(node.op_type)
    return None if rule is None else rule(node, perm)


def has_rank(value: ir.Value | None, rank: int) -> bool:
    """Returns whether `value` is known to have so many axes."""
    return value is not None and value.shape is not None and len(value.shape) == rank


def _again(
    editor: Editor, node: ir.Node, inputs: Mapping[int, ir.Value], **changed: Any
) -> tuple[ir.Value, ...]:
    """Returns the outputs of the same node with some inputs and attributes replaced."""
    attributes = {name: one.value for name, one in node.attributes.items()} | changed
    every = [inputs.get(index, value) for index, value in enumerate(node.inputs)]
    return editor.add_node(node, node.op_type, every, len(node.outputs), **attributes)


def _elementwise(node: ir.Node, perm: Perm) -> Moved | None:
    """Constants are reordered; a tensor of other rank that is none would need a Reshape."""
    rank = len(perm)
    carried, constants = [], []
    for index, value in enumerate(node.inputs):
        if value is None or has_rank(value, 0):
            continue
        if has_rank(value, rank) and array_of(value) is None:
            carried.append(index)
        elif (array := array_of(value)) is None or array.ndim > rank:
            return None
        elif array.size != 1:
            constants.append(index)
    if not carried or len(node.outputs) != 1 or not has_rank(node.outputs[0], rank):
        return None

    def build(editor: Editor, moved: Mapping[int, ir.Value]) -> tuple[ir.Value, ...]:
        turned = {index: _turned(editor, node, index, perm) for index in constants}
        return _again(editor, node, {**moved, **turned})

    return Moved(tuple(carried), True, build)


def _turned(editor: Editor, node: ir.Node, index: int, perm: Perm) -> ir.Value:
    array = array_of(node.inputs[index])
    assert array is not None
    wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return editor.constant(node, wide.transpose(perm), "turned")


def _along(node: ir.Node, perm: Perm, default: int, inputs: tuple[int, ...]) -> Moved:
    """Returns a node along one axis that its attribute `axis` names."""
    axis = perm.index(attribute(node, "axis", default) % len(perm))
    return Moved(inputs, True, lambda editor, moved: _again(editor, node, moved, axis=axis))


def _softmax(node: ir.Node, perm: Perm) -> Moved | None:
    """Along the last axis it stays: elsewhere QNN's provider puts it between two Transposes."""
    last = len(perm) - 1
    if attribute(node, "axis", -1) % len(perm) == last != perm.index(last):
        return None
    return _along(node, perm, -1, (0,))


def _normalization(node: ir.Node, perm: Perm) -> Moved | None:
    """It normalizes over the last axes, which must stay the last ones."""
    first = attribute(node, "axis", -1) % len(perm)
    if len(node.outputs) != 1 or perm[first:] != tuple(range(first, len(perm))):
        return None
    return Moved((0,), True, lambda editor, moved: _again(editor, node, moved))


def _concat(node: ir.Node, perm: Perm) -> Moved | None:
    if not all(has_rank(value, len(perm)) for value in node.inputs):
        return None
    return _along(node, perm, 0, tuple(range(len(node.inputs))))


def _split(node: ir.Node, perm: Perm) -> Moved | None:
    return _along(node, perm, 0, (0,))


def _reduction(node: ir.Node, perm: Perm) -> Moved | None:
    """Without keepdims, the axes that are left must keep their order."""
    as_input = len(node.inputs) > 1 and node.inputs[1] is not None
    given = array_of(node.inputs[1]) if as_input else attribute(node, "axes")
    if given is None or not len(given):
        return None
    reduced = {int(axis) % len(perm) for axis in given}
    keeps = bool(attribute(node, "keepdims", 1))
    left = [axis for axis in perm if axis not in reduced]
    if not keeps and left != sorted(left):
        return None
    axes = sorted(perm.index(axis) for axis in reduced)

    def build(editor: Editor, moved: Mapping[int, ir.Value]) -> tuple[ir.Value, ...]:
        if not as_input:
            return _again(editor, node, moved, axes=axes)
        return _again(editor, node, {**moved, 1: editor.constant(node, np.array(axes), "axes")})

    return Moved((0,), keeps, build)


def _slice(node: ir.Node, perm: Perm) -> Moved | None:
    """Where no axes are stated, they are the first ones."""
    starts, stated = array_of(node.inputs[1]), (*node.inputs, None)[3]
    axes = array_of(stated)
    if starts is None or (stated is not None and axes is None):
        return None
    old = range(starts.size) if axes is None else axes.reshape(-1)
    new = np.array([perm.index(int(axis) % len(perm)) for axis in old])

    def build(editor: Editor, moved: Mapping[int, ir.Value]) -> tuple[ir.Value, ...]:
        inputs = [moved[0], *node.inputs[1:3], editor.constant(node, new, "axes")]
        return editor.add_node(node, "Slice", [*inputs, *node.inputs[4:]], 1)

    return Moved((0,), True, build)


def _pad(node: ir.Node, perm: Perm) -> Moved | None:
    """Pads of some axes stay: onnxruntime 1.32 fails on them behind a Transpose."""
    pads, rank = array_of(node.inputs[1]), len(perm)
    if pads is None or pads.size != 2 * rank or any(node.inputs[3:]):
        return None
    turned = pads.reshape(2, rank)[:, perm].reshape(-1)

    def build(editor: Editor, moved: Mapping[int, ir.Value]) -> tuple[ir.Value, ...]:
        return _again(editor, node, {**moved, 1: editor.constant(node, turned, "pads")})

    return Moved((0,), True, build)
