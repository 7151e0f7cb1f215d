"""The latency harness, and the only place in the project that times.

Arms run interleaved, one sample each a round, so that what the machine does meanwhile (clock speed,
heat, other processes) falls on all of them; `ratio` then resamples whole rounds. Every number keeps
its samples and carries warnings about itself.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import itertools
import math
import os
import platform
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from edgeport.compare import Doubles
from edgeport.traces import Ratio
from edgeport.types import Measurement, Provenance

MIN_ROUNDS = 5  # below this the quartiles are single samples
WANTED_SAMPLES = 20  # from here the bootstrap interval of a median is close to its nominal level
MIN_SAMPLE_MS = 1.0  # about 10,000 times the cost of reading the clock
WIDE_SPREAD = 0.2  # of the median
STABLE_WINDOW = 5  # samples in a running median, and over how many of them it must not change
STABLE_CHANGE = 0.05  # of the running median
_BLOCK_ELEMENTS = 2_000_000  # of the resampled rounds held at once, about 50 MB in all


Result = TypeVar("Result")
BatchClock = Callable[[Callable[[], object], int], float]
"""Calls something so many times and returns how many milliseconds all of it took."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call of one arm, a sample a round in the order of the rounds.

    `iqr_ms` is the first and the third quartile; `warnings` are sentences.
    """

    name: str
    samples_ms: tuple[float, ...]
    median_ms: float
    iqr_ms: tuple[float, float]
    warnings: tuple[str, ...]


@dataclass
class _Arm:
    name: str
    call: Callable[[], object]
    batch_ms: BatchClock
    calls: int = 1  # per sample
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=2 * STABLE_WINDOW))

    def sample_ms(self) -> float:
        """Returns the mean milliseconds per call over one batch of `calls`."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self.batch_ms(self.call, self.calls) / self.calls
        finally:
            if collecting:
                gc.enable()

    def drift(self) -> float:
        """Returns by what fraction the running median changed lately; inf where none is known."""
        if len(self.recent) < 2 * STABLE_WINDOW:
            return math.inf
        lately = list(self.recent)
        windows = [lately[i : i + STABLE_WINDOW] for i in range(STABLE_WINDOW + 1)]
        medians = [statistics.median(window) for window in windows]
        return max(medians) / min(medians) - 1.0


def host_batch_ms(call: Callable[[], object], calls: int) -> float:
    """Returns the milliseconds of a batch by this machine's clock."""
    batch = itertools.repeat(None, calls)
    start = time.perf_counter_ns()
    for _ in batch:
        call()
    return (time.perf_counter_ns() - start) / 1e6


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None,
    seconds: float,
    warmup_seconds: float,
    batch_ms: BatchClock = host_batch_ms,
) -> dict[str, Timing]:
    """Returns the timing of each arm, all with the same number of samples, in rounds of one each.

    Warms up until every arm's median has settled or `warmup_seconds` are spent (one round at the
    least; unsettled arms carry a warning), then measures until `rounds` rounds or `seconds` of
    measured time, whichever comes first, and `MIN_ROUNDS` rounds at the least. A call shorter than
    `MIN_SAMPLE_MS` is repeated within a sample, which keeps its data in cache. The garbage
    collector is off during samples. `batch_ms` is the clock: a GPU, which works on after a call has
    returned, has one of its own.

    What no number of rounds averages out is the caller's to fix: threads; those that spin after a
    call and steal time from the next arm (onnxruntime's do, until the session option
    `session.intra_op.allow_spinning` is "0"); and buffers. Two copies of one small matrix product
    differed by 8 % through the alignment of their operands, so let arms share their inputs.

    Raises ValueError for no arms and for fewer than `MIN_ROUNDS` rounds.
    """
    if not arms:
        raise ValueError("there are no arms to time")
    if rounds is not None and rounds < MIN_ROUNDS:
        raise ValueError(f"rounds must be {MIN_ROUNDS} or more, not {rounds}")
    running = [_Arm(name, call, batch_ms) for name, call in arms.items()]
    # A shuffle, not a rotation: in A B C, B C A, C A B the same arm nearly always runs before B and
    # leaves it the same caches and the same heat. The seed is fixed so that a run can be repeated.
    order = random.Random(0)
    _warm_up(running, warmup_seconds, order)
    warned = {arm.name: _warm_up_warnings(arm, warmup_seconds) for arm in running}
    samples = _measure(running, math.inf if rounds is None else rounds, seconds, order)
    return {arm.name: summarise(arm.name, samples[arm.name], warned[arm.name]) for arm in running}


def elapsed_ms(call: Callable[[], Result]) -> tuple[Result, float]:
    """Returns what one call gave and how long it took: a load or a first run happens only once."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1e6


def now_seconds() -> float:
    """Returns the clock by which a run keeps to its time; only differences mean something."""
    return time.perf_counter()


def rest(seconds: float) -> None:
    """Waits, so that a chip cools down."""
    time.sleep(seconds)


def call_times_ms(call: Callable[[], object], count: int) -> list[float]:
    """Returns how long each of `count` calls took; the garbage collector is off meanwhile."""
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        marks = [clock()]
        for _ in range(count):
            call()
            marks.append(clock())
    finally:
        if collecting:
            gc.enable()
    return [(after - before) / 1e6 for before, after in itertools.pairwise(marks)]


def summarise(name: str, samples_ms: Sequence[float], warnings: Sequence[str] = ()) -> Timing:
    """Returns the timing made of `samples_ms`, with warnings about few samples and wide spread.

    Raises ValueError unless there are samples and all are positive and finite.
    """
    samples = np.asarray(samples_ms, dtype=np.float64)
    if samples.size == 0 or not np.isfinite(samples).all() or samples.min() <= 0:
        raise ValueError(f"{name}: samples must be positive milliseconds, and at least one")
    low, median, high = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    said = [*warnings]
    if samples.size < WANTED_SAMPLES:
        said.append(f"few samples: {samples.size}, where {WANTED_SAMPLES} or more are wanted")
    if high - low > WIDE_SPREAD * median:
        said.append(
            f"wide spread: the middle half of the samples spans {(high - low) / median:.0%} of "
            f"the median, more than {WIDE_SPREAD:.0%}"
        )
    return Timing(name, tuple(samples.tolist()), median, (low, high), tuple(said))


def ratio(
    numerator: Timing,
    denominator: Timing,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Ratio:
    """Returns median(numerator) / median(denominator) with a percentile bootstrap interval.

    Rounds are resampled, both arms of a round together, so that what slowed a whole round counts
    for both. The interval is near its nominal level where the arms vary by themselves and wider
    where they vary together; a drift from round to round of one arm alone is not covered.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Raises
    ValueError where the two do not come from the same number of rounds.
    """
    above, below = np.asarray(numerator.samples_ms), np.asarray(denominator.samples_ms)
    if above.size != below.size:
        raise ValueError(
            f"{numerator.name} has {above.size} rounds and {denominator.name} has {below.size}: "
            "only arms of one interleaved run can be compared"
        )
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise ValueError("confidence must lie between 0 and 1, and resamples be positive")
    rng = np.random.default_rng(seed)
    ratios = np.concatenate(list(_resampled_ratios(above, below, resamples, rng)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, (tail, 1.0 - tail))
    return Ratio(numerator.median_ms / denominator.median_ms, float(low), float(high))


def environment(threads: int) -> dict[str, str]:
    """Returns what a timing depends on, as words: processor, cores, threads, load, versions, time.

    `threads` is what the caller set its runtimes to. Versions are read from the installed packages'
    metadata; nothing is imported.
    """
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "cpu": _cpu_model(),
        "logical_cores": str(os.cpu_count() or "unknown"),
        "threads": str(threads),
        "load_average": "unknown" if load is None else " ".join(f"{one:.2f}" for one in load),
        "python": platform.python_version(),
        **{name: _installed_version(name) for name in ("numpy", "onnxruntime", "torch")},
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def machine_text(threads: int) -> str:
    """Returns what a ratio of times on this machine depends on: processor, cores and threads."""
    return f"{_cpu_model()}{_cpu_stepping()}, {os.cpu_count()} cores, {threads} threads"


def to_measurement(
    timing: Timing,
    *,
    metric: str = "latency_ms",
    provenance: Provenance,
    artifact_sha256: str,
    environment: Mapping[str, str],
) -> Measurement:
    """Returns the median as a measurement in ms, its interval the first and the third quartile.

    Raises ValueError for the provenances "emulated", whose times mean nothing, and "modelled",
    which is not timed.
    """
    if provenance not in ("device", "host"):
        raise ValueError(f"a timing cannot have the provenance {provenance!r}: device or host")
    return Measurement(
        metric=metric,
        value=timing.median_ms,
        unit="ms",
        provenance=provenance,
        samples=timing.samples_ms,
        interval=timing.iqr_ms,
        artifact_sha256=artifact_sha256,
        environment=dict(environment),
        warnings=timing.warnings,
    )


def log_log_slope(xs: ArrayLike, ys: ArrayLike) -> float:
    """Returns the least-squares slope of log y over log x: the p of y ~ x^p.

    `xs` and `ys` are equally long, positive and finite. Raises ValueError otherwise, and where
    `xs` has fewer than two different values.
    """
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or np.unique(x).size < 2:
        raise ValueError("a slope takes two equally long rows, with two different x at the least")
    both = np.concatenate((x, y))
    if not np.isfinite(both).all() or both.min() <= 0:
        raise ValueError("a slope of logarithms takes positive finite values")
    log_x, log_y = np.log(x) - np.log(x).mean(), np.log(y)
    return float(log_x @ log_y / (log_x @ log_x))


def _warm_up(arms: list[_Arm], budget_s: float, order: random.Random) -> None:
    deadline = time.perf_counter_ns() + budget_s * 1e9
    for arm in arms:
        while arm.sample_ms() * arm.calls < MIN_SAMPLE_MS:
            arm.calls *= 2
    while True:
        for arm in order.sample(arms, len(arms)):
            arm.recent.append(arm.sample_ms())
        settled = all(arm.drift() <= STABLE_CHANGE for arm in arms)
        if settled or time.perf_counter_ns() >= deadline:
            break
    for arm in arms:  # the first calls were slow, so the batches found then may be too small
        arm.calls = max(1, math.ceil(MIN_SAMPLE_MS / statistics.median(arm.recent)))


def _warm_up_warnings(arm: _Arm, budget_s: float) -> tuple[str, ...]:
    drift = arm.drift()
    if drift <= STABLE_CHANGE:
        return ()
    start = f"warm-up not stable after {budget_s:g} s: "
    if math.isinf(drift):
        return (f"{start}{len(arm.recent)} of the {2 * STABLE_WINDOW} runs needed to see it",)
    return (f"{start}the median still moved by {drift:.0%}, more than {STABLE_CHANGE:.0%}",)


def _measure(
    arms: list[_Arm], rounds: float, seconds: float, order: random.Random
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {arm.name: [] for arm in arms}
    done, spent_ms = 0, 0.0
    while done < MIN_ROUNDS or (done < rounds and spent_ms < seconds * 1e3):
        for arm in order.sample(arms, len(arms)):
            sample = arm.sample_ms()
            samples[arm.name].append(sample)
            spent_ms += sample * arm.calls
        done += 1
    return samples


def _resampled_ratios(
    above: Doubles, below: Doubles, resamples: int, rng: np.random.Generator
) -> Iterator[Doubles]:
    """Yields the ratios of medians of `resamples` draws of all rounds, a block at a time."""
    block = max(1, _BLOCK_ELEMENTS // above.size)
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), above.size)
        drawn = rng.integers(0, above.size, shape)
        yield np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1)


def _cpu_model() -> str:
    """Returns the processor's name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except FileNotFoundError:  # not Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_stepping() -> str:
    """Returns family, model and stepping, since one name is given to several processors."""
    wanted = ("cpu family", "model", "stepping")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            pairs = [line.partition(":") for line in lines]
    except FileNotFoundError:  # not Linux
        return ""
    found = {name.strip(): value.strip() for name, _, value in pairs}
    told = [found[name] for name in wanted if name in found]
    return f" ({'-'.join(told)})" if told else ""


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
