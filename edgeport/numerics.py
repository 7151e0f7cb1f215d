"""Compares one operator of each class in the emulator with the host: compiling is not working.

A class is an operator with the element types and ranks of its inputs and whatever selects another
kernel of it. Its representative is the node whose output has the largest peak in the graph, since
faults of fixed point show at wide ranges; it is cut out with its QuantizeLinear and
DequantizeLinear nodes and runs on the values that it has in the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeport.compare import max_abs, sqnr_db
from edgeport.errors import StageFailed
from edgeport.private import scratch_directory
from edgeport.runtimes.qnn_classes import Answer, run_each
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits
from edgeport.subgraph import CONVERTERS, Workbench, run_on_host, save_onnx
from edgeport.types import Device, Precision, Serialisable

FLOAT_DB = 30.0
"""fp16 keeps 11 bits, 66 dB or more for one operator; sums that cancel lose half of that at most
in the graphs seen. Below 30 dB (3 % of the signal) an operator is wrong, not rounded."""

INTEGER_DB = 20.0
"""An 8-bit output that uses a quarter of its range still has 6 bits, over 30 dB. Below 20 dB (10 %)
it is wrong, unless no value is off by more than INTEGER_STEPS steps of its own scale."""

INTEGER_STEPS = 2.0

Status = Literal["right", "wrong", "crashed", "not compared"]


@dataclass(frozen=True)
class ClassResult(Serialisable):
    """One operator class: how many nodes it has, which one was compared, and how that went."""

    op: str
    signature: str
    nodes: int
    node: str
    status: Status
    sqnr_db: float | None = None
    max_abs: float | None = None
    note: str = ""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ClassResult:
        """Returns the result that `to_dict` wrote."""
        value = table["sqnr_db"]
        return cls(**{**table, "sqnr_db": None if value is None else float(value)})


def compare_classes(
    bench: Workbench, device: Device, precision: Precision, limits: Limits, on_npu: Sequence[str]
) -> tuple[ClassResult, ...]:
    """Returns one result for each class of the operators named in `on_npu`."""
    classes = op_classes(bench, on_npu)
    chosen = {key: _widest(bench, units) for key, units in classes.items()}
    cuts = {key: _one_node(bench, unit) for key, unit in chosen.items()}
    feeds = _feeds(bench, list(cuts.values()))
    with scratch_directory() as folder:
        models, inputs = [], []
        for index, (cut, feed) in enumerate(zip(cuts.values(), feeds)):
            models.append(folder / f"{index}.onnx")
            inputs.append(folder / f"{index}.npz")
            save_onnx(cut, models[-1])
            save_samples(inputs[-1], [feed])
        answers = run_each(models, inputs, folder, device, precision, limits)
    results = []
    for (key, cut), feed, answer in zip(cuts.items(), feeds, answers, strict=True):
        node = operator_of(bench, chosen[key])
        count = len(classes[key])
        status, found, error, note = _judge(cut, feed, answer, node, precision)
        results.append(ClassResult(*key, count, node.name, status, found, error, note))
    return tuple(results)


def op_classes(bench: Workbench, names: Sequence[str]) -> dict[tuple[str, str], list[int]]:
    """Returns (operator, signature) -> the units of these nodes, in the graph's order."""
    wanted = set(names)
    classes: dict[tuple[str, str], list[int]] = {}
    for index, unit in enumerate(bench.units):
        node = operator_of(bench, unit)
        if node.name in wanted and node.op_type not in CONVERTERS:
            classes.setdefault((node.op_type, signature(bench, node)), []).append(index)
    return classes


def operator_of(bench: Workbench, unit: int | Sequence[int]) -> onnx.NodeProto:
    """Returns the operator of a unit, or its only converter."""
    indices = bench.units[unit] if isinstance(unit, int) else unit
    nodes: list[onnx.NodeProto] = [bench.nodes[i] for i in indices]
    operators = [node for node in nodes if node.op_type not in CONVERTERS]
    return (operators or nodes)[0]


def signature(bench: Workbench, node: onnx.NodeProto) -> str:
    """Returns the types and ranks of a node's inputs, and what picks another kernel of it."""
    words = []
    for name in node.input:
        if not name:
            continue
        maker = bench.nodes[bench.makers[name]] if name in bench.makers else None
        stored = maker.input[0] if maker and maker.op_type == "DequantizeLinear" else name
        kind = bench.types[stored]
        constant = " const" if stored in bench.initializers else ""
        if constant and kind.element == TensorProto.INT64:  # a shape, axes, bounds
            continue
        words.append(f"{_type_name(kind.element)}[{len(kind.shape)}]{constant}")
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type in ("Conv", "ConvTranspose"):
        words.append(_convolution_kind(bench, node, int(attributes.get("group", 1))))
    for key in ("reduction", "mode", "equation"):
        value = attributes.get(key)
        if isinstance(value, bytes):
            words.append(f"{key}={value.decode()}")
    return ", ".join(words)


def _convolution_kind(bench: Workbench, node: onnx.NodeProto, group: int) -> str:
    shape = bench.types[node.input[1]].shape
    kernel = "x".join(map(str, shape[2:]))
    if group == 1:
        return kernel
    return f"{'depthwise' if group == bench.types[node.input[0]].shape[1] else 'grouped'} {kernel}"


def _type_name(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower()


def _widest(bench: Workbench, units: Sequence[int]) -> int:
    """Returns the unit whose operator's first output has the largest peak on the feed."""
    if len(units) == 1:
        return units[0]
    names = {unit: operator_of(bench, unit).output[0] for unit in units}
    peaks = bench.peaks
    return max(units, key=lambda unit: peaks.get(names[unit], 0.0))


def _one_node(bench: Workbench, unit: int) -> onnx.ModelProto:
    """Returns the unit as a model whose outputs are real numbers: quantized ones dequantized."""
    cut = bench.cut(bench.units[unit])
    for position, output in enumerate(list(cut.graph.output)):
        maker = next(node for node in cut.graph.node if output.name in node.output)
        if maker.op_type == "QuantizeLinear":
            name = f"{output.name}_real"
            cut.graph.node.append(
                helper.make_node("DequantizeLinear", [output.name, *maker.input[1:]], [name], name)
            )
            kind = bench.types[output.name]
            info = helper.make_tensor_value_info(name, TensorProto.FLOAT, kind.shape)
            cut.graph.output[position].CopyFrom(info)
    return cut


def _feeds(bench: Workbench, cuts: Sequence[onnx.ModelProto]) -> list[dict[str, NDArray[Any]]]:
    names = [[value.name for value in cut.graph.input] for cut in cuts]
    values = bench.values({name for group in names for name in group})
    return [{name: values[name] for name in group} for group in names]


def _judge(
    cut: onnx.ModelProto,
    feed: Mapping[str, NDArray[Any]],
    answer: Answer,
    node: onnx.NodeProto,
    precision: Precision,
) -> tuple[Status, float | None, float | None, str]:
    """Returns the status, SQNR in dB, largest error, and a note."""
    if answer.outputs is None:
        crashed = answer.problem.startswith("the child process")
        return "crashed" if crashed else "not compared", None, None, answer.problem
    if node.name not in answer.on_npu:
        return "not compared", None, None, "alone it does not land on the NPU"
    try:
        references = run_on_host(cut, feed)
        pairs = list(zip(references, answer.outputs.values(), strict=True))
        found = min(sqnr_db(*pair) for pair in pairs)
        error = max(max_abs(*pair) for pair in pairs)
    except (StageFailed, ValueError) as problem:  # an infinite mask, an empty tensor
        return "not compared", None, None, str(problem)
    if precision == "float":
        return ("right" if found >= FLOAT_DB else "wrong"), found, error, ""
    step = max((output_step(cut, value.name) for value in cut.graph.output), default=0.0)
    right = found >= INTEGER_DB or error <= INTEGER_STEPS * step
    return ("right" if right else "wrong"), found, error, ""


def output_step(cut: onnx.ModelProto, output: str) -> float:
    """Returns the scale with which an output is quantized; 0 where it is not."""
    maker = next(node for node in cut.graph.node if output in node.output)
    scales = {tensor.name: tensor for tensor in cut.graph.initializer}
    if maker.op_type != "DequantizeLinear" or maker.input[1] not in scales:
        return 0.0
    return float(np.max(onnx.numpy_helper.to_array(scales[maker.input[1]])))


def worst_db(results: Sequence[ClassResult]) -> float:
    """Returns the lowest SQNR of the classes that were compared; inf where none was."""
    return min((one.sqnr_db for one in results if one.sqnr_db is not None), default=math.inf)
