"""Folds what is constant into initializers, and removes what nothing uses."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from edgeport.capture import quiet
from edgeport.passes.graph import nodes_of
from edgeport.types import PassResult

NAME = "fold constants"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) {
  two = Constant <value_float: float = 2.0> ()
  four = Mul(two, two)
  first = Add(x, four)
  again = Add(x, four)
  unused = Relu(x)
  y = Mul(first, again)
}
"""


def fold_constants(model: ir.Model) -> PassResult:
    """Returns the model with constant subgraphs, duplicate and unused nodes removed.

    The count is the number of nodes that went, and at least 1 where any changed. Where onnxscript's
    folding raises (it does on a SplitToSequence of unknown sizes) nothing is folded, and a sentence
    says so.
    """
    before, operators = count_nodes(model), _operators(model)
    refused: tuple[str, ...] = ()
    folded = model.clone()
    try:
        with quiet():  # it warns of every node that it cannot compute
            optimizer.fold_constants(folded)
        model = folded
    except RuntimeError as error:
        refused = (f"went on without folding: {str(error).splitlines()[0]}",)
    common.LiftConstantsToInitializersPass()(model)
    _remove_identities(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    if _operators(model) == operators:
        return PassResult(NAME, model, 0, refused)
    return PassResult(NAME, model, max(1, before - count_nodes(model)), refused)


def count_nodes(model: ir.Model) -> int:
    """Returns the number of nodes in the main graph, its subgraphs and functions."""
    return sum(1 for graph in model.graphs() for _ in graph)


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for graph in model.graphs() for node in graph]


def _remove_identities(model: ir.Model) -> None:
    """Removes each Identity, but one that makes an output of what is an output or input already.

    onnx-ir's own pass removes those too: a Scan whose body gives one tensor under both its outputs
    then computes something else in onnxruntime.
    """
    for node in nodes_of(model, "Identity"):
        source, copy = node.inputs[0], node.outputs[0]
        assert source is not None and node.graph is not None
        if copy.is_graph_output():
            maker = source.producer()
            if maker is None or maker.graph is not node.graph or source.is_graph_output():
                continue
            source.name, copy.name = copy.name, f"{copy.name}_copy"
        if source.shape is None:
            source.shape, source.type = copy.shape, copy.type or source.type
        copy.replace_all_uses_with(source, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)
