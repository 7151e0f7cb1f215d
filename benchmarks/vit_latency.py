"""What ToSA and PADRe take in suite `vit`, beside their multiply-accumulates, for each runtime.

ToSA has to make the attention logits that fused attention never makes: whether fewer products are
less time depends on the runtime and on the number of tokens. An NPU is not here: its emulator's
times mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.tables import (
    FULL,
    NOT_RUN,
    Results,
    Row,
    cell,
    markdown,
    number,
    ratio_fields,
    timing_fields,
)
from benchmarks.vit_forms import ARMS, EXPLICIT, FUSED, RUNTIMES, Arm, write_graph, write_reference
from edgeport.measure import Timing, environment, ratio
from edgeport.private import scratch_directory
from edgeport.runtimes.worker import Limits, run_in_child

SUITE = "vit"
GRIDS = (8, 14, 24, 32)
FULL_GRIDS = (64,)
QUICK_GRIDS = (14, 32)  # for executorch, whose converter takes long; all of them with --full
THREADS = 1  # runtimes in one process would disturb each other by threads that wait for work
SECONDS = {"default": 6.0, "full": 40.0}
LONG_FROM = 32  # a grid with which a round of all arms takes long: more seconds for enough rounds
LIMITS = Limits(3600.0, 14 << 30)
FULLS = (FUSED, EXPLICIT)
FORMS = "benchmarks.vit_forms"

Groups = Iterator[tuple[str, Callable[[], Sequence[Row]]]]


def groups(budget: str) -> Groups:
    """Yields name and measurement of each runtime and number of tokens."""
    for grid in (*GRIDS, *(FULL_GRIDS if budget == FULL else ())):
        for runtime in RUNTIMES:
            if runtime != "executorch" or grid in QUICK_GRIDS or budget == FULL:
                group = f"latency {runtime} {grid**2}"
                seconds = SECONDS[budget] * (2 if grid >= LONG_FROM else 1)
                yield group, partial(measure, group, runtime, grid, seconds, budget)


def measure(group: str, runtime: str, grid: int, seconds: float, budget: str) -> list[Row]:
    """Returns latency, MACs, exactness and speedups of the arms that the runtime has."""
    told = environment(THREADS)
    arms = [arm for arm in ARMS if arm.runs_on(runtime)]
    with scratch_directory() as work:
        folders = {arm.name: str(work / str(index)) for index, arm in enumerate(arms)}
        for arm in arms:
            write_reference(arm, grid, Path(folders[arm.name]))
        macs, problems = _files(runtime, arms, grid, folders, work)
        given = {
            "runtime": runtime,
            "grid": grid,
            "folders": {arm: folder for arm, folder in folders.items() if arm not in problems},
            "threads": THREADS,
            "seconds": seconds,
        }
        found = _child("time_here", work, given)
    fields = [*macs, *_measured(problems, found)]
    common = {"budget": budget, "environment": told}
    return [
        Row(
            SUITE,
            group,
            arm,
            parameters={"runtime": runtime, "tokens": grid**2, **one.pop("parameters", {})},
            **common,
            **one,
        )
        for arm, one in fields
    ]


def _files(
    runtime: str, arms: Sequence[Arm], grid: int, folders: Mapping[str, str], work: Path
) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, str]]:
    """Writes the runtime's files; returns rows of their MACs and, by arm, what could not be made.

    One child compiles all arms, so that the converter is imported once.
    """
    if runtime == "torch":
        return [], {}
    counts = [(arm.name, write_graph(arm, grid, runtime, Path(folders[arm.name]))) for arm in arms]
    macs = [(arm, {"metric": "macs", "value": float(one), "unit": "1"}) for arm, one in counts]
    given = {"runtime": runtime, "folders": dict(folders)}
    return macs, {} if runtime == "onnx" else dict(_child("compile_here", work, given))


def _child(function: str, work: Path, arguments: Mapping[str, Any]) -> Any:
    return run_in_child(
        f"{FORMS}:{function}", arguments, stage="latency", workdir=work, limits=LIMITS
    )


def _measured(
    problems: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    none = {"metric": "latency_ms", "value": None, "unit": "ms"}
    for arm, why in problems.items():
        yield arm, {**none, "note": why}
    timings: dict[str, Timing] = {}
    for arm, one in found.items():
        yield arm, {"metric": "sqnr_db", "value": one["sqnr_db"], "unit": "dB"}
        if "timing" not in one:
            yield arm, {**none, "note": f"not timed: {one['sqnr_db']:.0f} dB from torch"}
            continue
        table = {key: _tuples(value) for key, value in one["timing"].items()}
        timings[arm] = Timing(**table)
        yield arm, timing_fields(timings[arm])
    yield from _speedups(timings)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _speedups(timings: Mapping[str, Timing]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each arm's speedup over each form of the full network."""
    for baseline in FULLS:
        for arm, timing in timings.items():
            if baseline in timings and arm not in FULLS:
                gain = ratio_fields(ratio(timings[baseline], timing))
                yield arm, {**gain, "parameters": {"against": baseline}}


# The tables


def tables(results: Results) -> str:
    """Returns milliseconds, and whether fewer products are less time."""
    grids = (*GRIDS, *(FULL_GRIDS if results.budget == FULL else ()))
    head = ["tokens", "network", "MACs, M", *(f"{one}, ms" for one in RUNTIMES)]
    lines = [_line(results, arm, grid) for grid in grids for arm in ARMS]
    gains = [_gains(results, arm, grid) for grid in grids for arm in ARMS if arm.name not in FULLS]
    said = (
        f"One pair of layers, 192 channels, 3 heads, float32, {THREADS} thread, this machine:"
        " median (first to third quartile). In onnxruntime every attention whose logits nobody"
        " reads is fused, but for `explicit logits`; LiteRT and ExecuTorch have no fused one."
    )
    asked = (
        "Is the MAC saving a time saving? MACs of the full network over the arm's, then its times"
        " over the arm's (95 % interval): below 1 the arm is slower."
    )
    return "\n\n".join([said, markdown(head, lines), asked, markdown(_GAINS, gains)])


_OVER = (
    ("torch", FUSED),
    ("torch", EXPLICIT),
    ("onnx", FUSED),
    ("onnx", EXPLICIT),
    ("tflite", EXPLICIT),
    ("executorch", EXPLICIT),
)
_GAINS = ("tokens", "network", "MACs", *(f"{one}, over {form}" for one, form in _OVER))


def _line(results: Results, arm: Arm, grid: int) -> list[str]:
    cells = [
        cell(_one(results, "latency_ms", arm.name, grid, runtime=runtime))
        if arm.runs_on(runtime)
        else "no such form"
        for runtime in RUNTIMES
    ]
    macs = _macs(results, arm.name, grid)
    return [f"{grid**2:,}", arm.name, NOT_RUN if macs is None else number(macs / 1e6), *cells]


def _gains(results: Results, arm: Arm, grid: int) -> list[str]:
    cells = [
        cell(_one(results, "speedup", arm.name, grid, runtime=runtime, against=form), "x")
        for runtime, form in _OVER
    ]
    full, own = _macs(results, EXPLICIT, grid), _macs(results, arm.name, grid)
    share = NOT_RUN if full is None or own is None else f"{number(full / own)}x"
    return [f"{grid**2:,}", arm.name, share, *cells]


def _macs(results: Results, arm: str, grid: int) -> float | None:
    """Returns the count of the graph that onnxruntime takes."""
    row = _one(results, "macs", arm, grid, runtime="onnx")
    return None if row is None else row.value


def _one(results: Results, metric: str, arm: str, grid: int, **more: str) -> Row | None:
    rows = results.find(metric, arm, tokens=grid**2, **more)
    return rows[-1] if rows else None
