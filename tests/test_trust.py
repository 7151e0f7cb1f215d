"""The harness on traces drawn from recordings of real runs, and on what is wrong with machines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.record import load_all
from benchmarks.trust import Trial, draw, wilson
from edgeport.symptoms import symptoms
from edgeport.traces import Ratio, Trace, block_ratio, compare_traces, judge, noise_floor

RECORDINGS = load_all()
QUIET = [name for name in RECORDINGS if "busy" not in name]
TRIALS = 504


def trials(names: list[str], count: int) -> list[Trial]:
    rng = np.random.default_rng(1)
    return [draw(RECORDINGS[names[i % len(names)]].traces, rng) for i in range(count)]


@pytest.fixture(scope="module")
def drawn() -> list[Trial]:
    """Trials over every recording, the ones beside another program among them."""
    return trials(list(RECORDINGS), TRIALS)


def scaled(trace: Trace, factors: np.ndarray) -> Trace:
    """Returns a trace with a factor for each turn, over the blocks in their order."""
    given = iter(factors)
    blocks = tuple(
        tuple(tuple(call * factor for call in turn) for turn, factor in zip(block, given))
        for block in trace.blocks
    )
    return replace(trace, blocks=blocks)


def turn_count(trace: Trace) -> int:
    return sum(len(block) for block in trace.blocks)


# False alarms and detection


def test_equal_arms_raise_few_alarms(drawn: list[Trial]) -> None:
    alarms = sum(trial.verdict(1.0) != "inconclusive" for trial in drawn)
    low, _ = wilson(alarms, len(drawn))
    assert low <= 0.05, f"{alarms} of {len(drawn)}"


def test_five_per_cent_is_found(drawn: list[Trial]) -> None:
    for factor, word in ((1.05, "slower"), (1 / 1.05, "faster")):
        found = sum(trial.verdict(factor) == word for trial in drawn)
        assert found / len(drawn) >= 0.9, f"{word} in {found} of {len(drawn)}"


def test_the_interval_holds_the_true_ratio(drawn: list[Trial]) -> None:
    held = sum(trial.ratio.low <= 1.0 <= trial.ratio.high for trial in drawn)
    assert held / len(drawn) >= 0.88  # 95 % in name; blocks drawn twice make it narrower


def test_a_harness_without_a_floor_would_raise_more_alarms(drawn: list[Trial]) -> None:
    """The control: the rule's second half is what keeps the rate down."""
    with_floor = sum(trial.verdict(1.0) != "inconclusive" for trial in drawn)
    without = sum(judge(trial.ratio, 0.0) != "inconclusive" for trial in drawn)
    assert without > with_floor


# What a trace says of itself


@pytest.mark.parametrize("name", QUIET)
def test_real_traces_are_seldom_warned_about(name: str) -> None:
    warned = [bool(symptoms(trial.slower)) for trial in trials([name], 60)]
    assert np.mean(warned) <= 0.15


@pytest.mark.parametrize("name", QUIET)
def test_a_chip_that_throttles_is_seen(name: str) -> None:
    trace = RECORDINGS[name].traces[0]
    n = turn_count(trace)
    hot = scaled(trace, np.where(np.arange(n) < 0.6 * n, 1.0, 1.25))
    assert any(one.startswith("throttled") for one in symptoms(hot))


@pytest.mark.parametrize("name", QUIET)
def test_a_drift_is_seen(name: str) -> None:
    trace = RECORDINGS[name].traces[0]
    slower = scaled(trace, np.linspace(1.0, 1.25, turn_count(trace)))
    assert any(one.startswith("drift") for one in symptoms(slower))


@pytest.mark.parametrize("name", QUIET)
def test_two_kinds_of_core_are_seen(name: str) -> None:
    trace = RECORDINGS[name].traces[0]
    rng = np.random.default_rng(0)
    cores = scaled(trace, np.where(rng.random(turn_count(trace)) < 0.4, 1.6, 1.0))
    assert any(one.startswith("two speeds") for one in symptoms(cores))


def test_what_falls_on_both_arms_is_no_difference() -> None:
    """A chip that throttles slows both: the ratio stays, and each trace says what happened."""
    recording = RECORDINGS[QUIET[0]]
    factors = np.where(np.arange(turn_count(recording.traces[0])) < 60, 1.0, 1.3)
    one, two = (scaled(trace, factors) for trace in recording.traces[:2])
    found = compare_traces(one, two, 0.02)
    assert found.verdict == "inconclusive" and abs(found.ratio.value - 1.0) < 0.03
    assert symptoms(one)


# Ratio, floor and verdict


def flat(name: str, *milliseconds: float) -> Trace:
    return Trace(name, tuple((((one, one),)) for one in milliseconds))


def test_a_ratio_without_noise_is_exact() -> None:
    found = block_ratio(flat("b", 2.0, 4.0, 8.0), flat("a", 1.0, 2.0, 4.0))
    assert found == Ratio(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))


def test_a_ratio_takes_arms_of_one_run() -> None:
    with pytest.raises(ValueError, match="only arms of one run"):
        block_ratio(flat("b", 1.0, 2.0), flat("a", 1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="of 2 blocks or more"):
        block_ratio(flat("b", 1.0), flat("a", 1.0))


def test_the_floor_is_the_far_end_in_either_direction() -> None:
    assert noise_floor(Ratio(1.0, 0.98, 1.01)) == pytest.approx(1 / 0.98 - 1)
    assert noise_floor(Ratio(1.02, 1.01, 1.03)) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("ratio", "floor", "word"),
    [
        (Ratio(1.05, 1.03, 1.07), 0.02, "slower"),
        (Ratio(1.05, 0.99, 1.11), 0.02, "inconclusive"),
        (Ratio(1.05, 1.03, 1.07), 0.06, "inconclusive"),
        (Ratio(0.90, 0.88, 0.92), 0.02, "faster"),
        (Ratio(0.99, 0.985, 0.995), 0.02, "inconclusive"),
    ],
)
def test_a_difference_is_outside_both_interval_and_floor(
    ratio: Ratio, floor: float, word: str
) -> None:
    assert judge(ratio, floor) == word
    turned = Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    other = {"slower": "faster", "faster": "slower"}.get(word, word)
    assert judge(turned, floor) == other


def test_recordings_are_of_several_runtimes_and_hold_four_arms_each() -> None:
    assert len(RECORDINGS) >= 5 and any("busy" in name for name in RECORDINGS)
    for recording in RECORDINGS.values():
        assert len(recording.traces) == 4 and len(recording.traces[0].blocks) >= 8
        assert all(math.isfinite(call) for call in recording.traces[0].calls_ms)
