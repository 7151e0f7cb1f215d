"""Puts QuantizeLinear and DequantizeLinear pairs into a graph, one precision per node.

onnxruntime's quantizer is not used: it takes one precision for the whole graph and reaches mixed
ones only by naming each tensor's conversions and readers; it raises tiny ranges to 1e-4, which sets
the activations of a net of small values to zero; it gives Sigmoid and Tanh the ranges the NPU
wants but not the Reshape behind them; it lets a bias overflow its 32 bits where a weight is small;
and it calibrates again on every call.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeport.quantize.calibrate import Statistics
from edgeport.quantize.config import CONFIGS, IntegerType, NodePrecision, QuantConfig
from edgeport.quantize.graph import Array, Feed, Graph
from edgeport.quantize.grids import Grid, to_integers, to_reals
from edgeport.quantize.rounding import RoundedWeight
from edgeport.quantize.tensors import FIXED, MOVES, TensorGrids, clip_ends
from edgeport.quantize.weights import ConstantGrids, bias_of, output_shift

# No operator of these reads or writes integers in place of floats.
_NEVER = """
    Cast LSTM GRU RNN If Loop Scan NonZero Shape Size Range ConstantOfShape IsNaN IsInf
    QuantizeLinear DequantizeLinear DynamicQuantizeLinear RandomNormal RandomUniform
    RandomNormalLike RandomUniformLike Bernoulli Multinomial
"""
NEVER = frozenset(_NEVER.split())
# Float inputs that are settings of the operator, not data.
SETTINGS = {"Clip": (1, 2), "Resize": (1, 2), "Dropout": (1,), "Upsample": (1,)}
_WIDE = (TensorProto.UINT16, TensorProto.INT16, TensorProto.INT4)


@dataclass(frozen=True)
class Calibrated:
    """A float graph with what its calibration on `count` feeds showed.

    `weights` are the rounded weights of layers, by name; one that is not there, or not on the grid
    that is asked for, is rounded to the nearest. `judged` are feeds that had no say in any of it.
    """

    graph: Graph
    statistics: Mapping[str, Statistics]
    count: int
    weights: Mapping[str, tuple[RoundedWeight, ...]] = field(default_factory=dict)
    judged: tuple[Feed, ...] = ()


def insert_pairs(
    calibrated: Calibrated, config: QuantConfig, only: frozenset[str] | None = None
) -> onnx.ModelProto:
    """Returns the quantized model; where `only` names nodes, all others stay float."""
    return _Inserter(calibrated, config, only).run()


def takes_pairs(node: onnx.NodeProto, calibrated: Calibrated) -> bool:
    """Returns whether a node computes on float32 data that can be quantized."""
    if node.op_type in NEVER or any(one.HasField("g") for one in node.attribute):
        return False
    return any(name in calibrated.statistics for name in (*node.input, *node.output))


def fused_activations(
    calibrated: Calibrated, precision: Mapping[str, NodePrecision]
) -> dict[str, str]:
    """Returns node -> the Relu or Clip behind it that is left out, as its output's grid does it.

    A grid from 0 to the greatest value saturates where a Relu, or a Clip from 0, would cut.
    """
    graph, fused = calibrated.graph, {}
    for node in graph.nodes:
        if node.op_type not in ("Relu", "Clip"):
            continue
        maker = graph.makers.get(node.input[0])
        if (
            maker is not None
            and maker.op_type not in (*MOVES, *FIXED)
            and len(maker.output) == 1
            and graph.only_reader(node.input[0]) is not None
            and precision[maker.name] == precision[node.name] != "float"
            and (node.op_type == "Relu" or clip_ends(node, graph)[0] == 0.0)
        ):
            fused[maker.name] = node.name
    return fused


class _Inserter:
    """One insertion: goes through the nodes in order and writes the new list of nodes."""

    def __init__(
        self, calibrated: Calibrated, config: QuantConfig, only: frozenset[str] | None
    ) -> None:
        self.calibrated, self.config = calibrated, config
        self.graph, self.statistics = calibrated.graph, calibrated.statistics
        own = dict(config.precisions)
        self.precision: dict[str, NodePrecision] = {
            node.name: own.get(node.name, config.precision)
            if takes_pairs(node, calibrated) and (only is None or node.name in only)
            else "float"
            for node in self.graph.nodes
        }
        self.fused = fused_activations(calibrated, self.precision)
        self.tensors = TensorGrids(self.graph, self.statistics, config.calibration)
        self.weights = ConstantGrids(self.graph, self.statistics, self.tensors)
        biases = ((layer, bias_of(self.graph, layer)) for layer in self.graph.nodes)
        # Where a bias is read -> the layer whose mean error it takes off.
        self.layers = {(at[0].name, at[1]): layer for layer, at in biases if at is not None}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        # Per tensor: the integers it is stored as, and its name before they are made.
        self.stored: dict[str, IntegerType | None] = dict.fromkeys(self.graph.inputs)
        self.raw: dict[str, str] = {}
        self.reads: dict[tuple[str, IntegerType], str] = {}

    def run(self) -> onnx.ModelProto:
        left_out = set(self.fused.values())
        for node in self.graph.nodes:
            if node.name not in left_out:
                self._emit(node)
        return self._model()

    def _activation(self, node: onnx.NodeProto) -> IntegerType | None:
        """Returns the integers that a node's data is stored as; None where it stays float."""
        precision = self.precision[node.name]
        data = node.input[0] if node.input else ""
        if node.op_type in MOVES and data in self.stored and data in self.graph.makers:
            return self.stored[data]  # it copies: what its input is stored as
        return None if precision == "float" else CONFIGS[precision].activation

    def _emit(self, node: onnx.NodeProto) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        dtype = self._activation(node)
        if dtype is None:
            for index, name in enumerate(node.input):
                new.input[index] = self._read(name, None)
        else:
            self._quantize_inputs(node, new, dtype)
        outputs = list(node.output)
        if node.name in self.fused:
            outputs = [self.graph.readers[outputs[0]][0][0].output[0]]
        for index, name in enumerate(outputs):
            holds = dtype if name in self.statistics else None
            self.stored[name] = holds
            self.raw[name] = f"{name}/float" if holds and self._seen_by_name(name) else name
            new.output[index] = self.raw[name]
        self.nodes.append(new)
        for name in outputs:
            if self._seen_by_name(name):
                self._read(name, None)

    def _seen_by_name(self, name: str) -> bool:
        """Returns whether the caller or a subgraph finds a tensor by its name."""
        return name in self.graph.outputs or name in self.graph.captured

    def _quantize_inputs(
        self, node: onnx.NodeProto, new: onnx.NodeProto, dtype: IntegerType
    ) -> None:
        config = self._config(self.precision[node.name])
        for index, name in enumerate(node.input):
            if index in SETTINGS.get(node.op_type, ()):
                continue
            if name in self.statistics:
                new.input[index] = self._read(name, self._operand(node, index, dtype))
            elif self._is_float_constant(name):
                values = self._corrected(node, index, config)
                grid = self.weights(node, index, dtype, config, values)
                if grid is not None:
                    integers = self._integers(node, index, grid, values)
                    new.input[index] = self._constant(name, integers, grid)

    def _operand(self, node: onnx.NodeProto, index: int, dtype: IntegerType) -> IntegerType:
        """Returns the integers that an operand is read as: a MatMul's second one may be signed."""
        second = (node.op_type, index, dtype) == ("MatMul", 1, "uint16")
        return "int16" if second and self.config.signed_operand else dtype

    def _config(self, precision: NodePrecision) -> QuantConfig:
        if precision in (self.config.precision, "float"):
            return self.config
        return CONFIGS[precision]

    def _is_float_constant(self, name: str) -> bool:
        tensor = self.graph.constants.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT

    def _integers(self, node: onnx.NodeProto, index: int, grid: Grid, values: Array) -> Array:
        """Returns the values that `node` reads at `index` as integers of `grid`."""
        for one in self.calibrated.weights.get(node.name, ()) if index == 1 else ():
            if one.fits(grid):
                return one.integers
        return to_integers(values, grid)

    def _corrected(self, node: onnx.NodeProto, index: int, config: QuantConfig) -> Array:
        """Returns a constant's values; a bias less the shift that its layer's rounding makes."""
        values = self.graph.array(node.input[index])
        layer = self.layers.get((node.name, index))
        if layer is None or not config.bias_correction:
            return values
        return values - self._shift(layer)

    def _shift(self, layer: onnx.NodeProto) -> Array | float:
        """Returns what rounding a layer's weight adds to its outputs on average."""
        dtype, one = self._activation(layer), self.statistics.get(layer.input[0])
        weight = layer.input[1]
        if dtype is None or one is None or one.mean is None or not self._is_float_constant(weight):
            return 0.0
        config = self._config(self.precision[layer.name])
        grid = self.weights(layer, 1, dtype, config)
        assert grid is not None
        exact = self.graph.array(weight)
        rounded = to_reals(self._integers(layer, 1, grid, exact), grid)
        return output_shift(layer, exact, rounded, one.mean)

    # Pairs

    def _read(self, name: str, dtype: IntegerType | None) -> str:
        """Returns the name under which a reader that wants `dtype` (None: float) finds a tensor."""
        stored = self.stored.get(name)
        dtype = stored if dtype is None else dtype
        raw = self.raw.get(name, name)
        if dtype is None:
            return raw
        if (name, dtype) not in self.reads:
            source = raw if stored in (None, dtype) else self._reopened(name, stored, dtype)
            whole = stored == dtype and self._seen_by_name(name)
            result = name if whole else f"{name}/{dtype}/real"
            self.reads[name, dtype] = self._pair(f"{name}/{dtype}", source, name, dtype, result)
        return self.reads[name, dtype]

    def _reopened(self, name: str, stored: IntegerType | None, dtype: IntegerType) -> str:
        """Writes another Dequantize of a stored tensor, for the conversion to `dtype` alone.

        The compiler takes Dequantize and Quantize for one conversion only where nobody else reads
        between them.
        """
        self._read(name, None)
        stem = f"{name}/{stored}"
        result = f"{stem}/to_{dtype}"
        inputs = [f"{stem}/stored", f"{stem}/scale", f"{stem}/zero_point"]
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [result], name=f"{result}/Dequantize")
        )
        return result

    def _pair(self, stem: str, source: str, name: str, dtype: IntegerType, result: str) -> str:
        """Writes Quantize and Dequantize behind `source`; returns `result`, the name they make."""
        parameters = self._parameters(stem, self.tensors(name, dtype))
        stored = f"{stem}/stored"
        for op, given, made in (
            ("QuantizeLinear", source, stored),
            ("DequantizeLinear", stored, result),
        ):
            pair = helper.make_node(op, [given, *parameters], [made], name=f"{stem}/{op}")
            self.nodes.append(pair)
        return result

    def _constant(self, name: str, integers: Array, grid: Grid) -> str:
        """Writes the rounded constant and its Dequantize; returns the name of their result."""
        # Two readers of one constant share it only where both want the same integers.
        content = (grid.scale.tobytes(), grid.zero_point.tobytes(), integers.tobytes())
        stem = f"{name}/{grid.dtype}/{zlib.crc32(b''.join(content)):08x}"
        result = f"{stem}/real"
        if f"{stem}/stored" in self.constants:
            return result
        self._add(f"{stem}/stored", integers)
        attributes: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
        if grid.block:
            attributes["block_size"] = grid.block
        inputs = [f"{stem}/stored", *self._parameters(stem, grid)]
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", inputs, [result], name=f"{stem}/Dequantize", **attributes
            )
        )
        return result

    def _parameters(self, stem: str, grid: Grid) -> list[str]:
        self._add(f"{stem}/scale", grid.scale)
        self._add(f"{stem}/zero_point", grid.zero_point)
        return [f"{stem}/scale", f"{stem}/zero_point"]

    def _add(self, name: str, values: Array) -> None:
        self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)

    def _model(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        del model.graph.node[:], model.graph.value_info[:]
        # ONNX has 16-bit and 4-bit pairs from opset 21 on; onnxruntime's domain always has them.
        wide = any(tensor.data_type in _WIDE for tensor in self.constants.values())
        domain = "com.microsoft" if wide and self.graph.opset < 21 else ""
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.domain = domain
        if all(one.domain != domain for one in model.opset_import):
            model.opset_import.append(helper.make_opsetid(domain, 1))
        model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        used |= self.graph.captured | set(self.graph.outputs)
        kept = [tensor for tensor in self.graph.proto.initializer if tensor.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.initializer.extend(self.constants.values())
        return model
