"""Which operators of a .tflite file LiteRT's GPU delegate takes, by the delegate's own rules.

The operators and types are in `litert_gpu.toml`; the conditions on single operators are those of
LiteRT's tflite/tools/versioning/gpu_compatibility.cc at 007226f. The model analyzer in the
ai-edge-litert wheel calls any file compatible, so it tells nothing. What the delegate leaves runs
with XNNPACK on the CPU; each way there and back costs a copy.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeport.types import NodeReport

_FACTS = Path(__file__).with_name("litert_gpu.toml")
_FIXES: Mapping[str, str] = {
    "BROADCAST_TO": "let the operator that reads it broadcast, or concatenate copies",
    "CUSTOM": "write it with LiteRT's built-in operators",
    "EMBEDDING_LOOKUP": "look the embedding up in the app, and give the model its floats",
    "GATHER_ND": "index one axis at a time (torch.index_select), or use slices",
    "TOPK_V2": "take the best in the app, from the scores",
    "ARG_MAX": "take the best in the app, from the scores",
}
_ON_CPU = "keep it next to the graph's ends, so that the rest stays in one piece, or run on the CPU"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: element type by LiteRT's name, shape, and whether it holds weights."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True)
class Operator:
    """An operator of the file with its tensors; absent inputs are left out."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def report_file(path: Path) -> list[NodeReport]:
    """Returns for each operator of the file whether the GPU delegate takes it, and why not."""
    return [_report(one) for one in read_operators(path)]


def read_operators(path: Path) -> list[Operator]:
    """Returns the operators of the file's main graph, in their order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    names = _names(schema.BuiltinOperator)
    types = _names(schema.TensorType)
    tensors = [
        _tensor(model, graph.Tensors(index), types) for index in range(graph.TensorsLength())
    ]
    return [_operator(model, graph.Operators(i), names, tensors) for i in range(_count(graph))]


@cache
def delegate_facts() -> dict[str, Any]:
    """Returns what the delegate takes, by the names in `litert_gpu.toml`, without the sources."""
    table = tomllib.loads(_FACTS.read_text(encoding="utf-8"))
    return {name: fact["values"] for name, fact in table.items()}


def why_not(operator: Operator) -> str:
    """Returns why the delegate leaves an operator to the CPU; empty where it takes it."""
    facts = delegate_facts()
    if operator.name not in facts["operators"]:
        return f"LiteRT's GPU delegate has no {operator.name}"
    tensors = (*operator.inputs, *operator.outputs)
    if (rank := max((len(one.shape) for one in tensors), default=0)) > facts["most_axes"]:
        return f"a tensor of rank {rank}: the GPU delegate takes {facts['most_axes']} at most"
    sides = (operator.inputs, "more_input_types"), (operator.outputs, "more_output_types")
    for side, more in sides:
        allowed = (*facts["types"], *facts[more].get(operator.name, ()))
        for one in side:
            if not one.constant and one.dtype not in allowed:
                return f"the GPU delegate takes no {one.dtype} in {operator.name}"
    condition = _CONDITIONS.get(operator.name)
    return condition(operator) if condition else ""


def _report(operator: Operator) -> NodeReport:
    # The converter joins the names of what it merged with ";".
    merged = [part for part in operator.outputs[0].name.split(";") if part]
    reason = why_not(operator)
    if not reason:
        return NodeReport(merged[0], operator.name, "gpu")
    fix = _FIXES.get(operator.name, _ON_CPU)
    if "rank" in reason:
        fix = f"reshape to {delegate_facts()['most_axes']} axes before it"
    return NodeReport(merged[0], operator.name, "cpu", reason, fix)


# What a single operator is asked


def _slice(operator: Operator) -> str:
    rank = len(operator.inputs[0].shape)
    return "" if rank in (3, 4) else f"it slices rank {rank}, the GPU delegate ranks 3 and 4"


def _pad(operator: Operator) -> str:
    rows = operator.inputs[1].shape[0]
    return "" if rows in (3, 4) else f"it pads rank {rows}, the GPU delegate ranks 3 and 4"


def _gather(operator: Operator) -> str:
    indices = operator.inputs[1]
    if len(indices.shape) != 1 or indices.dtype != "INT32":
        return "the GPU delegate gathers by a line of INT32 indices alone"
    return ""


def _reduction(operator: Operator) -> str:
    axes = operator.inputs[1]
    if axes.constant and axes.dtype == "INT32":
        return ""
    return "the GPU delegate reduces along constant INT32 axes alone"


def _select(operator: Operator) -> str:
    wanted = operator.outputs[0].shape
    for one in operator.inputs[1:]:
        if one.shape not in (wanted, (), (1,)):
            return "the GPU delegate selects between tensors of the output's shape, or scalars"
    return ""


def _cast(operator: Operator) -> str:
    pair = operator.inputs[0].dtype, operator.outputs[0].dtype
    floats = ("FLOAT32", "FLOAT16")
    numbers = ("FLOAT32", "INT32")
    taken = (
        (pair[0] == "BOOL" and pair[1] in floats)
        or (pair[0] in floats and pair[1] == "BOOL")
        or (pair[0] in numbers and pair[1] in numbers)
    )
    return "" if taken else f"the GPU delegate does not cast {pair[0]} to {pair[1]}"


def _dequantize(operator: Operator) -> str:
    return "the GPU delegate knows no INT16" if operator.inputs[0].dtype == "INT16" else ""


_CONDITIONS: Mapping[str, Callable[[Operator], str]] = {
    "CAST": _cast,
    "DEQUANTIZE": _dequantize,
    "GATHER": _gather,
    "MEAN": _reduction,
    "MIRROR_PAD": _pad,
    "PAD": _pad,
    "PADV2": _pad,
    "REDUCE_MAX": _reduction,
    "REDUCE_MIN": _reduction,
    "REDUCE_PROD": _reduction,
    "SELECT": _select,
    "SELECT_V2": _select,
    "SLICE": _slice,
    "STRIDED_SLICE": _slice,
    "SUM": _reduction,
}


# Reading the flatbuffer


def _names(enumeration: Any) -> dict[int, str]:
    """Returns the names of a schema's enumeration by value."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _count(graph: Any) -> int:
    return int(graph.OperatorsLength())


def _tensor(model: Any, tensor: Any, types: Mapping[int, str]) -> Tensor:
    buffer = model.Buffers(tensor.Buffer())
    shape = tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))
    constant = buffer.DataLength() > 0 or buffer.Offset() > 1
    return Tensor(tensor.Name().decode(), types[tensor.Type()], shape, constant)


def _operator(
    model: Any, operator: Any, names: Mapping[int, str], tensors: list[Tensor]
) -> Operator:
    code = model.OperatorCodes(operator.OpcodeIndex())
    # Files of the first schema have the operator in an 8-bit field.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
    outputs = [operator.Outputs(i) for i in range(operator.OutputsLength())]
    return Operator(
        names[builtin],
        tuple(tensors[index] for index in inputs if index >= 0),
        tuple(tensors[index] for index in outputs if index >= 0),
    )
