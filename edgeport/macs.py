"""Multiply-accumulates of one ONNX node, from static shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import helper

Shape = tuple[int, ...]
Shapes = Sequence[Shape]


def node_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Returns the multiply-accumulates of `node`; 0 for an operator that is not one of products.

    A bias, an elementwise product and a reduction count 0, as is usual when models are compared.
    `shapes` holds the static shapes of tensors by name; a node with one that is not there counts 0.
    """
    count = _COUNTS.get(node.op_type)
    names = [name for name in (*node.input, node.output[0]) if name]
    if count is None or not all(name in shapes for name in names):
        return 0
    inputs = [shapes[name] if name else () for name in node.input]
    return count(node, inputs, shapes[node.output[0]])


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _convolution(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    """Weight [out, in / group, kernel...]: each output takes one filter."""
    weight = inputs[3 if node.op_type == "QLinearConv" else 1]
    return math.prod(output) * math.prod(weight[1:])


def _transposed(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    """Weight [in, out / group, kernel...]: each input is multiplied with one filter."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matmul(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    return math.prod(output) * inputs[0][-1]


def _gemm(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    inner = inputs[0][0 if _attributes(node).get("transA") else 1]
    return math.prod(output) * inner


def _einsum(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    """The product of all labels' sizes, once per product of two operands."""
    equation = _attributes(node)["equation"]
    assert isinstance(equation, bytes)
    terms = equation.decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs):
        for label, size in zip(_labels(term, len(shape)), shape):
            sizes[label] = max(sizes.get(label, 1), size)  # 1 broadcasts against any size
    return math.prod(sizes.values()) * (len(terms) - 1)


def _labels(term: str, rank: int) -> list[str]:
    """Returns one label an axis; those of an ellipsis are counted from the right."""
    if "..." not in term:
        return list(term)
    left, _, right = term.partition("...")
    hidden = rank - len(left) - len(right)
    return [*left, *(f"...{index}" for index in range(hidden, 0, -1)), *right]


def _attention(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    """Queries times keys, then weights times values; [batch, heads, length, size] or rank 3."""
    query, key, value = inputs[:3]
    past = inputs[4][2] if len(inputs) > 4 and inputs[4] else 0
    length = key[-2] + past
    if len(query) == 4:
        batch, heads, queries, width = query
        return batch * heads * queries * length * (width + value[3])
    settings = _attributes(node)
    own, shared = settings["q_num_heads"], settings["kv_num_heads"]
    assert isinstance(own, int) and isinstance(shared, int)
    batch, queries, wide = query
    return batch * queries * length * (wide + value[2] // shared * own)


def _recurrent(node: onnx.NodeProto, inputs: Shapes, output: Shape) -> int:
    """Input [steps, batch, size] times both weights [directions, gates x hidden, ...] a step."""
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


_COUNTS: dict[str, Callable[[onnx.NodeProto, Shapes, Shape], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
