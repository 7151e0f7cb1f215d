"""Replaces Mul(a, Reciprocal(b)) with Div(a, b), and a lone Reciprocal(b) with Div(1, b).

Why: Qualcomm's HTP computes a 16-bit Reciprocal wrongly where its result exceeds 1 (1 / (x^2 + 0.1)
in w8a16, v75, QAIRT 2.51: 3 dB in the emulator, where Div gives 65 dB or more), and every rsqrt
of a normalisation is exported as Sqrt and Reciprocal.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeport.types import PassResult

NAME = "reciprocal to Div"


def reciprocal_to_div(model: ir.Model) -> PassResult:
    """Returns the model without Reciprocal; refuses a lone one whose type cannot be inferred."""
    nodes = [
        node
        for graph in model.graphs()
        for node in graph
        if node.op_type == "Reciprocal" and node.domain == ""
    ]
    if any(_dtype(node) is None for node in nodes):  # many files state no inner types
        common.ShapeInferencePass()(model)
    refused = tuple(
        f"{node.name}: the type of its input is not known" for node in nodes if not _replace(node)
    )
    return PassResult(NAME, model, len(nodes) - len(refused), refused)


def _replace(node: ir.Node) -> bool:
    """Returns whether it replaced the Reciprocal; it cannot write a 1 of an unknown type."""
    quotient, denominator = node.outputs[0], node.inputs[0]
    assert denominator is not None and node.graph is not None
    consumers = [use.node for use in quotient.uses()]
    single = len(consumers) == 1 and not quotient.is_graph_output()
    if single and consumers[0].op_type == "Mul" and consumers[0].graph is node.graph:
        product = consumers[0]
        others = [value for value in product.inputs if value is not quotient]
        if len(others) == 1:  # Mul(r, r) has none
            _substitute(product, ir.node("Div", [others[0], denominator]))
            node.graph.remove(node, safe=True)
            return True
    dtype = _dtype(node)
    if dtype is None:
        return False
    _substitute(node, ir.node("Div", [_one(node, dtype), denominator]))
    return True


def _dtype(node: ir.Node) -> ir.DataType | None:
    assert node.inputs[0] is not None
    return node.inputs[0].dtype


def _one(node: ir.Node, dtype: ir.DataType) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(np.ones((), dtype.numpy()), name=f"{node.outputs[0].name}_one")
    value = ir.Value(name=tensor.name, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def _substitute(old: ir.Node, new: ir.Node) -> None:
    """Puts `new` in the place of `old`, under the same names."""
    graph, output = old.graph, old.outputs[0]
    assert graph is not None
    new.name = old.name
    replacement = new.outputs[0]
    replacement.name, replacement.type, replacement.shape = output.name, output.type, output.shape
    graph.insert_before(old, new)
    output.replace_all_uses_with(replacement, replace_graph_outputs=True)
    graph.remove(old, safe=True)
