"""Reduces a failing sequence to a smallest part that still fails: cuts ends, then single items.

Pure over a predicate: the doctor's compiles a subgraph in a child process and says whether it
still aborts. The search is that of delta debugging (Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002), begun with the cheaper bisection of both ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

Fails = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True)
class Budget:
    """What a reduction may take: seconds after which no trial starts, and a number of trials."""

    seconds: float
    trials: int


@dataclass(frozen=True)
class Reduction:
    """The items that still fail, the trials and seconds that it took to find them.

    `minimal`: without any one of the items it does not fail; False where the budget ended first.
    """

    items: tuple[int, ...]
    trials: int
    seconds: float
    minimal: bool


class _Spent(Exception):
    """Raised when the budget is used up."""


class _Search:
    """Runs trials, `width` at a time, and keeps the smallest sequence that failed."""

    def __init__(self, items: tuple[int, ...], fails: Fails, budget: Budget, width: int) -> None:
        self.best, self.fails, self.budget, self.width = items, fails, budget, width
        self.known: dict[tuple[int, ...], bool] = {}
        self.started = time.monotonic()

    def try_all(self, candidates: Sequence[tuple[int, ...]]) -> list[bool]:
        """Returns which candidates fail; those already tried are not tried again."""
        new = [one for one in dict.fromkeys(candidates) if one not in self.known]
        spent = time.monotonic() - self.started > self.budget.seconds
        if new and (spent or len(self.known) + len(new) > self.budget.trials):
            raise _Spent
        with ThreadPoolExecutor(max_workers=self.width) as pool:
            self.known.update(zip(new, pool.map(self.fails, new), strict=True))
        return [self.known[one] for one in candidates]

    def shorten(self, part: Callable[[int], tuple[int, ...]], length: int) -> None:
        """Keeps the least n for which part(n) fails; part(length) is known to."""
        low, high = 0, length  # part(low) does not fail, part(high) does
        while high - low > 1:
            step = max((high - low) // (self.width + 1), 1)
            middles = [m for i in range(self.width) if (m := low + step * (i + 1)) < high]
            for middle, failed in zip(middles, self.try_all([part(m) for m in middles])):
                if failed:
                    high, self.best = middle, part(middle)
                    break
                low = middle

    def drop_chunks(self) -> None:
        """Leaves out chunks, half of it down to single items, while what is left still fails."""
        size = max(len(self.best) // 2, 1)
        while True:
            while self._drop_one_chunk(size):
                pass
            if size == 1:
                return
            size = max(size // 2, 1)

    def _drop_one_chunk(self, size: int) -> bool:
        if len(self.best) <= 1:
            return False
        starts = range(0, len(self.best), size)
        rests = [self.best[:start] + self.best[start + size :] for start in starts]
        rests = [rest for rest in rests if rest]
        for first in range(0, len(rests), self.width):
            some = rests[first : first + self.width]
            for rest, failed in zip(some, self.try_all(some)):
                if failed:
                    self.best = rest
                    return True
        return False


def reduce_items(count: int, fails: Fails, budget: Budget, width: int = 2) -> Reduction:
    """Returns a smallest failing part of the items 0 ... count - 1, which together fail.

    `fails` is called from `width` threads at once, with items in their order.
    """
    assert count >= 1 and width >= 1
    search = _Search(tuple(range(count)), fails, budget, width)
    try:
        search.shorten(lambda n: tuple(range(n)), count)
        items = search.best
        search.shorten(lambda n: items[len(items) - n :], len(items))
        search.drop_chunks()
        minimal = True
    except _Spent:
        minimal = False
    seconds = time.monotonic() - search.started
    return Reduction(search.best, len(search.known), seconds, minimal)
