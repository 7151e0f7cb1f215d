"""Replaces the parts of a LayerNorm or RMS norm with LayerNormalization or RMSNormalization.

Found are (x - mean) / sqrt(variance + epsilon), and x / sqrt(mean square + epsilon), over the last
axes, with the scale and shift after it. Over others (channels-first) the parts stay: the operator
would need a Transpose before and after it, and in w8a16 the parts are the more exact ones.

Why: eight operators become one, and in fp16 the square of a value above 255 overflows where the one
operator's own kernel does not. On Qualcomm's HTP (v75, QAIRT 2.51, fp16 / w8a16 / w8a8, dB):

    LayerNormalization            71 / 56 / 35     its parts      64 / 66 / 34
    between two Transposes        71 / 56 / 35     its parts      64 / 65 / 32
    RMSNormalization (opset 23)   69 / 80 / 33     its parts      64 / 67 / 35

The 56 dB are those of an 8-bit scale: with a scale of ones and Mul and Add after it, 82 dB.
"""

from __future__ import annotations

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
    opset,
    producer_of,
    scalar_of,
    shape_of,
)
from edgeport.types import PassResult

NAME = "fuse LayerNorm"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 4] x) => (float[2, 4] y)
<int64[1] axes = {-1}, float epsilon = {0.00001}, float[4] scale = {1.0, 2.0, 3.0, 4.0}> {
  mean = ReduceMean(x, axes)
  centred = Sub(x, mean)
  square = Mul(centred, centred)
  variance = ReduceMean(square, axes)
  shifted = Add(variance, epsilon)
  deviation = Sqrt(shifted)
  normal = Div(centred, deviation)
  y = Mul(normal, scale)
}
"""


@dataclass(frozen=True)
class Norm:
    """A normalisation of `x` over `axes`; `last` is the node that ends it."""

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    last: ir.Node


def fuse_layer_norm(model: ir.Model) -> PassResult:
    """Returns the model with one operator per norm; refuses where its opset has none."""
    editor = Editor(model)
    for node in nodes_of(model, "Div"):
        norm = _match(node)
        shape = shape_of(norm.x) if norm else None
        if norm is None or shape is None or norm.x.dtype is None:
            continue
        if norm.axes != tuple(range(len(shape) - len(norm.axes), len(shape))):
            continue
        needed = 17 if norm.centred else 23
        if opset(model) < needed:
            if norm.centred:
                editor.refuse(node, f"a LayerNorm in parts: opset {needed} has one operator for it")
            continue
        _fuse(editor, norm, shape)
    return editor.result(NAME)


def _match(node: ir.Node) -> Norm | None:
    """Returns the norm whose division this is."""
    numerator, root = node.inputs[0], producer_of(node.inputs[1], "Sqrt")
    shifted = producer_of(root.inputs[0], "Add") if root else None
    if numerator is None or shifted is None:
        return None
    scalars = [scalar_of(value) for value in shifted.inputs]
    epsilon = scalars[1] if scalars[1] is not None else scalars[0]
    mean = producer_of(shifted.inputs[0 if scalars[1] is not None else 1], "ReduceMean")
    axes = _axes(mean)
    if mean is None or axes is None or epsilon is None or epsilon < 0:
        return None
    if _squared(mean.inputs[0]) is not numerator:
        return None
    x = _centred(numerator, axes)
    return Norm(x or numerator, axes, epsilon, x is not None, node)


def _axes(node: ir.Node | None) -> tuple[int, ...] | None:
    """Returns the axes of a ReduceMean that keeps them, counted from 0 and sorted."""
    shape = shape_of(node.inputs[0]) if node else None
    if node is None or shape is None or not attribute(node, "keepdims", 1):
        return None
    given: Any = attribute(node, "axes")
    if given is None and len(node.inputs) > 1:
        given = array_of(node.inputs[1])
    if given is None:
        return None
    return tuple(sorted(int(axis) % len(shape) for axis in given)) or None


def _squared(value: ir.Value | None) -> ir.Value | None:
    """Returns what `value` is the square of."""
    if (product := producer_of(value, "Mul")) and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    power = producer_of(value, "Pow")
    return power.inputs[0] if power and scalar_of(power.inputs[1]) == 2.0 else None


def _centred(value: ir.Value, axes: tuple[int, ...]) -> ir.Value | None:
    """Returns x where `value` is x minus its mean over `axes`."""
    difference = producer_of(value, "Sub")
    mean = producer_of(difference.inputs[1], "ReduceMean") if difference else None
    if difference is None or mean is None or _axes(mean) != axes:
        return None
    return difference.inputs[0] if mean.inputs[0] is difference.inputs[0] else None


def _fuse(editor: Editor, norm: Norm, shape: tuple[int, ...]) -> None:
    sizes = tuple(shape[axis] for axis in norm.axes)
    scale, last = _constant_after(norm.last, "Mul", norm.axes, shape)
    shift = None
    if norm.centred:
        shift, last = _constant_after(last, "Add", norm.axes, shape)
    assert norm.x.dtype is not None
    kind = norm.x.dtype.numpy()
    ones = np.ones(sizes) if scale is None else scale
    inputs = [norm.x, editor.constant(last, ones.astype(kind), "scale")]
    if shift is not None:
        inputs.append(editor.constant(last, shift.astype(kind), "shift"))
    operator = "LayerNormalization" if norm.centred else "RMSNormalization"
    value = editor.add(last, operator, inputs, axis=-len(sizes), epsilon=norm.epsilon)
    editor.replace(last.outputs[0], value)


def _constant_after(
    node: ir.Node, operator: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[NDArray[Any] | None, ir.Node]:
    """Returns the constant over `axes` that alone follows, with that node; else None and `node`."""
    user = only_user(node.outputs[0])
    if user is None or not is_operator(user, operator) or shape_of(user.outputs[0]) != shape:
        return None, node
    others = [value for value in user.inputs if value is not node.outputs[0]]
    array = array_of(others[0]) if others else None
    if array is None or array.ndim > len(shape):
        return None, node
    wide = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(wide.shape) if axis not in axes):
        return None, node
    sizes = tuple(shape[axis] for axis in axes)
    narrow = wide.reshape(tuple(wide.shape[axis] for axis in axes))
    return np.broadcast_to(narrow, sizes), user
