"""Tells whether a graph is quantized already, and to which integers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

_OPERATORS = re.compile(
    r"QuantizeLinear|DequantizeLinear|DynamicQuantizeLinear|QLinear\w+|QGemm|\w+Integer"
    r"|\w*NBits|QAttention"
)


def own_precision(model: ir.Model) -> str:
    """Returns what a quantized graph computes in, such as "w8a16"; "" for a float one.

    The bits are those of the widest weights and activations that a DequantizeLinear gives or a
    QuantizeLinear makes. Without such pairs, but with integer operators, it is "integer".
    """
    nodes = [node for graph in model.graphs() for node in graph]
    if not any(_OPERATORS.fullmatch(node.op_type) for node in nodes):
        return ""
    weights, activations = set(_weight_bits(nodes)), set(_activation_bits(nodes))
    if not weights and not activations:
        return "integer"
    return (f"w{max(weights)}" if weights else "w32") + (
        f"a{max(activations)}" if activations else "a32"
    )


def _weight_bits(nodes: list[ir.Node]) -> Iterator[int]:
    """Yields the bits of each constant that is stored in integers; biases have 32 and count not."""
    stored = [node.inputs[0] for node in nodes if node.op_type == "DequantizeLinear"]
    for value in stored:
        if value is not None and value.const_value is not None and _bits(value.dtype) <= 16:
            yield _bits(value.dtype)


def _activation_bits(nodes: list[ir.Node]) -> Iterator[int]:
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2] if len(node.inputs) > 2 else None
            yield _bits(zero.dtype if zero is not None else node.outputs[0].dtype)


def _bits(dtype: ir.DataType | None) -> int:
    """Returns the bits of an element type; 8 where none is stated, as QuantizeLinear has it."""
    return 8 if dtype is None else int(dtype.itemsize * 8)
