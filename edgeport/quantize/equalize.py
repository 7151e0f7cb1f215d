"""Cross-layer equalization: neighbouring layers share their ranges out between their channels.

Where Conv or Gemm A feeds Conv or Gemm B through nothing or a ReLU, channel i of A may be divided
by any s_i > 0 if B multiplies its input i by s_i: a ReLU commutes with positive factors. With
s_i = sqrt(r_A,i / r_B,i), r being the largest absolute weight of channel i, both layers have
the same range per channel (Nagel et al. 2019, arXiv 1906.04721, equation 11), and activations
that differ by orders of magnitude between channels come together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edgeport.quantize.graph import Array, Graph, attribute

ROUNDS = 20  # over all pairs; a chain of layers settles within a few
SETTLED = 1e-3  # relative change of a factor that is no change
LARGEST = 1e4  # of a factor: a dead channel must not become infinite


@dataclass(frozen=True)
class _Pair:
    first: onnx.NodeProto
    second: onnx.NodeProto


def equalize(graph: Graph) -> int:
    """Equalizes the graph's weights in place; returns how many pairs of layers that changed.

    The outputs stay the same up to float32 rounding.
    """
    pairs = [pair for node in graph.nodes if (pair := _pair(graph, node)) is not None]
    changed = set()
    for _ in range(ROUNDS):
        largest = 0.0
        for index, pair in enumerate(pairs):
            change = _balance(graph, pair)
            if change > SETTLED:
                changed.add(index)
            largest = max(largest, change)
        if largest <= SETTLED:
            break
    return len(changed)


def _pair(graph: Graph, first: onnx.NodeProto) -> _Pair | None:
    """Returns `first` and the layer behind it, where nothing else reads what is between them."""
    if not _is_layer(graph, first):
        return None
    behind = graph.only_reader(first.output[0])
    if behind is not None and behind.op_type == "Relu":
        behind = graph.only_reader(behind.output[0])
    if behind is None or not _is_layer(graph, behind) or behind.op_type != first.op_type:
        return None
    grouped = attribute(behind, "group", 1)
    channels = _by_output(graph, first).shape[0]
    if grouped not in (1, channels):  # a depthwise layer has one filter a channel
        return None
    return _Pair(first, behind)


def _is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Returns whether a node is a Conv or Gemm whose constants nobody else reads."""
    if node.op_type not in ("Conv", "Gemm"):
        return False
    if node.op_type == "Gemm" and (
        attribute(node, "transA", 0) or attribute(node, "beta", 1.0) != 1
    ):
        return False
    constants = [name for name in node.input[1:] if name]
    return all(
        name in graph.constants
        and graph.constants[name].data_type == onnx.TensorProto.FLOAT
        and len(graph.readers[name]) == 1
        for name in constants
    ) and (len(constants) < 2 or graph.array(constants[1]).ndim == 1)


def _by_output(graph: Graph, node: onnx.NodeProto) -> Array:
    """Returns the weight as [output channel, ...]."""
    weight = graph.array(node.input[1])
    return weight.T if node.op_type == "Gemm" and not attribute(node, "transB", 0) else weight


def _by_input(graph: Graph, node: onnx.NodeProto) -> Array:
    """Returns the weight as [input channel, ...]; that of a depthwise layer has one per filter."""
    weight = _by_output(graph, node)
    return weight if attribute(node, "group", 1) > 1 else np.swapaxes(weight, 0, 1)


def _balance(graph: Graph, pair: _Pair) -> float:
    """Scales one pair; returns the largest relative change of a channel."""
    first, second = _by_output(graph, pair.first), _by_input(graph, pair.second)
    ranges = [np.abs(one).reshape(len(one), -1).max(axis=1) for one in (first, second)]
    alive = (ranges[0] > 0) & (ranges[1] > 0)
    ratio = np.divide(ranges[0], ranges[1], where=alive, out=np.ones_like(ranges[0]))
    factor = np.sqrt(ratio).clip(1 / LARGEST, LARGEST)
    _scale(graph, pair.first, 1 / factor, output=True)
    _scale(graph, pair.second, factor, output=False)
    return float(np.abs(factor - 1).max())


def _scale(graph: Graph, node: onnx.NodeProto, factor: Array, *, output: bool) -> None:
    """Multiplies a layer's output channels, bias with them, or its input channels by `factor`."""
    name = node.input[1]
    weight = graph.array(name)
    turned = node.op_type == "Gemm" and not attribute(node, "transB", 0)
    depthwise = attribute(node, "group", 1) > 1
    axis = 0 if output or depthwise else 1
    shape = [1] * weight.ndim
    shape[1 - axis if turned else axis] = -1
    graph.set_array(name, (weight * factor.reshape(shape)).astype(np.float32))
    if output and len(node.input) > 2 and node.input[2]:
        bias = graph.array(node.input[2])
        graph.set_array(node.input[2], (bias * factor).astype(np.float32))
