"""Which grid each activation gets: one for all that an operator only moves, and fit to the NPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from edgeport.quantize.calibrate import Statistics, choose_range
from edgeport.quantize.config import BITS, Calibration, IntegerType
from edgeport.quantize.graph import Graph, attribute
from edgeport.quantize.grids import INT16_REACH, Grid, asymmetric

# They move values and compute none: input 0 and the outputs have one grid, or the NPU would have
# to rescale what it only copies.
_MOVES = """
    Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather GatherElements GatherND Split Expand
    Tile DepthToSpace SpaceToDepth MaxPool Identity Resize Pad ScatterND ScatterElements
"""
MOVES = frozenset(_MOVES.split())
# What the NPU's 16-bit operators give, whatever the range that was observed.
FIXED: dict[str, tuple[float, int]] = {"Sigmoid": (1 / 65536, 0), "Tanh": (1 / 32768, 32768)}
# The NPU computes a 16-bit Log wrongly where its output's grid spans less: 0 dB at 3, 85 at 4.
LOG_SPAN = 4.0
# exp(-MARGIN) is less than half a step of the type: a masked score gets no attention.
MARGIN: dict[IntegerType, float] = {"uint8": 8.0, "uint16": 16.0, "int16": 16.0}


class TensorGrids:
    """The grids of all activations, for any integer type."""

    def __init__(
        self, graph: Graph, statistics: Mapping[str, Statistics], config: Calibration
    ) -> None:
        self._graph, self._statistics, self._config = graph, statistics, config
        self._groups = _groups(graph, statistics)
        self._known: dict[tuple[str, IntegerType], Grid] = {}

    def __call__(self, name: str, dtype: IntegerType) -> Grid:
        """Returns the grid of a tensor stored as `dtype`."""
        if (name, dtype) not in self._known:
            self._known[name, dtype] = self._make(name, dtype)
        return self._known[name, dtype]

    def _make(self, name: str, dtype: IntegerType) -> Grid:
        low = high = 0.0
        for member in self._groups[name]:
            maker = self._graph.makers.get(member)
            if dtype == "uint16" and maker is not None and maker.op_type in FIXED:
                scale, zero = FIXED[maker.op_type]
                return Grid(dtype, np.array(scale, np.float32), np.array(zero, np.uint16))
            ends = self._range(member, maker, dtype)
            low, high = min(low, ends[0]), max(high, ends[1])
        if dtype == "int16":  # the HTP takes a signed operand with a zero point of 0 only
            reach = max(-low, high) or 1.0
            return Grid(dtype, np.array(reach / INT16_REACH, np.float32), np.array(0, np.int16))
        return asymmetric(low, high, dtype)

    def _range(
        self, name: str, maker: onnx.NodeProto | None, dtype: IntegerType
    ) -> tuple[float, float]:
        one = self._statistics[name]
        low, high = choose_range(one, self._config, dtype)
        if BITS[dtype] == 16 and self._config.method == "minmax":
            is_small = math.prod(one.shape) < self._config.small
            headroom = self._config.small_headroom if is_small else self._config.headroom
            low, high = low * headroom, high * headroom
        if BITS[dtype] == 16 and maker is not None and maker.op_type == "Log":
            low = min(low, max(high, 0.0) - LOG_SPAN)
        if maker is not None and maker.op_type == "Clip":  # the grid's ends may stand for it
            least, most = clip_ends(maker, self._graph)
            low, high = max(low, min(least, 0.0)), min(high, max(most, 0.0))
        return (low - MARGIN[dtype] if one.masked else low), high


def clip_ends(node: onnx.NodeProto, graph: Graph) -> tuple[float, float]:
    """Returns the bounds of a Clip; infinite where it has none or they are no constants."""
    ends = []
    for index, attribute_name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        name = node.input[index] if index < len(node.input) else ""
        known = name in graph.constants
        value = graph.array(name) if known else attribute(node, attribute_name, default)
        ends.append(float(np.asarray(value).reshape(())))
    return ends[0], ends[1]


def mask_depth(one: Statistics | None, dtype: IntegerType) -> float:
    """Returns how far below 0 a constant mask must reach to lie below every score that it meets.

    `one` is what the feeds showed of the masked scores.
    """
    reach = 2 * max(abs(one.low), abs(one.high)) if one is not None else 0.0
    return reach + MARGIN[dtype]


def _groups(graph: Graph, statistics: Mapping[str, Statistics]) -> dict[str, list[str]]:
    """Returns, per tensor, all tensors that have one grid with it."""
    group = {name: [name] for name in statistics}
    for node in graph.nodes:
        if node.op_type in MOVES and node.input and node.input[0] in group and _keeps_range(node):
            joined = list(node.output)
            if node.op_type.startswith("Scatter"):
                joined.append(node.input[2])
            for name in joined:
                if name in group and group[name] is not group[node.input[0]]:
                    merged = group[node.input[0]]
                    merged.extend(group[name])
                    for member in group[name]:
                        group[member] = merged
    return group


def _keeps_range(node: onnx.NodeProto) -> bool:
    """Returns whether a Resize only repeats or blends: cubic overshoots its input's range."""
    return node.op_type != "Resize" or attribute(node, "mode", b"nearest") != b"cubic"
