"""ONNX operators that compute, in torch: elementwise, products, reductions, normalisations.

Each function takes a Node and returns its Operation (`edgeport.runtimes.onnx_module`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeport.runtimes.onnx_module import Node, Operation, torch_dtype

# Elementwise


def _plain(function: Operation) -> Callable[[Node], Operation]:
    return lambda node: function


def _fold(function: Operation) -> Callable[[Node], Operation]:
    """Returns the translation of an operator that takes any number of tensors."""
    return lambda node: lambda *tensors: reduce(function, tensors)


def _divide(node: Node) -> Operation:
    def divide(x: Tensor, y: Tensor) -> Tensor:
        return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")

    return divide


def _power(node: Node) -> Operation:
    exponent = node.constant(1) if node.is_constant(1) and node.shape(1) in ((), (1,)) else None
    if exponent is None:
        return lambda x, y: torch.pow(x, y).to(x.dtype)
    value = exponent.reshape(-1)[0].item()
    plain = {2.0: lambda x, _: x * x, -0.5: lambda x, _: torch.rsqrt(x)}
    if value in plain:
        return plain[value]
    value = int(value) if value == int(value) else value
    return lambda x, _: torch.pow(x, value).to(x.dtype)


def _modulo(node: Node) -> Operation:
    return torch.fmod if node.attribute("fmod") else torch.remainder


def _cast(node: Node) -> Operation:
    node.only(saturate=1)
    dtype = torch_dtype(node.attribute("to"), node)
    return lambda x: x.to(dtype)


def _clip(node: Node) -> Operation:
    limits = [node.constant(i) if node.is_constant(i) or not node.has(i) else None for i in (1, 2)]
    if any(limit is None and node.has(i) for i, limit in enumerate(limits, 1)):
        return _clip_to_tensors
    low, high = (None if limit is None else limit.reshape(-1)[0].item() for limit in limits)
    if (low, high) == (0.0, 6.0):
        return lambda x, *_: F.relu6(x)
    return lambda x, *_: x if low is None and high is None else torch.clamp(x, low, high)


def _clip_to_tensors(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _is_infinite(node: Node) -> Operation:
    negative, positive = node.attribute("detect_negative"), node.attribute("detect_positive")
    if negative and positive:
        return torch.isinf
    if not negative and not positive:
        return lambda x: torch.zeros_like(x, dtype=torch.bool)
    infinity = math.inf if positive else -math.inf
    return lambda x: x == infinity


def _not_a_number(x: Tensor) -> Tensor:
    return x != x  # as every converter takes it


# Activations


def _gelu(node: Node) -> Operation:
    form = node.attribute("approximate")
    return lambda x: F.gelu(x, approximate=form)


def _hard_sigmoid(node: Node) -> Operation:
    alpha, beta = node.attribute("alpha"), node.attribute("beta")
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _elu(node: Node) -> Operation:
    alpha = node.attribute("alpha")
    return lambda x: F.elu(x, alpha)


def _celu(node: Node) -> Operation:
    alpha = node.attribute("alpha")
    return lambda x: F.celu(x, alpha)


def _selu(node: Node) -> Operation:
    alpha, gamma = node.attribute("alpha"), node.attribute("gamma")
    return lambda x: gamma * F.elu(x, alpha)


def _leaky_relu(node: Node) -> Operation:
    slope = node.attribute("alpha")
    return lambda x: F.leaky_relu(x, slope)


def _thresholded_relu(node: Node) -> Operation:
    alpha = node.attribute("alpha")
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _shrink(node: Node) -> Operation:
    bias, limit = node.attribute("bias"), node.attribute("lambd")

    def shrink(x: Tensor) -> Tensor:
        inner = torch.where(x > limit, x - bias, torch.zeros_like(x))
        return torch.where(x < -limit, x + bias, inner)

    return shrink


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Returns x where it is positive, else x times a slope that broadcasts from the right."""
    per_channel = x.ndim >= 2 and slope.numel() in (1, x.shape[1])
    if per_channel and slope.numel() == (
        slope.shape[1 - x.ndim] if slope.ndim >= x.ndim - 1 else 1
    ):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Callable[[Node], Operation]:
    def translate(node: Node) -> Operation:
        axis = node.attribute("axis")
        return lambda x: function(x, axis)

    return translate


# Products


def _matmul(node: Node) -> Operation:
    if (shape := node.shape(1)) is None or len(shape) != 2:
        return torch.matmul
    weight = torch.from_numpy(np.array(node.constant(1)).T.copy())
    return _linear(weight)


def _linear(weight: Tensor, bias: Tensor | None = None) -> Operation:
    return lambda x, *_: F.linear(x, weight, bias)


def _gemm(node: Node) -> Operation:
    alpha, beta = node.attribute("alpha"), node.attribute("beta")
    first, second = node.attribute("transA"), node.attribute("transB")
    if not first and (columns := _constant_columns(node, bool(second))):
        scaled = np.asarray(node.constant(1)) * np.float32(alpha)
        weight = torch.from_numpy(np.array(scaled if second else scaled.T, order="C"))
        bias = node.constant(2)
        if bias is None:
            return _linear(weight)
        row = np.broadcast_to(bias.reshape(-1), columns) * np.float32(beta)
        return _linear(weight, torch.from_numpy(row))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.mT if first else a, b if second else b.mT
        plain = alpha == 1 and (c is None or (beta == 1 and c.ndim == 1 and len(c) == len(b)))
        if plain:
            return F.linear(a, b, c)
        product = F.linear(a, b) if alpha == 1 else alpha * F.linear(a, b)
        return product if c is None else product + (c if beta == 1 else beta * c)

    return gemm


def _constant_columns(node: Node, transposed: bool) -> int:
    """Returns how many columns a Gemm gives whose weight and row of biases are constant; else 0.

    XNNPACK takes a linear layer only where its weight lies ready, not turned while it runs.
    """
    weight, bias = node.shape(1), node.shape(2)
    if weight is None or (bias is None and node.has(2)):
        return 0
    columns = weight[0] if transposed else weight[1]
    is_row = bias is None or (math.prod(bias) in (1, columns) and math.prod(bias[:-1]) == 1)
    return columns if is_row and node.constants[node.proto.input[1]].dtype == np.float32 else 0


def _einsum(node: Node) -> Operation:
    equation = node.attribute("equation")
    return lambda *tensors: torch.einsum(equation, *tensors)


# Reductions


def _reduction(
    function: Callable[[Tensor, list[int], bool], Tensor],
) -> Callable[[Node], Operation]:
    def translate(node: Node) -> Operation:
        axes, keep = node.integers(1), bool(node.attribute("keepdims"))
        unless_empty = node.attribute("noop_with_empty_axes")
        if not axes and unless_empty:
            return lambda x, *_: x

        def reduction(x: Tensor, *_: None) -> Tensor:
            return function(x, axes or list(range(x.ndim)), keep)

        return reduction

    return translate


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _index_of(function: Operation) -> Callable[[Node], Operation]:
    def translate(node: Node) -> Operation:
        node.only(select_last_index=0)
        axis, keep = node.attribute("axis"), bool(node.attribute("keepdims"))
        return lambda x: function(x, axis, keep)

    return translate


def _top(node: Node) -> Operation:
    axis, largest = node.attribute("axis"), bool(node.attribute("largest"))
    ordered, counts = bool(node.attribute("sorted")), node.integers(1)
    assert counts is not None
    return lambda x, _: tuple(torch.topk(x, counts[0], axis, largest, ordered))


def _cumulative_sum(node: Node) -> Operation:
    axes, backwards = node.integers(1), node.attribute("reverse")
    exclusive = node.attribute("exclusive")
    assert axes is not None
    axis = axes[0]

    def cumulate(x: Tensor, _: None) -> Tensor:
        forwards = torch.flip(x, [axis]) if backwards else x
        total = torch.cumsum(forwards, axis, dtype=x.dtype)
        total = total - forwards if exclusive else total
        return torch.flip(total, [axis]) if backwards else total

    return cumulate


# Normalisations


def _layer_norm(node: Node) -> Operation:
    axis, epsilon = node.attribute("axis"), node.attribute("epsilon")
    node.only(stash_type=1)
    if node.outputs > 1:
        raise node.refusal("its mean and deviation are not translated as outputs")

    def normalize(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        normal = F.layer_norm(x, shape, None, None, epsilon) * scale
        return normal if bias is None else normal + bias

    return normalize


def _group_norm(node: Node) -> Operation:
    if node.opset < 21:
        raise node.refusal("before opset 21 its scale is one per group")
    node.only(stash_type=1)
    groups, epsilon = node.attribute("num_groups"), node.attribute("epsilon")
    return lambda x, scale, bias: F.group_norm(x, groups, scale, bias, epsilon)


def _instance_norm(node: Node) -> Operation:
    epsilon = node.attribute("epsilon")
    return lambda x, scale, bias: F.group_norm(x, x.shape[1], scale, bias, epsilon)


def _batch_norm(node: Node) -> Operation:
    node.only(training_mode=0)
    node.attribute("momentum")  # of training
    epsilon = node.attribute("epsilon")

    def normalize(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)

    return normalize


def _lp_norm(node: Node) -> Operation:
    axis, order = node.attribute("axis"), node.attribute("p")

    def normalize(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return normalize


def _local_response(node: Node) -> Operation:
    size, alpha = node.attribute("size"), node.attribute("alpha")
    beta, bias = node.attribute("beta"), node.attribute("bias")
    if size % 2 == 0:
        raise node.refusal("a window of even size lies otherwise in torch")
    return lambda x: F.local_response_norm(x, size, alpha, beta, bias)


_SAME_NAME = (
    *("Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh"),
    *("Erf", "Exp", "Floor", "Log", "Mul", "Neg", "Reciprocal", "Round", "Sigmoid", "Sign", "Sin"),
    *("Sinh", "Sqrt", "Sub", "Tan", "Tanh", "Where"),
)
_OWN_NAME: Mapping[str, Operation] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "IsNaN": _not_a_number,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mish": F.mish,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": _prelu,
    "Relu": F.relu,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Xor": torch.logical_xor,
}

MATH: Mapping[str, Callable[[Node], Operation]] = {
    **{name: _plain(getattr(torch, name.lower())) for name in _SAME_NAME},
    **{name: _plain(function) for name, function in _OWN_NAME.items()},
    "ArgMax": _index_of(torch.argmax),
    "ArgMin": _index_of(torch.argmin),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Celu": _celu,
    "Clip": _clip,
    "CumSum": _cumulative_sum,
    "Div": _divide,
    "Einsum": _einsum,
    "Elu": _elu,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "InstanceNormalization": _instance_norm,
    "IsInf": _is_infinite,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax(F.log_softmax),
    "LpNormalization": _lp_norm,
    "MatMul": _matmul,
    "Max": _fold(torch.maximum),
    "Mean": lambda node: lambda *tensors: reduce(torch.add, tensors) / len(tensors),
    "Min": _fold(torch.minimum),
    "Mod": _modulo,
    "Pow": _power,
    "ReduceL1": _reduction(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep))),
    "ReduceLogSum": _reduction(lambda x, axes, keep: torch.log(torch.sum(x, axes, keep))),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "Selu": _selu,
    "Shrink": _shrink,
    "Softmax": _softmax(F.softmax),
    "Sum": _fold(torch.add),
    "ThresholdedRelu": _thresholded_relu,
    "TopK": _top,
}
