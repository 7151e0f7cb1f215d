"""Folds BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

Also where Reshape, Transpose, Squeeze, Unsqueeze or the Add of a bias lie between them, as in
networks whose Linear layers have a BatchNormalization over flattened tokens. Scale and bias are
those of the operator's definition: y = (x - mean) * scale / sqrt(variance + epsilon) + bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    is_operator,
    nodes_of,
    only_user,
    shape_of,
)
from edgeport.types import PassResult

NAME = "fold BatchNormalization"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 3, 2] x) => (float[3, 2] y)
<float[2, 2] weight = {1.0, 2.0, 3.0, 4.0}, float[2] scale = {1.0, 2.0}, float[2] bias = {0.1, 0.2},
 float[2] mean = {0.5, -0.5}, float[2] variance = {1.0, 4.0}, int64[2] rows = {3, 2}> {
  product = MatMul(x, weight)
  flat = Reshape(product, rows)
  y = BatchNormalization(flat, scale, bias, mean, variance)
}
"""
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Flatten")
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """The linear node before a BatchNormalization, and the Add of its bias, if it has one."""

    node: ir.Node
    bias: ir.Node | None


def fold_batch_norm(model: ir.Model) -> PassResult:
    """Returns the model without each BatchNormalization that a linear operator can take in."""
    editor = Editor(model)
    for node in nodes_of(model, "BatchNormalization"):
        affine = affine_of(node)
        linear = affine and _linear_before(node)
        if not affine or not linear:
            continue
        if _scale_in(editor, linear, *affine):
            assert node.inputs[0] is not None
            editor.replace(node.outputs[0], node.inputs[0])
    return editor.result(NAME)


def affine_of(node: ir.Node) -> tuple[Vector, Vector] | None:
    """Returns the multiplier and the summand per channel, where they are constant."""
    arrays = [array_of(value) for value in node.inputs[1:5]]
    if len(node.inputs) < 5 or any(array is None for array in arrays):
        return None
    if attribute(node, "training_mode", 0) or len(node.outputs) != 1:
        return None
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    multiplier = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return multiplier, bias - mean * multiplier


def _linear_before(node: ir.Node) -> Linear | None:
    """Returns the linear operator whose output channel is this node's, with only moves between."""
    value, axis, bias = node.inputs[0], 1, None
    while value is not None and only_user(value) is not None:
        shape, maker = shape_of(value), value.producer()
        if shape is None or maker is None or maker.domain not in ("", "ai.onnx"):
            return None
        if maker.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            last = axis == len(shape) - 1
            right = axis == 1 if maker.op_type.startswith("Conv") else last
            return Linear(maker, bias) if right else None
        if maker.op_type == "Add" and bias is None and axis == len(shape) - 1:
            bias, value = maker, _biased(maker, shape[axis])
            continue
        value = maker.inputs[0]
        moved = _axis_before(maker, axis, shape_of(value), shape)
        if moved is None:
            return None
        axis = moved
    return None


def _biased(add: ir.Node, channels: int) -> ir.Value | None:
    """Returns what a vector of one constant per channel is added to."""
    for value, other in (add.inputs, reversed(add.inputs)):
        array = array_of(other)
        if array is not None and array.size == channels == array.shape[-1]:
            return value
    return None


def _axis_before(
    node: ir.Node, axis: int, before: tuple[int, ...] | None, after: tuple[int, ...]
) -> int | None:
    """Returns where the axis was before a node that moves elements only, or None."""
    if not is_operator(node, *_MOVES) or before is None:
        return None
    if node.op_type == "Transpose":
        return int(attribute(node, "perm", tuple(reversed(range(len(after)))))[axis])
    outer = math.prod(after[:axis])
    for candidate, size in enumerate(before):
        if size == after[axis] and math.prod(before[:candidate]) == outer:
            return candidate
    return None


def _scale_in(editor: Editor, linear: Linear, multiplier: Vector, summand: Vector) -> bool:
    """Replaces the linear operator with one that has the scale and bias in it."""
    node = linear.node
    weight = array_of(node.inputs[1])
    if weight is None:
        return False
    channels = len(multiplier)
    scaled = _scaled_weight(node, weight, multiplier)
    if scaled is None:
        return False
    has_bias = node.op_type != "MatMul"
    inner = _inner_bias(node, channels)
    if inner is None:
        return False
    total = inner * multiplier + (0.0 if linear.bias else summand)
    inputs = [node.inputs[0], editor.constant(node, scaled.astype(weight.dtype), "scaled")]
    attributes: dict[str, Any] = {key: one.value for key, one in node.attributes.items()}
    if node.op_type == "Gemm":
        attributes["beta"] = 1.0
    if has_bias:
        inputs.append(editor.constant(node, total.astype(weight.dtype), "shifted"))
    new = editor.add(node, node.op_type, inputs, **attributes)
    if not has_bias and not linear.bias:
        vector = editor.constant(node, total.astype(weight.dtype), "shifted")
        new = editor.add(node, "Add", [new, vector])
    editor.replace(node.outputs[0], new, counted=False)
    if linear.bias:
        _shift_bias(editor, linear.bias, multiplier, summand)
    return True


def _scaled_weight(node: ir.Node, weight: NDArray[Any], multiplier: Vector) -> Vector | None:
    """Returns the weight with its output channels multiplied, in float64."""
    channels, wide = len(multiplier), weight.astype(np.float64)
    if node.op_type == "Conv":
        return wide * multiplier.reshape(-1, *(1,) * (wide.ndim - 1))
    if node.op_type == "ConvTranspose":
        groups = int(attribute(node, "group", 1))
        grouped = wide.reshape(groups, -1, *wide.shape[1:])
        factor = multiplier.reshape(groups, 1, channels // groups, *(1,) * (wide.ndim - 2))
        return (grouped * factor).reshape(wide.shape)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return wide * multiplier[:, None]
    return wide * multiplier if wide.ndim > 1 and wide.shape[-1] == channels else None


def _inner_bias(node: ir.Node, channels: int) -> Vector | None:
    """Returns the operator's own bias per channel; None where it is not constant."""
    value = node.inputs[2] if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    if value is None:
        return np.zeros(channels)
    bias = array_of(value)
    if bias is None or (bias.ndim > 1 and math.prod(bias.shape[:-1]) != 1):
        return None
    factor = float(attribute(node, "beta", 1.0))  # a Gemm's
    return np.broadcast_to(bias.astype(np.float64).reshape(-1), channels) * factor


def _shift_bias(editor: Editor, add: ir.Node, multiplier: Vector, summand: Vector) -> None:
    constants = [array_of(value) for value in add.inputs]
    index = 1 if constants[1] is not None else 0
    old = constants[index]
    assert old is not None
    vector = (old.astype(np.float64) * multiplier + summand).astype(old.dtype)
    inputs = list(add.inputs)
    inputs[index] = editor.constant(add, vector, "shifted")
    editor.replace(add.outputs[0], editor.add(add, "Add", inputs), counted=False)
