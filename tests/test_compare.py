"""Tests of edgeport.compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeport import compare
from edgeport.compare import max_abs, sqnr_db, top1

VALUES = st.floats(-1e3, 1e3, width=32)
PAIRS = st.integers(1, 20).flatmap(
    lambda n: st.tuples(*(hnp.arrays(np.float32, n, elements=VALUES) for _ in range(2)))
)


@pytest.mark.parametrize(
    ("reference", "actual", "expected_db"),
    [
        ([1.0, 1.0], [0.9, 1.1], 20.0),
        ([10.0, 0.0], [10.0, 1.0], 20.0),
        ([1.0, -2.0, 2.0], [0.0, 0.0, 0.0], 0.0),
        ([1.0], [-1.0], -20.0 * math.log10(2.0)),
        ([[3.0, 4.0]], [[3.0, 4.0005]], 80.0),
    ],
)
def test_sqnr_known_values(reference: list, actual: list, expected_db: float) -> None:
    assert sqnr_db(reference, actual) == pytest.approx(expected_db, abs=1e-9)


def test_sqnr_of_rounding_a_full_range_ramp_to_8_bits() -> None:
    # A uniform signal of range 1 has power 1/12, rounding to steps of 1/256 noise of step^2/12.
    ramp = np.arange(-0.5, 0.5, 1e-6)
    assert sqnr_db(ramp, np.round(ramp * 256) / 256) == pytest.approx(20 * math.log10(256), abs=0.1)


def test_sqnr_ends() -> None:
    assert sqnr_db([1.0, 2.0], [1.0, 2.0]) == math.inf
    assert sqnr_db([0.0, 0.0], [0.0, 0.0]) == math.inf
    assert sqnr_db([0.0, 0.0], [0.0, 1e-9]) == -math.inf
    assert max_abs([0.0, 0.0], [0.0, 0.0]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_answer_gets_the_worst_value(bad: float) -> None:
    assert sqnr_db([1.0, 2.0], [1.0, bad]) == -math.inf
    assert max_abs([1.0, 2.0], [1.0, bad]) == math.inf


def test_sqnr_neither_overflows_nor_vanishes_at_the_ends_of_the_exponent_range() -> None:
    assert sqnr_db([1e300, 1e300], [0.9e300, 1.1e300]) == pytest.approx(20.0)
    assert sqnr_db([1e-300, 1e-300], [0.9e-300, 1.1e-300]) == pytest.approx(20.0)
    assert sqnr_db([1.0, 1e-200], [1.0, 2e-200]) == pytest.approx(4000.0)
    assert sqnr_db([1e308], [-1e308]) == -math.inf


def test_sums_are_float64() -> None:
    reference = np.full(300_000, 0.1, np.float32)
    noisy = (reference * np.float32(1.001)).astype(np.float32)
    exact = np.log10(np.square(noisy.astype(float) / reference.astype(float) - 1).mean()) * -10
    assert sqnr_db(reference, noisy) == pytest.approx(exact, abs=1e-9)
    assert sqnr_db(np.array([200], np.uint8), np.array([220], np.uint8)) == pytest.approx(20.0)


@pytest.mark.parametrize("metric", [sqnr_db, max_abs])
@pytest.mark.parametrize(
    ("reference", "actual", "words"),
    [
        (np.ones((2, 1)), np.ones((1, 2)), r"shape \(2, 1\), the answer \(1, 2\)"),
        (np.ones(3), 1.0, "shape"),
        ([], [], "empty"),
        ([1.0, math.nan], [1.0, 1.0], "NaN or infinity"),
        ([math.inf], [math.inf], "NaN or infinity"),
        ([1.0], [1j], "complex"),
    ],
)
def test_mistakes_of_the_caller_raise(metric, reference, actual, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metric(reference, actual)


def test_max_abs_is_the_largest_error() -> None:
    assert max_abs([[1.0, -5.0], [2.0, 0.0]], [[1.5, -2.0], [2.0, -1.0]]) == 3.0
    assert max_abs(np.array([1], np.uint8), np.array([2], np.uint8)) == 1.0


def test_top1() -> None:
    logits = [[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 1.0]]
    assert top1(logits, [1, 0, 2, 2]) == 0.75
    assert top1(np.zeros((2, 3)), [0, 1]) == 0.5


def test_top1_counts_rows_that_are_not_finite_as_wrong() -> None:
    assert top1([[0.0, math.nan], [0.0, math.inf], [0.0, 1.0]], [1, 1, 1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([0.0, 1.0], [1]),
        ([[0.0, 1.0]], [1, 0]),
        (np.zeros((0, 3)), []),
        ([[0.0, 1.0]], [2]),
        ([[0.0, 1.0]], [-1]),
        ([[0.0, 1.0]], [1.0]),
    ],
)
def test_top1_refuses(logits, labels) -> None:
    with pytest.raises(ValueError, match=r"logits|labels"):
        top1(logits, labels)


@settings(deadline=None)
@given(PAIRS, st.floats(1e-12, 1e12), st.sampled_from((-1.0, 1.0)))
def test_sqnr_does_not_change_with_scale(pair, size: float, sign: float) -> None:
    reference, actual = (half.astype(np.float64) for half in pair)
    assume(reference.any())
    # Rounding of the scaled values is noise too: 1e-12 of the signal is far above it.
    assume(sqnr_db(reference, actual) < 200.0)
    scaled = sqnr_db(sign * size * reference, sign * size * actual)
    assert scaled == pytest.approx(sqnr_db(reference, actual), abs=1e-3)


@settings(deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_sqnr_does_not_depend_on_the_order_of_elements(pair, random) -> None:
    reference, actual = pair
    order = random.sample(range(reference.size), reference.size)
    whole = sqnr_db(reference, actual)
    assert sqnr_db(reference[order], actual[order]) == pytest.approx(whole, abs=1e-9)


@settings(deadline=None)
@given(PAIRS)
def test_swapping_the_two_changes_sqnr_by_the_ratio_of_their_powers(pair) -> None:
    one, other = (half.astype(np.float64) for half in pair)
    assume(one.any() and other.any() and (one != other).any())
    powers_db = 20 * math.log10(float(np.linalg.norm(one) / np.linalg.norm(other)))
    assert sqnr_db(one, other) - sqnr_db(other, one) == pytest.approx(powers_db, abs=1e-6)
    assert max_abs(one, other) == max_abs(other, one)


@settings(deadline=None)
@given(PAIRS)
def test_ten_times_the_error_costs_twenty_db(pair) -> None:
    reference, error = (half.astype(np.float64) for half in pair)
    assume(reference.any() and np.abs(error).max() > 1e-3)
    small, large = (sqnr_db(reference, reference + k * error) for k in (1, 10))
    assert small - large == pytest.approx(20.0, abs=1e-3)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_in_top_counts_the_labels_place_of_equal_logits_the_lowest_class_first(
    count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (7, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 7)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    expected = [label in row for label, row in zip(labels, order)]
    assert compare.in_top(count, logits, labels).tolist() == expected
