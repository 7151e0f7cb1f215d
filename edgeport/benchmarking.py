"""`edgeport bench` as a function: finds the arms, times them, and says it in words."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeport.bench import Bench, Settings, bench, check_seconds
from edgeport.blocks import HostBlocks, PlaceBlocks, likeness_db
from edgeport.errors import InputError
from edgeport.places import find_place
from edgeport.private import scratch_directory, write_text_atomic
from edgeport.report import sqnr_text
from edgeport.runtimes.worker import Limits
from edgeport.subjects import find_arms, job_at_place
from edgeport.traces import Comparison, Trace
from edgeport.types import Serialisable

COOL_DOWN_SECONDS = 10.0  # between blocks on a device
LIMITS = Limits(seconds=900.0, memory_bytes=16 << 30)


@dataclass(frozen=True)
class Benchmark(Serialisable):
    """A comparison with what was set, and how far each arm's outputs are from the first's in dB.

    `likeness_db` has no entry for an arm of other outputs.
    """

    result: Bench
    likeness_db: Mapping[str, float]
    settings: Settings

    def conditions(self) -> list[str]:
        """Returns under which conditions it ran, a line each."""
        told, one = self.result.environment, self.result
        where = told.get("board") or told.get("cpu", "")
        shown = {
            "os": told.get("os"),
            "cores": told.get("cores"),
            "governor": told.get("governor") or told.get("governors"),
            "load": told.get("load_average"),
        }
        rest = ", ".join(f"{key} {value}" for key, value in shown.items() if value)
        versions = ", ".join(
            f"{name} {told[name]}"
            for name in _VERSIONS
            if told.get(name, "not") != "not installed" and name in told
        )
        return [
            f"{one.provenance}: {where}, {rest}",
            f"threads {told['threads']}, {versions}",
            f"{one.blocks} blocks of {self.settings.turns} turns, {one.calls} calls an arm; warm-up"
            f" until stable, {self.settings.warmup_seconds:g} s an arm at most in each block",
        ]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yields the table's cells, an arm a row: times in ms, memory and size in MB."""
        for arm in self.result.arms:
            found = {one.metric: one.value for one in arm.measurements}
            first = found.get("first_ms", found.get("first_latency_ms"))
            times = (found.get("cold_ms"), found.get("load_ms"), first)
            tail = (found["latency_ms"], found["p90_ms"], found["p99_ms"])
            sizes = (found.get("peak_bytes"), found["size_bytes"])
            yield (
                arm.name,
                arm.runtime,
                arm.computed or "as it is",
                *(_milliseconds(value) for value in (*times, *tail)),
                *("-" if value is None else f"{value / 1e6:.1f}" for value in sizes),
                self.result.provenance,
            )

    def verdicts(self) -> Iterator[str]:
        """Yields the lines below the table: ratios and verdicts, the floor, parity, warnings."""
        one = self.result
        for found in one.comparisons:
            yield _verdict(found)
        yield (
            f"noise floor {one.floor:.1%}: {one.arms[0].name} beside itself"
            f" {one.again.value:.3f}x [{one.again.low:.3f}, {one.again.high:.3f}]"
        )
        yield f"parity: {'; '.join(self._parity())}"
        for arm in one.arms:
            yield from (f"note: {arm.name}: {note}" for note in arm.notes)
            yield from (f"warning: {arm.name}: {w}" for w in arm.measurement("latency_ms").warnings)
        yield from (f"warning: {warning}" for warning in one.warnings)

    def _parity(self) -> Iterator[str]:
        first = self.result.arms[0].name
        for arm in self.result.arms:
            own = [m for m in arm.parity if m.metric == "sqnr_db"]
            told = [f"{sqnr_text(own[0].value)} dB to its reference"] if own else []
            if arm.name in self.likeness_db:
                told.append(f"{sqnr_text(self.likeness_db[arm.name])} dB to {first}")
            elif arm.name != first:
                told.append(f"other inputs or outputs than {first}")
            yield f"{arm.name} {' and '.join(told) or 'has no reference'}"


_VERSIONS = ("onnxruntime", "ai-edge-litert", "executorch", "python")


def run_benchmark(
    subjects: Sequence[str],
    *,
    on: str = "local",
    runtime: str | None = None,
    threads: int = 0,
    cores: tuple[int, ...] = (),
    seconds: float = 60.0,
    blocks: int = 8,
    cool_down: float | None = None,
    samples_out: Path | None = None,
    limits: Limits = LIMITS,
    progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> Benchmark:
    """Returns how the subjects stand to the first; `options` are those of an export.

    `threads` of 0 is one a core that may be used, `cores` of () all. Raises InputError for bad
    settings and for what is nothing to time, StageFailed where an arm does not run.
    """
    _check(seconds, blocks, threads, cores, samples_out)
    if on.partition(":")[0] == "hub":
        raise InputError(
            "--on hub: each job of AI Hub is a session of its own, perhaps on another phone, so"
            " nothing there takes turns; edgeport run DIR --on hub times one export"
        )
    place = find_place(on)
    here = on == "local"
    rest = (0.0 if here else COOL_DOWN_SECONDS) if cool_down is None else cool_down
    settings = Settings(
        threads=threads or len(cores) or _cores_allowed(),
        cores=cores,
        seconds=seconds,
        blocks=blocks,
        cool_down=rest,
        timeout=limits.seconds,
    )
    with scratch_directory() as workdir:
        arms = find_arms(
            subjects, workdir, runtime, elsewhere=not here, progress=progress, **options
        )
        if here:
            where: HostBlocks | PlaceBlocks = HostBlocks(settings, workdir)
        else:
            place.check([arm.runtime for arm in arms])
            job = partial(job_at_place, limits=limits)
            where = PlaceBlocks(place, settings, workdir, job)
        found = bench(arms, where, settings, progress, partial(_keep, samples_out))
    first = arms[0].name
    likeness = {arm.name: likeness_db(where.outputs, first, arm.name) for arm in arms[1:]}
    return Benchmark(found, {k: v for k, v in likeness.items() if v is not None}, settings)


def _check(
    seconds: float, blocks: int, threads: int, cores: Sequence[int], samples_out: Path | None
) -> None:
    check_seconds(seconds)
    if not 6 <= blocks <= 1000:
        raise InputError(f"--blocks {blocks}: an interval takes 6 to 1000 blocks")
    if not 0 <= threads <= 1024:
        raise InputError(f"--threads {threads}: give a number from 1 on, or leave it out")
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(cores)
    if away := sorted(set(cores) - allowed):
        here = ", ".join(map(str, sorted(allowed)))
        raise InputError(f"--cores: this process may not use {away[0]}; it may use {here}")
    if samples_out is not None and (
        samples_out.is_dir() or not samples_out.absolute().parent.is_dir()
    ):
        raise InputError(f"--samples-out {samples_out}: name a file in a folder that is there")


def _keep(file: Path | None, traces: Sequence[Trace]) -> None:
    """Writes every call as CSV."""
    if file is None:
        return
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("arm", "block", "turn", "ms"))
    for trace in traces:
        for block, turns in enumerate(trace.blocks):
            for turn, calls in enumerate(turns):
                rows.writerows((trace.name, block, turn, f"{call:.6f}") for call in calls)
    write_text_atomic(file, text.getvalue())


def _cores_allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _verdict(found: Comparison) -> str:
    """Returns one comparison in words, a loss as plainly as a win."""
    ratio = found.ratio
    if found.verdict == "inconclusive":
        said = f"inconclusive: {ratio.value:.3f}x the time of"
    elif found.verdict == "faster":
        said = f"faster: {1 / ratio.value:.2f}x as fast as"
    else:
        said = f"slower: {ratio.value:.2f}x the time of"
    return (
        f"{found.name}: {said} {found.base} (time over time {ratio.value:.3f},"
        f" 95 % interval [{ratio.low:.3f}, {ratio.high:.3f}])"
    )


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
