"""Rounding of weights to the grid point that changes the layer's answer least, not to the nearest.

A layer computes W x, and rounding W to Q changes that by (W - Q) x, whose mean square over the
calibration is |R (W - Q)^T|^2 with R the Cholesky factor of x's second moments. Rounding one column
after the other, each with the change of those before it made up for in those that follow, finds a
Q near the least: the nearest-plane rule of Babai (1986, Combinatorica 6, doi 10.1007/BF02579403),
which gives the same integers as GPTQ does (Frantar et al. 2022, arXiv 2210.17323, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx

from edgeport.quantize.calibrate import Feeds
from edgeport.quantize.graph import Array, Graph, Probe, attribute, in_groups
from edgeport.quantize.grids import Grid, limits, steps_of, storage

MOST_INPUTS = 4608  # of a layer: 512 channels under a 3x3 filter; moments grow with the square
GROUP_BYTES = 512 << 20  # of moments and inputs of all layers that are in memory at a time
MOST_FEEDS = 16  # more of them show a layer's inputs little better, and each is a run a group
ROWS = 2048  # positions of an image, or tokens, that a layer's moments are of, over all feeds
DAMPING = 0.01  # of the mean of the diagonal, added to it: feeds do not show every direction
BLOCK = 128  # columns whose changes are handed on by one product


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's weight as integers of `grid`."""

    grid: Grid
    integers: Array

    def fits(self, grid: Grid) -> bool:
        """Returns whether these are integers of `grid`."""
        return grid.dtype == self.grid.dtype and np.array_equal(grid.scale, self.grid.scale)


@dataclass(frozen=True)
class Moments:
    """Second moments [groups, inputs, inputs] of what a layer multiplies, summed over `rows`.

    The inputs are those of one output channel.
    """

    sums: Array
    rows: int

    @property
    def is_finite(self) -> bool:
        """Whether they are numbers: those of a mask's minus infinity are not."""
        return bool(np.isfinite(self.sums).all())

    def shrunk(self) -> Array:
        """Returns the moments, drawn towards equal and unrelated inputs as few rows demand.

        How far is the oracle approximating shrinkage of Chen et al. 2010 (IEEE Transactions on
        Signal Processing 58, equation 23): of a handful of rows every one could be kept exactly,
        at the cost of all others.
        """
        size = self.sums.shape[-1]
        trace = np.einsum("gii->g", self.sums) / self.rows
        square = np.einsum("gij,gij->g", self.sums, self.sums) / self.rows**2
        spread = square - trace**2 / size
        above = (1 - 2 / size) * square + trace**2
        below = (self.rows + 1 - 2 / size) * spread
        share = np.divide(above, below, where=below > above, out=np.ones_like(above))
        kept = ((1 - share) / self.rows)[:, None, None] * self.sums
        level = (share + DAMPING) * trace / size + np.finfo(np.float32).tiny
        kept[:, np.arange(size), np.arange(size)] += level[:, None]
        return np.asarray(kept)


def moments_of_layers(
    graph: Graph, probe: Probe, feeds: Feeds
) -> Iterator[tuple[onnx.NodeProto, Moments]]:
    """Yields each layer with a constant weight, and the second moments of what it multiplies.

    No layer of more than MOST_INPUTS inputs is given.
    """
    wanted = [node for node in graph.nodes if _inputs(graph, node) in range(2, MOST_INPUTS + 1)]
    for group in in_groups(wanted, partial(_bytes, graph, probe), GROUP_BYTES):
        sums = {node.name: np.zeros((), np.float32) for node in group}
        rows = dict.fromkeys(sums, 0)
        sources = list({node.input[0]: None for node in group})
        for feed in islice(feeds, MOST_FEEDS):
            values = probe.run(sources, feed)
            for node in group:
                most = max(ROWS, _inputs(graph, node)) // min(len(feeds), MOST_FEEDS) + 1
                seen = _rows(graph, node, values[node.input[0]], most)
                with np.errstate(over="ignore"):  # of a mask's minus infinity: told by `Moments`
                    sums[node.name] = sums[node.name] + np.matmul(seen.swapaxes(1, 2), seen)
                rows[node.name] += seen.shape[1]
        for node in group:
            yield node, Moments(sums.pop(node.name).astype(np.float64), rows[node.name])


def _inputs(graph: Graph, node: onnx.NodeProto) -> int:
    """Returns how many inputs an output channel of a layer has; 0 for a node that is none."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in graph.constants:
        return 0
    tensor = graph.constants[node.input[1]]
    if tensor.data_type != onnx.TensorProto.FLOAT or node.input[0] in graph.constants:
        return 0
    if node.op_type == "Conv":
        plain = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        return int(np.prod(tensor.dims[1:])) if plain else 0
    if len(tensor.dims) != 2 or attribute(node, "transA", 0):
        return 0
    return int(tensor.dims[1 if attribute(node, "transB", 0) else 0])


def _bytes(graph: Graph, probe: Probe, node: onnx.NodeProto) -> int:
    """Returns the size of a layer's moments and input."""
    moments = 4 * attribute(node, "group", 1) * _inputs(graph, node) ** 2
    return int(moments + probe.bytes_of(node.input[0]))


def _rows(graph: Graph, node: onnx.NodeProto, values: Array, most: int) -> Array:
    """Returns up to `most` vectors that a layer multiplies, [groups, rows, inputs]."""
    chosen = np.random.default_rng(0)
    if node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[chosen.permutation(len(rows))[:most]][None]
    windows = _windows(node, values, tuple(graph.constants[node.input[1]].dims[2:]))
    places = (len(values), *windows.shape[2 : values.ndim])  # where a filter is applied
    positions = chosen.permutation(int(np.prod(places)))[:most]
    rows = np.moveaxis(windows, 1, len(places))[np.unravel_index(positions, places)]
    groups = attribute(node, "group", 1)
    return np.ascontiguousarray(rows.reshape(len(positions), groups, -1).swapaxes(0, 1))


def _windows(node: onnx.NodeProto, values: Array, kernel: tuple[int, ...]) -> Array:
    """Returns a view [batch, channels, positions ..., kernel ...] of a convolution's input."""
    rank = len(kernel)
    pads = attribute(node, "pads", [0] * 2 * rank)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    padded = np.pad(values, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axes)
    places = tuple(slice(None, None, step) for step in strides)
    taps = tuple(slice(None, None, step) for step in dilations)
    view: Array = windows[(slice(None), slice(None), *places, *taps)]
    return view


def round_weight(
    node: onnx.NodeProto, values: Array, grid: Grid, moments: Moments
) -> RoundedWeight:
    """Returns a layer's weight as integers of `grid`, a grid around 0, by the moments it meets."""
    turned = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not attribute(node, "transB", 0)
    )
    by_output = values.T if turned else values
    met = moments.shrunk()
    shape = (len(met), -1, met.shape[-1])  # [groups, outputs of one group, inputs]
    steps = steps_of(grid, values.shape)
    steps = (steps.T if turned else steps).reshape(shape)
    rows = by_output.reshape(shape).astype(np.float64) / steps
    rounded = _nearest_plane(rows, steps, met, limits(grid.dtype)).reshape(by_output.shape)
    integers = (rounded.T if turned else rounded).astype(np.int64).astype(storage(grid.dtype))
    return RoundedWeight(grid, integers)


def _nearest_plane(rows: Array, steps: Array, moments: Array, ends: tuple[int, int]) -> Array:
    """Returns integers for `rows`, which are in units of `steps`; all are [groups, rows, inputs].

    Inputs are rounded from the one of the greatest moment to that of the least, so that the last,
    which nothing makes up for, matter least.
    """
    size = rows.shape[-1]
    order = np.argsort(np.einsum("gii->i", moments), kind="stable")
    # |upper (w - q)|^2 is the loss of an output channel.
    upper = np.linalg.cholesky(moments[:, order][:, :, order]).swapaxes(1, 2)
    upper = upper / np.einsum("gii->gi", upper)[:, :, None]
    rows, steps = rows[..., order], steps[..., order]
    integers, change = np.empty_like(rows), np.zeros_like(rows)
    for end in range(size, 0, -BLOCK):
        start = max(0, end - BLOCK)
        owed = np.matmul(change[..., end:], upper[:, start:end, end:].swapaxes(1, 2))
        for j in range(end - 1, start - 1, -1):
            inner = np.matmul(change[..., j + 1 : end], upper[:, j, j + 1 : end, None])[..., 0]
            exact = rows[..., j] + (owed[..., j - start] + inner) / steps[..., j]
            integers[..., j] = np.rint(exact).clip(*ends)
            change[..., j] = (rows[..., j] - integers[..., j]) * steps[..., j]
    restored = np.empty_like(integers)
    restored[..., order] = integers
    return restored
