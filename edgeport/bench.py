"""Times arms against each other: blocks of turns, with the first arm twice for the noise floor.

A block starts a process for every arm, in a new order, and gives each cold start, load and first
inference; then the arms warm up until their medians are stable, and take turns in a new order each
round. Blocks are added until the intervals are narrow, or the time is over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeport.errors import InputError
from edgeport.measure import now_seconds
from edgeport.symptoms import symptoms
from edgeport.traces import (
    MIN_BLOCKS,
    Comparison,
    Ratio,
    Trace,
    block_ratio,
    compare_traces,
    half_width,
    noise_floor,
    percentiles,
)
from edgeport.types import Measurement, Provenance, Serialisable

AGAIN = "again"  # the first arm's second process, in what follows its name
ENOUGH = 0.012  # of half an interval: a difference of 5 % is then found nearly always
STABLE_CHANGE = 0.05  # of the running median, as in edgeport.measure
STABLE_WINDOW = 3  # turns


@dataclass(frozen=True)
class Arm:
    """A file to time: what runs it, on which inputs, and what it is.

    `inputs` is a file of `save_samples`, whose first sample is timed. `computed` is the type that
    it computes in. `files` are all of the runtime's, the one that is loaded first; `part` names one
    of its programs, where it has several.
    """

    name: str
    runtime: str
    files: tuple[Path, ...]
    inputs: Path
    sha256: str
    computed: str = ""
    parity: tuple[Measurement, ...] = ()
    directory: Path | None = None
    notes: tuple[str, ...] = ()
    part: str = ""

    @property
    def bytes(self) -> int:
        """The size of the files, with weights that lie beside them."""
        beside = (file.with_name(f"{file.name}.data") for file in self.files)
        return sum(file.stat().st_size for file in (*self.files, *beside) if file.is_file())


@dataclass(frozen=True)
class Settings:
    """How a comparison is run: threads of the runtimes, cores ((): all), seconds in all.

    `warmup_seconds` are the most for an arm in a block, `blocks` is the least number of those.
    `cool_down` are seconds of rest between them, `timeout` those in which a process has to answer.
    """

    threads: int
    cores: tuple[int, ...] = ()
    seconds: float = 60.0
    blocks: int = 8
    turns: int = 8
    turn_ms: float = 20.0
    warmup_seconds: float = 3.0
    cool_down: float = 0.0
    timeout: float = 600.0


@dataclass(frozen=True)
class Held:
    """What one arm gave in one block: its turns in ms, and single figures by metric (ms, bytes).

    `moved` is by which share its running median still moved when the warm-up ended.
    """

    turns: tuple[tuple[float, ...], ...]
    singles: Mapping[str, float]
    moved: float = 0.0
    warnings: tuple[str, ...] = ()


class Blocks(Protocol):
    """Where blocks run: here in processes, or at a place."""

    provenance: Provenance

    def block(self, arms: Sequence[Arm], order: random.Random) -> Mapping[str, Held]:
        """Returns what each arm gave, by its name."""
        ...

    def environment(self) -> Mapping[str, str]:
        """Returns what the times depend on, as words."""
        ...


@dataclass(frozen=True)
class ArmResult(Serialisable):
    """One arm's figures: latency over all calls first, whose samples are medians of turns."""

    name: str
    runtime: str
    file: str
    sha256: str
    computed: str
    measurements: tuple[Measurement, ...]
    parity: tuple[Measurement, ...]
    notes: tuple[str, ...]

    def value(self, metric: str) -> float:
        """Returns the value of a metric; raises KeyError where it was not measured."""
        return self.measurement(metric).value

    def measurement(self, metric: str) -> Measurement:
        """Returns the measurement of a metric; raises KeyError where there is none."""
        found = {one.metric: one for one in self.measurements}
        return found[metric]


@dataclass(frozen=True)
class Bench(Serialisable):
    """The result: arms in the order given, each beside the first, and the floor between equals."""

    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    floor: float
    again: Ratio
    blocks: int
    calls: int
    provenance: Provenance
    environment: Mapping[str, str]
    warnings: tuple[str, ...]


def bench(
    arms: Sequence[Arm],
    where: Blocks,
    settings: Settings,
    progress: Callable[[str], None] = lambda step: None,
    keep: Callable[[Sequence[Trace]], None] = lambda traces: None,
) -> Bench:
    """Returns how the arms stand to the first; `keep` is given the traces, "again" among them.

    Raises StageFailed where an arm does not run, ValueError for no arms or names that repeat.
    """
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise ValueError("a comparison takes arms of different names, one at the least")
    again = replace(arms[0], name=f"{arms[0].name} {AGAIN}")
    every = (*arms, again)
    held = _run_blocks(every, where, settings, progress)
    traces = {
        arm.name: Trace(arm.name, tuple(one[arm.name].turns for one in held)) for arm in every
    }
    keep(tuple(traces.values()))
    base = traces[arms[0].name]
    same = block_ratio(traces[again.name], base)
    floor = noise_floor(same)
    told = where.environment()
    return Bench(
        arms=tuple(_result(arm, traces, held, where.provenance, told) for arm in arms),
        comparisons=tuple(compare_traces(base, traces[arm.name], floor) for arm in arms[1:]),
        floor=floor,
        again=same,
        blocks=len(held),
        calls=int(base.calls_ms.size),
        provenance=where.provenance,
        environment={**told, "threads": str(settings.threads)},
        warnings=_warnings(traces, base, same, settings, len(held)),
    )


def _run_blocks(
    arms: Sequence[Arm], where: Blocks, settings: Settings, progress: Callable[[str], None]
) -> list[Mapping[str, Held]]:
    """Returns the blocks: as many as are asked for, then on until narrow or over time."""
    order = random.Random(0)  # fixed, so that a run can be repeated
    started = now_seconds()
    held: list[Mapping[str, Held]] = []
    while True:
        progress(f"block {len(held) + 1}")
        held.append(where.block(arms, order))
        spent = now_seconds() - started
        if len(held) < max(settings.blocks, MIN_BLOCKS):
            continue
        if _narrow(arms, held) or spent * (1.0 + 1.0 / len(held)) > settings.seconds:
            return held


def _narrow(arms: Sequence[Arm], held: Sequence[Mapping[str, Held]]) -> bool:
    traces = [Trace(arm.name, tuple(one[arm.name].turns for one in held)) for arm in arms]
    ratios = [block_ratio(trace, traces[0], resamples=500) for trace in traces[1:]]
    return half_width(ratios) <= ENOUGH


# The result


def _result(
    arm: Arm,
    traces: Mapping[str, Trace],
    held: Sequence[Mapping[str, Held]],
    provenance: Provenance,
    environment: Mapping[str, str],
) -> ArmResult:
    trace = traces[arm.name]
    low, high = np.quantile(trace.calls_ms, (0.25, 0.75))
    own = [one[arm.name] for one in held]
    said = (
        *symptoms(trace),
        *_unsettled(own),
        *dict.fromkeys(w for one in own for w in one.warnings),
    )

    def measured(metric: str, value: float, unit: str, samples: Sequence[float]) -> Measurement:
        return Measurement(
            metric, value, unit, provenance, tuple(samples), artifact_sha256=arm.sha256
        )

    tail = percentiles(trace)
    turns = [float(np.median(turn)) for block in trace.blocks for turn in block]
    latency = replace(
        measured("latency_ms", tail["p50"], "ms", turns),
        interval=(float(low), float(high)),
        environment=dict(environment),
        warnings=said,
    )
    singles = []
    for metric in held[0][arm.name].singles:
        samples = [one[arm.name].singles[metric] for one in held]
        unit = "B" if metric.endswith("bytes") else "ms"
        value = max(samples) if unit == "B" else float(np.median(samples))
        singles.append(measured(metric, value, unit, samples))
    return ArmResult(
        name=arm.name,
        runtime=arm.runtime,
        file=arm.files[0].name,
        sha256=arm.sha256,
        computed=arm.computed,
        measurements=(
            latency,
            *(measured(f"{name}_ms", tail[name], "ms", ()) for name in ("p90", "p99")),
            *singles,
            measured("size_bytes", float(arm.bytes), "B", ()),
        ),
        parity=arm.parity,
        notes=arm.notes,
    )


def _unsettled(held: Sequence[Held]) -> tuple[str, ...]:
    moved = [one.moved for one in held if one.moved > STABLE_CHANGE]
    if not moved:
        return ()
    by = "too few turns to see it" if max(moved) == math.inf else f"by up to {max(moved):.0%}"
    return (
        f"warm-up not stable in {len(moved)} of {len(held)} blocks: the median still moved, {by}",
    )


def _warnings(
    traces: Mapping[str, Trace], base: Trace, same: Ratio, settings: Settings, blocks: int
) -> tuple[str, ...]:
    """Returns what makes the comparison doubtful as a whole."""
    said = []
    if not same.low <= 1.0 <= same.high:
        said.append(
            f"{base.name} is {same.value - 1:+.1%} from itself, interval [{same.low:.3f},"
            f" {same.high:.3f}]: the noise floor is as wide"
        )
    widest = half_width([block_ratio(t, base, resamples=500) for t in traces.values() if t != base])
    if widest > ENOUGH:
        said.append(
            f"after {blocks} blocks in {settings.seconds:g} s an interval is still ±{widest:.1%};"
            " more --seconds, or less beside it"
        )
    return tuple(said)


def speedup(found: Bench, name: str, metric: str) -> Measurement:
    """Returns how much faster the arm `name` is than the first: time of the first over its own."""
    one = next(one for one in found.comparisons if one.name == name)
    arms = {arm.name: arm for arm in found.arms}
    return Measurement(
        metric,
        1.0 / one.ratio.value,
        "ratio",
        found.provenance,
        interval=(1.0 / one.ratio.high, 1.0 / one.ratio.low),
        artifact_sha256=arms[name].sha256,
        environment=dict(found.environment),
        warnings=found.warnings,
        noise_floor=found.floor,
    )


def check_seconds(seconds: float) -> None:
    """Raises InputError for what is no time to measure in."""
    if not 1.0 <= seconds < math.inf:
        raise InputError(f"--seconds {seconds:g}: give a number of seconds from 1 on")


def turns_of(milliseconds: float, settings: Settings) -> int:
    """Returns how many calls make a turn."""
    return max(1, math.ceil(settings.turn_ms / milliseconds))
