"""The search for a smallest failing part, over predicates that are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport.reduce import Budget, reduce_items

AMPLE = Budget(60, 10_000)


def needs(*culprits: int) -> Callable[[tuple[int, ...]], bool]:
    return lambda items: set(culprits) <= set(items)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("culprits", [(0,), (99,), (41,), (41, 42), (3, 50, 97), (0, 99)])
def test_finds_the_culprits(culprits: tuple[int, ...], width: int) -> None:
    found = reduce_items(100, needs(*culprits), AMPLE, width)
    assert found.items == culprits
    assert found.minimal


def test_one_culprit_takes_few_trials() -> None:
    assert reduce_items(1000, needs(617), AMPLE, 1).trials < 40


@settings(deadline=None)  # milliseconds say nothing on a loaded machine
@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 3))
def test_any_culprits(culprits: set[int], width: int) -> None:
    assert reduce_items(31, needs(*culprits), AMPLE, width).items == tuple(sorted(culprits))


def test_without_monotony_the_result_still_fails() -> None:
    """A longer part need not fail where a shorter one does: compilers are like that."""

    def fails(items: tuple[int, ...]) -> bool:
        return 20 in items and (len(items) % 3 != 0 or len(items) == 60)

    found = reduce_items(60, fails, AMPLE)
    assert found.minimal and fails(found.items)
    for left_out in found.items:
        rest = tuple(item for item in found.items if item != left_out)
        assert not rest or not fails(rest)


def test_all_items_are_needed() -> None:
    found = reduce_items(7, lambda items: len(items) == 7, AMPLE)
    assert found.items == tuple(range(7)) and found.minimal


def test_the_budget_ends_it_with_the_smallest_so_far() -> None:
    found = reduce_items(1000, needs(400, 600), Budget(60, 9))
    assert not found.minimal
    assert found.trials <= 9
    assert {400, 600} <= set(found.items) and len(found.items) < 1000
    assert reduce_items(10, needs(3), Budget(0, 100)).items == tuple(range(10))


def test_two_trials_run_at_once_and_no_more() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def fails(items: tuple[int, ...]) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return 5 in items

    assert reduce_items(40, fails, AMPLE, 2).items == (5,)
    assert most == 2


def test_a_trial_that_raises_ends_the_search() -> None:
    def fails(items: tuple[int, ...]) -> bool:
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        reduce_items(4, fails, AMPLE)
