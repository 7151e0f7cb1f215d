"""How far an answer is from the reference; every tolerance is the caller's, there are no defaults.

A reference that is empty or holds NaN or infinity is a mistake and raises ValueError. An answer
that does is a bad answer and gets the worst value there is, so that no gate lets it through.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles: TypeAlias = NDArray[np.float64]


def sqnr_db(reference: ArrayLike, actual: ArrayLike) -> float:
    """Returns the signal-to-quantization-noise ratio in dB, 10 log10(sum r^2 / sum (r - a)^2).

    Both arrays have the same shape; sums are taken in float64 over all elements. Identical arrays
    give inf, also where both are zero. A zero reference with a nonzero answer gives -inf, and so
    does an answer with NaN or infinity. Raises ValueError for unequal shapes and for a reference
    that is empty or not finite.
    """
    signal, answer = _checked(reference, actual)
    if not np.isfinite(answer).all():
        return -math.inf
    with np.errstate(over="ignore"):
        noise_db = _energy_db(signal - answer)
    return math.inf if noise_db == -math.inf else _energy_db(signal) - noise_db


def max_abs(reference: ArrayLike, actual: ArrayLike) -> float:
    """Returns the largest absolute error, max |r - a|, in the unit of the arrays.

    inf where `actual` holds NaN or infinity. Raises ValueError as `sqnr_db` does.
    """
    signal, answer = _checked(reference, actual)
    if not np.isfinite(answer).all():
        return math.inf
    with np.errstate(over="ignore"):
        return float(np.abs(signal - answer).max())


def cosine(reference: ArrayLike, actual: ArrayLike) -> float:
    """Returns the cosine of the angle between the two as vectors, sum r a / (|r| |a|), -1 to 1.

    It does not see a wrong scale, which `sqnr_db` does. 1 where both are zero, 0 where one is; -1,
    the worst there is, where `actual` holds NaN or infinity. Raises ValueError as `sqnr_db` does.
    """
    signal, answer = (values.ravel() for values in _checked(reference, actual))
    if not np.isfinite(answer).all():
        return -1.0
    peaks = float(np.abs(signal).max()), float(np.abs(answer).max())
    if 0.0 in peaks:
        return float(peaks[0] == peaks[1])
    # Scaled, for squares near the ends of the exponent range would overflow or vanish.
    one, other = signal / peaks[0], answer / peaks[1]
    return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1.0, 1.0))


def top1(logits: ArrayLike, labels: ArrayLike) -> float:
    """Returns the fraction in [0, 1] of rows whose largest logit is the label's.

    Raises ValueError as `in_top` does.
    """
    return float(in_top(1, logits, labels).mean())


def in_top(count: int, logits: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Returns, per row, whether the label's logit is among the `count` largest.

    `logits` is [N, classes], `labels` is [N] of integers in [0, classes). Of equal logits the
    lowest class counts, as in numpy and torch; a row with NaN or infinity counts as wrong. Raises
    ValueError for other shapes, for no rows, and for labels that are no classes.
    """
    scores, classes = _doubles(logits), np.asarray(labels)
    if scores.ndim != 2 or scores.size == 0 or classes.shape != scores.shape[:1]:
        raise ValueError(
            f"top{count} takes logits [N, classes] and labels [N], not {scores.shape} and"
            f" {classes.shape}"
        )
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(f"labels must be integers from 0 to {scores.shape[1] - 1}")
    own = np.take_along_axis(scores, classes[:, None].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    before = (scores > own) | ((scores == own) & earlier)
    found = (before.sum(axis=1) < count) & np.isfinite(scores).all(axis=1)
    return np.asarray(found, np.bool_)


def _checked(reference: ArrayLike, actual: ArrayLike) -> tuple[Doubles, Doubles]:
    signal, answer = _doubles(reference), _doubles(actual)
    if signal.shape != answer.shape:
        raise ValueError(f"the reference has shape {signal.shape}, the answer {answer.shape}")
    if signal.size == 0:
        raise ValueError("the reference is empty, so nothing can be compared")
    if not np.isfinite(signal).all():
        raise ValueError("the reference holds NaN or infinity")
    return signal, answer


def _doubles(values: ArrayLike) -> Doubles:
    array = np.asarray(values)
    if array.dtype.kind == "c":
        raise ValueError("complex arrays cannot be compared: view them as real ones first")
    return array.astype(np.float64)


def _energy_db(values: Doubles) -> float:
    """Returns 10 log10 of the sum of squares; -inf for all zero, inf where it overflowed."""
    peak = float(np.abs(values).max())
    if peak == 0.0:
        return -math.inf
    if math.isinf(peak):
        return math.inf
    # Squares of values near the ends of the exponent range would overflow or vanish unscaled.
    scaled = (values / peak).ravel()
    return 20.0 * math.log10(peak) + 10.0 * math.log10(float(scaled @ scaled))
