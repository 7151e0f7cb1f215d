"""Replaces the calls of the model's own functions with their bodies: other passes see no calls."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgeport.types import PassResult

NAME = "inline functions"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
example (float[2, 3] x) => (float[2, 3] y) { y = local.Twice(x) }
<domain: "local", opset_import: ["" : 21]>
Twice (a) => (b) { b = Add(a, a) }
"""


def inline_functions(model: ir.Model) -> PassResult:
    """Returns the model without local functions; counts the calls that were replaced."""
    calls = [node for graph in model.graphs() for node in graph if _is_call(model, node)]
    if not model.functions:
        return PassResult(NAME, model, 0)
    common.InlinePass()(model)
    model.functions.clear()  # none is called now
    return PassResult(NAME, model, len(calls))


def _is_call(model: ir.Model, node: ir.Node) -> bool:
    return node.op_identifier() in model.functions
