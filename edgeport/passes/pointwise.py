"""Recognises a function of one tensor by its values, however its operators are arranged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import Editor, attribute, is_operator, nodes_of, opset, scalar_of

Points = NDArray[np.float64]
_DEPTH = 8  # operators between the characteristic one and either end
_TOLERANCE = 4e-6  # relative, per point: float32 constants stay below 1e-6, other functions above

_erf = np.vectorize(math.erf, otypes=[np.float64])
_OPERATORS: Mapping[str, Callable[..., Points]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Tanh": np.tanh,
    "Erf": _erf,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Min": np.minimum,
    "Max": np.maximum,
    "Relu": lambda x: np.maximum(x, 0.0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Identity": lambda x: x,
}


@dataclass(frozen=True)
class Function:
    """An operator of one tensor: the values it has, and the operators that betray it.

    `since` is the opset that has it, `hearts` are operators of which each way to write it has one.
    """

    operator: str
    since: int
    hearts: tuple[str, ...]
    values: Callable[[Points], Points]
    attributes: tuple[tuple[str, Any], ...] = ()


def fuse_functions(editor: Editor, functions: tuple[Function, ...]) -> None:
    """Replaces each chain of pointwise operators that computes one of `functions` with it."""
    version = opset(editor.model)
    for function in functions:
        if function.since > version:
            continue
        for heart in nodes_of(editor.model, *function.hearts):
            if (ends := _match(heart, function)) is not None:
                x, y = ends
                producer = y.producer()
                assert producer is not None
                made = editor.add(producer, function.operator, [x], **dict(function.attributes))
                editor.replace(y, made)


def _match(heart: ir.Node, function: Function) -> tuple[ir.Value, ir.Value] | None:
    """Returns the input and output of the function around `heart`, the outermost that there is."""
    points = np.linspace(-9.0, 9.0, 181)
    wanted = function.values(points)
    inputs = list(_below(heart))
    for y in reversed(list(_above(heart))):
        for x in inputs:
            if is_operator(y.producer(), function.operator):
                continue
            actual = _evaluate(y, {x: points}, 2 * _DEPTH)
            if actual is not None and _equal(wanted, actual):
                return x, y
    return None


def _equal(wanted: Points, actual: Points) -> bool:
    if actual.shape != wanted.shape or not np.isfinite(actual).all():
        return False
    return bool((np.abs(actual - wanted) <= _TOLERANCE * np.maximum(np.abs(wanted), 1.0)).all())


def _below(heart: ir.Node) -> Iterator[ir.Value]:
    """Yields what feeds `heart` through pointwise operators, nearest first."""
    level = [value for value in heart.inputs[:1] if value is not None]
    for _ in range(_DEPTH):
        for value in level:
            if scalar_of(value) is None:
                yield value
        makers = [value.producer() for value in level]
        level = [
            value
            for maker in makers
            if maker is not None and _is_pointwise(maker)
            for value in maker.inputs
            if value is not None
        ]


def _above(heart: ir.Node) -> Iterator[ir.Value]:
    """Yields what `heart` feeds through pointwise operators alone, nearest first."""
    value = heart.outputs[0]
    for _ in range(_DEPTH):
        yield value
        users = {use.node for use in value.uses()}
        if len(users) != 1 or value.is_graph_output():
            return
        user = users.pop()
        if not _is_pointwise(user) or user.graph is not heart.graph:
            return
        value = user.outputs[0]


def _is_pointwise(node: ir.Node) -> bool:
    return is_operator(node, *_OPERATORS, "Clip", "HardSigmoid")


def _evaluate(value: ir.Value, known: dict[ir.Value, Points], depth: int) -> Points | None:
    """Returns `value` as a function of the known one; None where it depends on another tensor."""
    if value in known:
        return known[value]
    if (number := scalar_of(value)) is not None:
        return np.float64(number) * np.ones(())
    node = value.producer()
    if node is None or depth == 0 or not _is_pointwise(node):
        return None
    arguments = [_evaluate(one, known, depth - 1) for one in node.inputs if one is not None]
    present = [argument for argument in arguments if argument is not None]
    if len(present) != len(arguments):
        return None
    with np.errstate(all="ignore"):
        known[value] = _apply(node, present)
    return known[value]


def _apply(node: ir.Node, arguments: list[Points]) -> Points:
    if node.op_type == "HardSigmoid":
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        return np.asarray(np.clip(alpha * arguments[0] + beta, 0.0, 1.0))
    if node.op_type == "Clip":
        return _clip(node, arguments)
    return np.asarray(_OPERATORS[node.op_type](*arguments))


def _clip(node: ir.Node, arguments: list[Points]) -> Points:
    low: Any = attribute(node, "min", -np.inf)  # attributes before opset 11, inputs since
    high: Any = attribute(node, "max", np.inf)
    bounds = iter(arguments[1:])
    given = [value is not None for value in node.inputs[1:3]]
    if given[:1] == [True]:
        low = next(bounds)
    if given[1:2] == [True]:
        high = next(bounds)
    return np.asarray(np.clip(arguments[0], low, high))
