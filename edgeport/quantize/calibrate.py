"""Ranges of every tensor over the calibration feeds: streamed, in bounded memory.

onnxruntime's calibrators are not used: for every method but min-max they keep all values of all
tensors of all feeds in memory until the last one has run, and their min-max counts a mask's -3e38
as a value, after which the scores that it is added to are all zero. Here one feed and one group of
tensors are in memory at a time; a first pass takes minimum, maximum and mean, a second fills one
histogram per tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeport.errors import InputError, StageFailed
from edgeport.quantize.config import BITS, Calibration, IntegerType
from edgeport.quantize.graph import Array, Feed, Probe, in_groups
from edgeport.runtimes.samples import load_samples, save_samples

MASK = 1e9  # no activation is as large: such a value stands for minus infinity


@dataclass(frozen=True)
class Statistics:
    """What the feeds showed of one tensor: its range, whether values beyond MASK occur, its mean.

    `histogram` counts values in equal bins from `low` to `high`; `mean` has one value per channel,
    and is None where none was asked for.
    """

    low: float
    high: float
    masked: bool = False
    shape: tuple[int, ...] = ()
    histogram: Array | None = None
    mean: Array | None = None


class Feeds:
    """Calibration feeds that can be read more than once: the first reading copies them to disk.

    Raises InputError where there is none.
    """

    def __init__(self, feeds: Iterable[Feed], folder: Path) -> None:
        self._files: list[Path] = []
        for number, feed in enumerate(feeds):
            self._files.append(folder / f"{number}.npz")
            save_samples(self._files[-1], [feed])
        if not self._files:
            raise InputError("no calibration inputs: at least one is needed")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Feed]:
        return (load_samples(file)[0] for file in self._files)

    def hold_out(self, first: int) -> list[Feed]:
        """Returns the first feeds, or half of them where they are few, and leaves them out."""
        count = min(first, len(self) // 2)
        held = [load_samples(file)[0] for file in self._files[:count]]
        del self._files[:count]
        return held


def gather(
    probe: Probe, feeds: Iterable[Feed], config: Calibration, means: Mapping[str, int]
) -> dict[str, Statistics]:
    """Returns the statistics of every float32 tensor that a node makes or the caller gives.

    `feeds` is read several times; `means` gives the tensors whose mean per channel is wanted, with
    the channels' axis. Raises StageFailed for a tensor with NaN.
    """
    statistics: dict[str, Statistics] = {}
    for group in in_groups(probe.shapes, probe.bytes_of, config.group_bytes):
        statistics |= _ranges(probe, group, feeds, means)
        if config.method != "minmax":
            statistics |= _histograms(probe, group, feeds, statistics, config.bins)
    return statistics


def _ranges(
    probe: Probe, group: list[str], feeds: Iterable[Feed], means: Mapping[str, int]
) -> dict[str, Statistics]:
    found: dict[str, Statistics] = {}
    for number, feed in enumerate(feeds):
        for name, values in probe.run(group, feed).items():
            one = _measure(name, values, means.get(name))
            found[name] = _merge(found[name], one, number) if name in found else one
    return found


def _measure(name: str, values: Array, axis: int | None) -> Statistics:
    if values.size == 0:
        return Statistics(0.0, 0.0, shape=values.shape)
    low, high = float(values.min()), float(values.max())
    if np.isnan(low) or np.isnan(high):
        raise StageFailed("quantize", f"tensor {name} is NaN on calibration inputs")
    masked = low < -MASK or high > MASK
    if masked:
        kept = values[np.abs(values) <= MASK]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
    if axis is None or masked:
        return Statistics(low, high, masked, values.shape)
    others = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
    mean = values.mean(axis=others, dtype=np.float64)
    return Statistics(low, high, shape=values.shape, mean=mean)


def _merge(old: Statistics, new: Statistics, count: int) -> Statistics:
    """Returns the statistics of both; `old` is of `count` feeds, `new` of one."""
    mean = None
    if old.mean is not None and new.mean is not None and old.mean.shape == new.mean.shape:
        mean = old.mean + (new.mean - old.mean) / (count + 1)
    low, high = min(old.low, new.low), max(old.high, new.high)
    return Statistics(low, high, old.masked or new.masked, new.shape, mean=mean)


def _histograms(
    probe: Probe,
    group: list[str],
    feeds: Iterable[Feed],
    statistics: Mapping[str, Statistics],
    bins: int,
) -> dict[str, Statistics]:
    counts = {name: np.zeros(bins, np.int64) for name in group}
    for feed in feeds:
        for name, values in probe.run(group, feed).items():
            one = statistics[name]
            width = (one.high - one.low) / bins
            if width > 0:
                kept = values[np.abs(values) <= MASK] if one.masked else values.ravel()
                index = ((kept - np.float32(one.low)) * np.float32(1 / width)).astype(np.int32)
                counts[name] += np.bincount(index.clip(0, bins - 1), minlength=bins)
    return {name: replace(statistics[name], histogram=counts[name]) for name in group}


def choose_range(one: Statistics, config: Calibration, dtype: IntegerType) -> tuple[float, float]:
    """Returns (low, high) of a tensor's grid by the configured method; 0 always lies inside."""
    if one.histogram is None or config.method == "minmax" or not one.histogram.any():
        low, high = one.low, one.high
    elif config.method == "percentile":
        low, high = _percentile(one, config.percentile)
    elif config.method == "mse":
        low, high = _least_squares(one, 2 ** BITS[dtype])
    else:
        low, high = _entropy(one, 2 ** BITS[dtype])
    return min(low, 0.0), max(high, 0.0)


def _edges(one: Statistics) -> tuple[Array, Array]:
    """Returns the bin edges and the counts."""
    assert one.histogram is not None
    return np.linspace(one.low, one.high, len(one.histogram) + 1), one.histogram


def _percentile(one: Statistics, percent: float) -> tuple[float, float]:
    """Returns the range that leaves out half of (100 - percent) % of the values on each side."""
    edges, counts = _edges(one)
    share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    outside = (1 - percent / 100) / 2
    low = edges[max(0, int(np.searchsorted(share, outside, side="right")) - 1)]
    high = edges[min(len(edges) - 1, int(np.searchsorted(share, 1 - outside, side="left")))]
    return float(low), float(high)


def _least_squares(one: Statistics, levels: int, steps: int = 100) -> tuple[float, float]:
    """Returns the range with the least expected squared error: rounding inside, clipping outside.

    Rounding to a grid of step s costs s^2 / 12 per value inside; a value outside costs the square
    of its distance. Low and high shrink one after the other, each over `steps` candidates.
    """
    edges, counts = _edges(one)
    centres = (edges[:-1] + edges[1:]) / 2

    def cost(low: float, high: float) -> float:
        outside = np.maximum(low - centres, 0) + np.maximum(centres - high, 0)
        inside = counts[outside == 0].sum()
        return float(counts @ outside**2 + inside * ((high - low) / (levels - 1)) ** 2 / 12)

    low, high = min(one.low, 0.0), max(one.high, 0.0)
    shrunk = np.linspace(1.0, 1.0 / steps, steps)
    for _ in range(2):
        high = min((cost(low, one.high * f), one.high * f) for f in shrunk)[1] if high > 0 else high
        low = min((cost(one.low * f, high), one.low * f) for f in shrunk)[1] if low < 0 else low
    return low, high


def _entropy(one: Statistics, levels: int, steps: int = 64) -> tuple[float, float]:
    """Returns the range whose quantized histogram is nearest in Kullback-Leibler divergence.

    Candidates cut the observed range at -t and t; what lies outside is counted in the edge bins,
    and each of the `levels` steps spreads its count evenly over its nonempty bins.
    """
    edges, counts = _edges(one)
    if levels >= len(counts):
        return one.low, one.high  # one level per bin or more: nothing would be lost
    centres = (edges[:-1] + edges[1:]) / 2
    # What a ReLU cut to 0 lies exactly on every grid: spread over a step it would drown the rest.
    at_zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 2))
    counts = counts.copy()
    counts[at_zero] = min(counts[at_zero], counts[at_zero + 1])
    best = (np.inf, one.low, one.high)
    reach = max(-one.low, one.high)
    for cut in reach * np.linspace(1.0, levels / len(counts), steps):
        low, high = min(max(one.low, -cut), 0.0), max(min(one.high, cut), 0.0)
        inside = (centres >= low) & (centres <= high)
        if inside.any():
            best = min(best, (_divergence(counts, inside, levels), low, high))
    return best[1], best[2]


def _divergence(counts: Array, inside: Array, levels: int) -> float:
    first, last = np.flatnonzero(inside)[[0, -1]]
    kept = counts[first : last + 1].astype(np.float64)
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    level = (np.arange(len(kept)) * levels) // max(len(kept), levels)
    nonempty = reference > 0
    total = np.bincount(level, kept, minlength=levels)
    filled = np.bincount(level, nonempty, minlength=levels)
    spread = np.where(nonempty, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
    used = nonempty & (q > 0)
    lost = float(p[nonempty & (q <= 0)].sum())  # mass on a level that the grid has not
    return float(np.sum(p[used] * np.log(p[used] / q[used]))) + 50.0 * lost
