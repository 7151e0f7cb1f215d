"""Suite `cli`: seconds of the tool itself, each command a whole process from start to exit."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import Results, Row, cell, markdown, timing_fields
from edgeport.errors import StageFailed
from edgeport.measure import environment, interleave
from edgeport.private import scratch_directory

SUITE = "cli"
EXPORT = ("export", "padre", "--device", "Samsung Galaxy S24", "--precision", "w8a16")
COLD, UNCHANGED = "export padre, nothing cached", "export padre, nothing changed"
TARGETS_S = {
    COLD: 60.0,
    UNCHANGED: 2.0,
    "list recipes": 0.3,
    "list devices": 0.3,
    "list runtimes": 0.3,
}
LIST_ROUNDS, EXPORT_ROUNDS = 20, 5


def run(results: Results, full: bool) -> None:
    """Measures what is not finished: the lists, then exports with and without a cache."""
    if not results.finished("list"):
        lists = {arm: _command(*arm.split()) for arm in TARGETS_S if arm.startswith("list")}
        results.add(_rows("list", lists, (2 if full else 1) * LIST_ROUNDS, results.budget))
    if not results.finished("export"):
        with scratch_directory() as folder:
            calls = _exports(folder)
            rounds = (2 if full else 1) * EXPORT_ROUNDS
            results.add(_rows("export", calls, rounds, results.budget))


def _rows(group: str, calls: dict[str, Callable[[], Any]], rounds: int, budget: str) -> list[Row]:
    print(f"running {group}", file=sys.stderr, flush=True)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    before = environment(threads)
    timings = interleave(calls, rounds=rounds, seconds=3600.0, warmup_seconds=0.0)
    return [
        Row(SUITE, group, arm, **timing_fields(timing), environment=before, budget=budget)
        for arm, timing in timings.items()
    ]


def _command(*arguments: str, **variables: str) -> Callable[[], Any]:
    """Returns a call that runs `edgeport` with these arguments and environment variables."""

    def call() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "edgeport", *arguments],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [""]
            raise StageFailed("benchmark", f"edgeport {arguments[0]} failed: {said[-1]}")

    return call


def _exports(folder: Path) -> dict[str, Callable[[], Any]]:
    """Returns both exports; the cold one has a new cache and a new output directory each time."""
    numbers = itertools.count()

    def cold() -> None:
        own = folder / str(next(numbers))
        _command(*EXPORT, "-o", str(own / "out"), EDGEPORT_CACHE_DIR=str(own / "cache"))()

    kept = folder / "kept"
    unchanged = _command(*EXPORT, "-o", str(kept / "out"), EDGEPORT_CACHE_DIR=str(kept / "cache"))
    unchanged()  # fills the cache
    return {COLD: cold, UNCHANGED: unchanged}


def tables(results: Results) -> str:
    """Returns the times beside their targets."""
    lines = []
    for arm, target in TARGETS_S.items():
        rows = results.find("latency_ms", arm)
        said = cell(rows[-1]) if rows else cell(None)
        runs = str(len(rows[-1].samples)) if rows else "0"
        held = "-" if not rows or rows[-1].value is None else _held(rows[-1].value, target)
        lines.append([f"edgeport {arm}", said, runs, f"{target * 1e3:,.0f}", held])
    said = (
        "Whole processes, ms: median (first to third quartile). The files of Python and of the\n"
        "libraries are in the system's file cache.\n\n"
    )
    return said + markdown(["command", "ms", "runs", "target", "held"], lines)


def _held(value_ms: float, target_s: float) -> str:
    return "yes" if value_ms <= target_s * 1e3 else "no"
