"""Folds what is constant into initializers, and removes what nothing uses."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from edgeport.types import PassResult

NAME = "fold constants"


def fold_constants(model: ir.Model) -> PassResult:
    """Returns the model with constant subgraphs, duplicate and unused nodes removed.

    The count is the number of nodes that went.
    """
    before = count_nodes(model)
    optimizer.fold_constants(model)
    for cleaner in (
        common.LiftConstantsToInitializersPass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        cleaner(model)
    return PassResult(NAME, model, before - count_nodes(model))


def count_nodes(model: ir.Model) -> int:
    """Returns the number of nodes in the main graph, its subgraphs and functions."""
    return sum(1 for graph in model.graphs() for _ in graph)
