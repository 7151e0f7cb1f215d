"""Replaces the operators of an older opset with those of opset 21, by onnx's own converter.

Why: LayerNormalization is one operator from opset 17 on, Gelu from 20, HardSwish from 14, and the
passes that fuse their parts can only write what the opset has. A BERT exported at opset 11 or 13
otherwise keeps its Erf, which Qualcomm's HTP leaves on the CPU.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeport.capture import OPSET
from edgeport.passes.graph import opset
from edgeport.types import PassResult

NAME = "raise the opset"
EXAMPLE = """
<ir_version: 7, opset_import: ["" : 13]>
example (float[2, 3] x) => (float[2] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }
"""
_SMALL = 1024  # elements: what the converter reads the values of is never larger


def raise_opset(model: ir.Model) -> PassResult:
    """Returns the model at opset 21; refuses branches and loops, and what onnx cannot convert."""
    version = opset(model)
    if version >= OPSET:
        return PassResult(NAME, model, 0)
    if model.functions or len(list(model.graphs())) > 1:
        return _refused(model, "it has functions, branches or loops, which onnx does not convert")
    kept = _detach_weights(model)
    proto = ir.to_proto(model)
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET)
    except RuntimeError as error:  # the converter's own, for an operator that it cannot raise
        _attach_weights(model, kept)
        line = next(iter(str(error).splitlines()), "")
        return _refused(model, f"onnx does not convert it to opset {OPSET}: {line}")
    result = ir.from_proto(converted)
    result.ir_version = max(result.ir_version or 0, 10)  # the first of opset 21
    _attach_weights(result, kept)
    return PassResult(NAME, result, 1)


def _refused(model: ir.Model, why: str) -> PassResult:
    return PassResult(NAME, model, 0, (f"opset {opset(model)}: {why}",))


def _detach_weights(model: ir.Model) -> dict[str, ir.Value]:
    """Makes inputs of the large initializers, so that the model fits in a message; returns them."""
    graph = model.graph
    kept = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _SMALL or value.is_graph_input():
            continue
        del graph.initializers[name]
        graph.inputs.append(value)
        kept[name] = value
    return kept


def _attach_weights(model: ir.Model, kept: dict[str, ir.Value]) -> None:
    """Makes initializers of those inputs again."""
    for value in list(model.graph.inputs):
        if value.name in kept:
            model.graph.inputs.remove(value)
            value.const_value = kept[value.name].const_value
            model.graph.register_initializer(value)
