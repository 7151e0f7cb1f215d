"""What makes a trace doubtful, seen in its own numbers: a sentence each.

Interleaving keeps most of these out of a ratio; they tell that the times themselves do not stand
for the model: clocks fell, two kinds of core took turns, something else ran.
"""

from __future__ import annotations

import math

import numpy as np

from edgeport.compare import Doubles
from edgeport.traces import Trace

WIDE_SPREAD = 0.2  # of the median: the middle half of the calls
DRIFT = 0.05  # from the first to the last turn
TREND_Z = 2.6  # of Mann and Kendall's test over block medians: 1 % for both directions
STEP = 0.08  # a step up that stays
EDGE = 0.15  # of the turns that lie on either side of a step at least
APART = 0.12  # of the median: between the two modes
MODE_SHARE = 0.1  # of the calls that make a mode
SEPARATION = 4.5  # pooled deviations between the modes; the halves of one mode are 2.7 to 3.5 apart
ALTERNATIONS = 4  # between the modes; fewer are a step


def symptoms(trace: Trace) -> tuple[str, ...]:
    """Returns the sentences about one arm; none where there is nothing to say."""
    turns = np.array([np.median(turn) for block in trace.blocks for turn in block])
    found = (
        spread(trace.calls_ms),
        step_up(turns) or drift(trace.block_medians_ms),
        two_modes(turns),
    )
    return tuple(one for one in found if one)


def spread(calls_ms: Doubles) -> str:
    """Says that the middle half of the calls is wide."""
    low, median, high = np.quantile(calls_ms, (0.25, 0.5, 0.75))
    share = (high - low) / median
    if share <= WIDE_SPREAD:
        return ""
    return f"wide spread: the middle half of the calls spans {share:.0%} of the median"


def drift(block_medians_ms: Doubles) -> str:
    """Says that the time went up or down steadily, by Theil and Sen's slope over the blocks."""
    logs = np.log(block_medians_ms)
    n = logs.size
    if n < 4:
        return ""
    i, j = np.triu_indices(n, 1)
    slope = float(np.median((logs[j] - logs[i]) / (j - i)))
    change = math.expm1(slope * (n - 1))
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = float(np.sign(logs[j] - logs[i]).sum()) / deviation
    if abs(change) <= DRIFT or abs(z) < TREND_Z:
        return ""
    return f"drift: from the first to the last block the time went {change:+.0%}"


def step_up(turns_ms: Doubles) -> str:
    """Says that the time rose at once and stayed, as it does where a hot chip lowers its clocks."""
    logs = np.log(turns_ms)
    n = logs.size
    edge = max(3, math.ceil(EDGE * n))
    if n < 2 * edge:
        return ""
    splits = range(edge, n - edge + 1)
    at = min(splits, key=lambda k: _squares(logs[:k]) + _squares(logs[k:]))
    before, after = logs[:at], logs[at:]
    rise = math.expm1(float(np.median(after) - np.median(before)))
    apart = np.quantile(after, 0.1) > np.quantile(before, 0.9)
    if rise <= STEP or not apart or _squares(before) + _squares(after) >= _line_squares(logs):
        return ""
    return (
        f"throttled, it seems: after {at / n:.0%} of the run the time rose by {rise:.0%} and stayed"
    )


def two_modes(turns_ms: Doubles) -> str:
    """Says that the time goes back and forth between two values, as on two kinds of core."""
    logs = np.log(turns_ms)
    order = np.sort(logs)
    n = order.size
    edge = max(3, math.ceil(MODE_SHARE * n))
    if n < 2 * edge:
        return ""
    at = min(range(edge, n - edge + 1), key=lambda k: _squares(order[:k]) + _squares(order[k:]))
    low, high = order[:at], order[at:]
    gap = math.expm1(float(np.median(high) - np.median(low)))
    pooled = math.sqrt((low.var() + high.var()) / 2)
    slow = logs > (np.median(low) + np.median(high)) / 2
    if gap <= APART or high.mean() - low.mean() < SEPARATION * pooled:
        return ""
    if np.count_nonzero(slow[1:] != slow[:-1]) < ALTERNATIONS:
        return ""
    fast_ms, slow_ms = math.exp(np.median(low)), math.exp(np.median(high))
    share = slow.mean()
    return f"two speeds: {fast_ms:.3g} ms, and {slow_ms:.3g} ms in {share:.0%} of the turns"


def _squares(values: Doubles) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _line_squares(values: Doubles) -> float:
    x = np.arange(values.size)
    fitted = np.polynomial.Polynomial.fit(x, values, 1)(x)
    return float(((values - fitted) ** 2).sum())
