"""The interval of a metric."""

from __future__ import annotations

import numpy as np
import pytest

from edgeport.metrics import bootstrap_interval, doubts_of


def test_the_bootstrap_is_near_the_normal_interval_and_repeats() -> None:
    scores = (np.random.default_rng(3).random(1000) < 0.8).astype(float)
    low, high = bootstrap_interval(scores)
    half = 1.96 * scores.std() / np.sqrt(1000)
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(scores) == (low, high)
    assert doubts_of(scores) == ()
    (said,) = doubts_of(np.ones(300))
    assert "all 300 samples score the same" in said and "up to 1.0% of samples" in said
