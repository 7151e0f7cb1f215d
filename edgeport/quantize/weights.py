"""Grids of constants: weights, biases, masks, and the corrections that their rounding asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from edgeport.quantize.calibrate import MASK, Feeds, Statistics
from edgeport.quantize.config import BITS, IntegerType, QuantConfig
from edgeport.quantize.graph import Array, Graph, Probe, attribute
from edgeport.quantize.grids import Grid, asymmetric, at_least, symmetric
from edgeport.quantize.rounding import RoundedWeight, moments_of_layers, round_weight
from edgeport.quantize.tensors import MOVES, TensorGrids, mask_depth

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
# Of the scales of a layer's output channels, beside 16-bit data: where one is 2^15 times less than
# the greatest, as folding BatchNorm into a dead channel makes it, the HTP gives garbage for all of
# them (-1 dB beside 48, v75, QAIRT 2.51, emulated; 2^13 is right). What so small a channel loses is
# less than a step of the output, whose grid it shares with the greatest.
CHANNEL_SPREAD = 2.0**13
BIAS_STEPS = 2.0**30  # a bias is stored in 32 bits; as many again are left for the products' sum


class ConstantGrids:
    """The grids of the float constants that quantized nodes read."""

    def __init__(
        self, graph: Graph, statistics: Mapping[str, Statistics], tensors: TensorGrids
    ) -> None:
        self._graph, self._statistics, self._tensors = graph, statistics, tensors

    def __call__(
        self,
        node: onnx.NodeProto,
        index: int,
        dtype: IntegerType,
        config: QuantConfig,
        corrected: Array | None = None,
    ) -> Grid | None:
        """Returns the grid of the constant that `node` reads at `index`; None to leave it float.

        `dtype` is the type of the node's activations; `corrected` are the constant's values where
        they are not those of the graph.
        """
        values = self._graph.array(node.input[index]) if corrected is None else corrected
        for rule in config.rules:
            if (rule.op, rule.input_index) == (node.op_type, index):
                return _by_rule(values, rule.dtype, rule.symmetric)
        if index == 2 and node.op_type in (*WEIGHTED, *NORMS):
            return self._bias(node, dtype, config)
        if node.op_type == "MatMul" or (index == 1 and node.op_type in WEIGHTED):
            return self._weight(node, index, dtype, config)
        if node.op_type in MOVES and node.output[0] in self._statistics:
            return self._tensors(node.output[0], dtype)
        return self._data(node, values, dtype)

    def _weight(
        self, node: onnx.NodeProto, index: int, dtype: IntegerType, config: QuantConfig
    ) -> Grid:
        """Returns a weight's grid, with steps so large that the bias at its scale fits 32 bits."""
        values = self._graph.array(node.input[index])
        in_blocks = config.block and (node.op_type, index, values.ndim) == ("MatMul", 1, 2)
        if in_blocks and values.shape[0] % config.block == 0:
            return symmetric(values, config.weight, 0, config.block, shrink=True)
        axis = channel_axis(node, values) if config.per_channel and index == 1 else None
        grid = symmetric(values, config.weight, axis, shrink=BITS[config.weight] < 8)
        if grid.axis is not None and BITS[dtype] == 16:
            grid = at_least(grid, grid.scale.max() / CHANNEL_SPREAD)
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias not in self._graph.constants or node.input[0] not in self._statistics:
            return grid
        largest = np.abs(self._graph.array(bias).astype(np.float64)).ravel()
        if grid.axis is None or largest.size != grid.scale.size:
            largest = largest.max(initial=0.0)
        return at_least(grid, largest / (self._tensors(node.input[0], dtype).scale * BIAS_STEPS))

    def _bias(self, node: onnx.NodeProto, dtype: IntegerType, config: QuantConfig) -> Grid | None:
        """Returns int32 at the product's own scale: a bias is added to the accumulator."""
        if node.input[0] not in self._statistics or node.input[1] not in self._graph.constants:
            return None
        weight = self(node, 1, dtype, config)
        assert weight is not None
        scale = self._tensors(node.input[0], dtype).scale.astype(np.float64) * weight.scale
        scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
        axis = None if scale.ndim == 0 else 0
        return Grid("int32", scale, np.zeros(scale.shape, np.int32), axis)

    def _data(self, node: onnx.NodeProto, values: Array, dtype: IntegerType) -> Grid:
        """Returns the grid of a constant operand; a mask's minus infinity is clipped to reach."""
        finite = values[np.abs(values) <= MASK]
        low = float(finite.min(initial=0.0))
        if finite.size < values.size:
            low = min(low, -mask_depth(self._statistics.get(node.output[0]), dtype))
        return asymmetric(low, float(finite.max(initial=0.0)), dtype)


def _by_rule(values: Array, dtype: IntegerType, is_symmetric: bool) -> Grid:
    if is_symmetric:
        return symmetric(values, dtype, None)
    return asymmetric(float(values.min()), float(values.max()), dtype)


def channel_axis(node: onnx.NodeProto, values: Array) -> int | None:
    """Returns the axis of a weight's output channels, where the NPU takes a scale for each.

    onnxruntime's QNN configuration gives MatMul and Gemm one scale for the whole weight; the
    compiler takes one per output channel, and where channels differ that is 10 dB.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1:
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul" and values.ndim == 2:
        return 1
    return None


def round_weights(
    graph: Graph,
    statistics: Mapping[str, Statistics],
    probe: Probe,
    feeds: Feeds,
    configs: Iterable[QuantConfig],
) -> dict[str, tuple[RoundedWeight, ...]]:
    """Returns the weights of layers, by the layers' names, rounded by what the feeds show them.

    Each is rounded to the grid of each configuration, where these differ; not to 16 bits, of which
    the nearest is as good.
    """
    wanted = [one for one in configs if one.round_by_data and BITS[one.weight] < 16]
    if not wanted:
        return {}
    tensors = TensorGrids(graph, statistics, wanted[0].calibration)
    grids = ConstantGrids(graph, statistics, tensors)
    found = {}
    for layer, moments in moments_of_layers(graph, probe, feeds):
        if not moments.is_finite:
            continue
        values = graph.array(layer.input[1])
        rounded: list[RoundedWeight] = []
        for config in wanted:
            grid = grids(layer, 1, config.activation, config)
            if grid is not None and not any(one.fits(grid) for one in rounded):
                rounded.append(round_weight(layer, values, grid, moments))
        found[layer.name] = tuple(rounded)
    return found


def bias_of(graph: Graph, layer: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """Returns the node and the index at which it reads the constant bias of a weighted layer.

    A MatMul's is that of the Add behind it. None where the layer has no bias.
    """
    if layer.op_type in ("Conv", "Gemm") and layer.input[1] in graph.constants:
        bias = layer.input[2] if len(layer.input) > 2 else ""
        return (layer, 2) if bias in graph.constants else None
    if layer.op_type != "MatMul" or layer.input[1] not in graph.constants:
        return None
    weight, behind = graph.array(layer.input[1]), graph.only_reader(layer.output[0])
    if behind is None or behind.op_type != "Add" or weight.ndim != 2:
        return None
    index = 1 if behind.input[0] == layer.output[0] else 0
    if behind.input[index] not in graph.constants:
        return None
    shape = graph.array(behind.input[index]).shape
    return (
        (behind, index)
        if shape[-1:] == weight.shape[1:] and max(shape[:-1], default=1) == 1
        else None
    )


def mean_axes(graph: Graph) -> dict[str, int]:
    """Returns the tensors whose mean bias correction needs, with the axis of their channels."""
    return {
        layer.input[0]: 1 if layer.op_type == "Conv" else -1
        for layer in graph.nodes
        if bias_of(graph, layer) is not None
    }


def output_shift(layer: onnx.NodeProto, values: Array, rounded: Array, mean: Array) -> Array:
    """Returns the expected change of each output channel that rounding a weight brings.

    It is sum over inputs of (rounded - exact) * E[input]: what bias correction takes off (Nagel et
    al. 2019, arXiv 1906.04721, section 4.2.1, with the mean from calibration). A convolution's
    padding is counted as if it were inside the image.
    """
    change = rounded.astype(np.float64) - values
    if layer.op_type != "Conv":
        turned: Array = change.T if attribute(layer, "transB", 0) else change
        return np.asarray(mean @ turned)
    groups = attribute(layer, "group", 1)
    filters = change.reshape(groups, change.shape[0] // groups, change.shape[1], -1).sum(-1)
    shift: Array = np.einsum("goi,gi->go", filters, mean.reshape(groups, -1)).ravel()
    return shift
