"""What a comparison measured, and what may be said of it: ratio, interval, noise floor, verdict.

A trace is one arm's milliseconds: blocks of turns of calls. All arms of a block are processes that
were started together and took turns, so what the machine does to a block falls on all of them; what
a start does to one process (where its memory lies, which core it got) changes from block to block.
So blocks are what is resampled. Pure functions of numbers: nothing here times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeport.compare import Doubles
from edgeport.types import Serialisable

MIN_BLOCKS = 6  # below it an interval over blocks says little
RESAMPLES = 2000
LEVEL = 0.95

Word = Literal["faster", "slower", "inconclusive"]


@dataclass(frozen=True)
class Trace:
    """One arm's milliseconds per call: a tuple of blocks, each of turns, each of calls."""

    name: str
    blocks: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def calls_ms(self) -> Doubles:
        """All calls in the order in which they were made, float64."""
        return np.array([call for block in self.blocks for turn in block for call in turn])

    @property
    def block_medians_ms(self) -> Doubles:
        """The median of each block's turns, each turn by its median, float64."""
        return np.array([np.median([np.median(turn) for turn in one]) for one in self.blocks])


@dataclass(frozen=True)
class Ratio(Serialisable):
    """A ratio of two arms' times with the ends of its 95 % interval; without a unit."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Ratio:
        """Returns the ratio where every time above the line is `factor` times as long."""
        return Ratio(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Comparison(Serialisable):
    """How arm `name` stands to arm `base`: time of `name` over time of `base`, and the verdict.

    `floor` is the noise floor as a share: two runs of one file differ by as much.
    """

    base: str
    name: str
    ratio: Ratio
    floor: float
    verdict: Word


def block_ratio(
    numerator: Trace, denominator: Trace, *, seed: int = 0, resamples: int = RESAMPLES
) -> Ratio:
    """Returns the time of one arm over another's, with a 95 % interval over blocks.

    The value is the geometric mean over blocks of the quotient of medians. The interval is
    bootstrap-t over whole blocks: the few blocks of a short run make a percentile interval too
    narrow. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 12.
    Raises ValueError where the two have not the same blocks, or fewer than 2.
    """
    logs = np.log(_paired(numerator, denominator))
    mean, error = float(logs.mean()), _standard_error(logs)
    if error == 0.0:
        return Ratio(math.exp(mean), math.exp(mean), math.exp(mean))
    rng = np.random.default_rng(seed)
    drawn = logs[rng.integers(0, logs.size, (resamples, logs.size))]
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(logs.size)
    # A draw of one block alone has no spread, and says nothing.
    t = ((drawn.mean(axis=1) - mean) / np.where(spread > 0, spread, np.inf))[spread > 0]
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(t, (tail, 1.0 - tail))
    return Ratio(
        math.exp(mean), math.exp(mean - float(high) * error), math.exp(mean - float(low) * error)
    )


def noise_floor(again: Ratio) -> float:
    """Returns how far one file's ratio to itself may be from 1, as a share: its interval's end."""
    return math.exp(max(abs(math.log(again.low)), abs(math.log(again.high)))) - 1.0


def compare_traces(base: Trace, name: Trace, floor: float) -> Comparison:
    """Returns the comparison of two arms of one run.

    A difference is one where the interval does not hold 1 and the ratio lies beyond the floor;
    every other is inconclusive, which is not to say that there is none.
    """
    found = block_ratio(name, base)
    return Comparison(base.name, name.name, found, floor, judge(found, floor))


def judge(ratio: Ratio, floor: float) -> Word:
    """Returns the verdict on a time over another's: below 1 is faster."""
    if ratio.low > 1.0 and ratio.value > 1.0 + floor:
        return "slower"
    if ratio.high < 1.0 and ratio.value < 1.0 / (1.0 + floor):
        return "faster"
    return "inconclusive"


def percentiles(trace: Trace) -> Mapping[str, float]:
    """Returns the 50th, 90th and 99th percentile of all calls in ms, as "p50", "p90", "p99"."""
    found = np.quantile(trace.calls_ms, (0.5, 0.9, 0.99))
    return dict(zip(("p50", "p90", "p99"), map(float, found)))


def _paired(numerator: Trace, denominator: Trace) -> Doubles:
    above, below = numerator.block_medians_ms, denominator.block_medians_ms
    if above.size != below.size or above.size < 2:
        raise ValueError(
            f"{numerator.name} has {above.size} blocks and {denominator.name} {below.size}: only"
            " arms of one run, of 2 blocks or more, can be compared"
        )
    return np.asarray(above / below)


def _standard_error(logs: Doubles) -> float:
    return float(logs.std(ddof=1)) / math.sqrt(logs.size)


def half_width(ratios: Sequence[Ratio]) -> float:
    """Returns half of the widest interval as a share: what more blocks would narrow."""
    return max(math.sqrt(one.high / one.low) - 1.0 for one in ratios)
