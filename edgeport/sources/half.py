"""Writes a graph that computes in float16 as one in float32: what quantizers and passes work on.

Every float16 number is a float32 number, so the weights stay exactly what they were; sums and
products are rounded less. An NPU computes in fp16 again by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen(model: ir.Model) -> bool:
    """Replaces float16 by float32 in weights, inputs, outputs and casts; returns whether any was.

    Subgraphs and the model's own functions are part of it. A graph that only takes float16, and
    casts it, is left alone.
    """
    graphs = list(model.graphs())
    if not any(_computes_in_half(graph) for graph in graphs):
        return False
    changed = [_widen_value(value) for graph in graphs for value in graph.inputs]
    for graph in graphs:
        changed += [_widen_value(value) for value in graph.initializers.values()]
        changed += _widen_nodes(graph)
    for function in model.functions.values():
        changed += _widen_nodes(function)
    return any(changed)


def _computes_in_half(graph: ir.Graph) -> bool:
    values = [*graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    return any(value.dtype == ir.DataType.FLOAT16 for value in values)


def _widen_nodes(nodes: Iterable[ir.Node]) -> list[bool]:
    changed = []
    for node in nodes:
        changed += [_widen_value(value) for value in node.outputs]
        changed += [_widen_attribute(node, attribute) for attribute in node.attributes.values()]
    return changed


def _widen_value(value: ir.Value) -> bool:
    weight = value.const_value
    if weight is not None and weight.dtype == ir.DataType.FLOAT16:
        value.const_value = ir.tensor(weight.numpy().astype(np.float32), name=weight.name)
    elif value.dtype != ir.DataType.FLOAT16:
        return False
    value.dtype = ir.DataType.FLOAT
    return True


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> bool:
    """Widens the tensor or the element type that an attribute holds."""
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT16:
            wide = ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
            return True
    elif attribute.name in _TYPE_ATTRIBUTES and attribute.value == int(ir.DataType.FLOAT16):
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
        return True
    return False
