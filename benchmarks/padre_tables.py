"""The tables of suite `padre`, made of its rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from benchmarks.padre import ARMS, CROSSING_GRIDS, FULL_GRIDS, GRIDS, NET_GRIDS, PADRE, THREADS
from benchmarks.tables import FULL, NOT_RUN, Results, Row, cell, markdown, number
from edgeport.measure import log_log_slope

SLOPE_GRIDS = (32, 64, 128)
RATIO = "ratio (95 % interval), below 1 PADRe loses"


def tables(results: Results) -> str:
    """Returns the tables of the rows that there are, in Markdown."""
    full = FULL_GRIDS if results.budget == FULL else ()
    block = sorted((*GRIDS, *CROSSING_GRIDS, *full))
    sections = {
        "One block, ms: median (first to third quartile)": _arm_table(
            results, "latency_ms", "block", GRIDS
        ),
        "One block at sizes between, ms": _arm_table(
            results, "latency_ms", "block", CROSSING_GRIDS
        ),
        "One block at more sizes (--full), ms": _arm_table(
            results, "latency_ms", "block", FULL_GRIDS
        ),
        "The whole net, ms": _arm_table(results, "latency_ms", "net", NET_GRIDS),
        f"Speedup of PADRe, one block: {RATIO}": _speedup_table(results, "block", block),
        f"Speedup of PADRe, the whole net: {RATIO}": _speedup_table(results, "net", NET_GRIDS),
        "Peak memory of one run, MB above the same process with the model loaded and not run": (
            _arm_table(results, "peak_bytes", "block", GRIDS)
        ),
        "Slope from 1,024 to 16,384 tokens: p in N^p": _slope_table(results),
        "Crossover: the number of tokens above which PADRe is faster": _crossover_list(
            results, block
        ),
        "Beside the paper": _paper_table(results),
        "Warnings of the harness, and how many arms have them": _warning_list(results),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in sections.items())


def _arm_table(results: Results, metric: str, part: str, grids: Sequence[int]) -> str:
    lines = []
    for arm in ARMS:
        rows = [_one(results.find(metric, arm, part=part, tokens=grid**2)) for grid in grids]
        lines.append([_label(arm), *(_cell_of(row) for row in rows)])
    return markdown(["arm", *(f"N = {grid**2:,}" for grid in grids)], lines)


def _label(arm: str) -> str:
    return arm if arm.startswith("torch") else f"onnxruntime, {arm}"


def _one(rows: list[Row]) -> Row | None:
    return rows[-1] if rows else None


def _cell_of(row: Row | None) -> str:
    if row is not None and row.metric == "peak_bytes" and row.value is not None:
        return f"{row.value / 1e6:,.1f}"
    return cell(row)


def _speedup_table(results: Results, part: str, grids: Sequence[int]) -> str:
    lines = []
    for grid in grids:
        for kind in ("onnxruntime", "torch"):
            found = [
                _one(results.find("speedup", arm, part=part, tokens=grid**2, against=kind))
                for arm in PADRE
            ]
            baseline = _label(found[0].parameters["baseline"]) if found[0] else kind
            lines.append([f"{grid**2:,}", baseline, *(cell(row, "x") for row in found)])
    return markdown(["N", "against the strongest in its runtime", *PADRE], lines)


def _slope_table(results: Results) -> str:
    lines = []
    for arm in ARMS:
        cells = []
        for metric in ("latency_ms", "peak_bytes"):
            rows = [
                _one(results.find(metric, arm, part="block", tokens=grid**2))
                for grid in SLOPE_GRIDS
            ]
            points = [(row.parameters["tokens"], row.value) for row in rows if row and row.value]
            cells.append(_slope(points))
        lines.append([_label(arm), *cells])
    return markdown(["arm", "time", "peak memory"], lines)


def _slope(points: list[tuple[int, float]]) -> str:
    if len(points) < 2:
        return NOT_RUN
    slope = f"{log_log_slope(*zip(*points)):.2f}"
    return slope if len(points) == len(SLOPE_GRIDS) else f"{slope} (up to {points[-1][0]:,})"


def _crossover_list(results: Results, grids: Sequence[int]) -> str:
    lines = []
    for arm in PADRE:
        for kind, whose in (
            ("onnxruntime", "onnxruntime's fastest attention"),
            ("torch", "torch's fused attention"),
            ("either", "the faster of the two"),
        ):
            points = [point for grid in grids if (point := _gain(results, arm, grid, kind))]
            lines.append(f"- {arm} against {whose}: {_crossover(points)}")
    return "\n".join(lines)


def _gain(results: Results, arm: str, grid: int, kind: str) -> tuple[int, float] | None:
    """Returns (tokens, speedup) over that attention; for `either`, over the faster fused one."""
    kinds = ("onnxruntime", "torch") if kind == "either" else (kind,)
    found = [
        row.value
        for row in results.find("speedup", arm, part="block", tokens=grid**2)
        if row.parameters["against"] in kinds and row.value is not None
    ]
    return (grid**2, min(found)) if found else None


def _crossover(points: list[tuple[int, float]]) -> str:
    """Returns where log(speedup) over log(N) crosses 1 for the last time, between two sizes."""
    if not points:
        return NOT_RUN
    (smallest, _), (largest, gain) = points[0], points[-1]
    if gain < 1:
        return f"none: PADRe is slower at {largest:,} tokens, the most measured"
    last = f"none: PADRe is faster at every size measured, from {smallest:,} to {largest:,} tokens"
    for (n0, g0), (n1, g1) in pairwise(points):
        if g0 < 1 <= g1:
            share = np.log(g0) / (np.log(g0) - np.log(g1))
            last = f"{n0 * (n1 / n0) ** share:,.0f} tokens (measured at {n0:,} and {n1:,})"
    return last


def _warning_list(results: Results) -> str:
    """Returns a line a size; what a warning says after its colon differs from arm to arm."""
    lines = []
    for group in dict.fromkeys(row.group for row in results.rows):
        rows = [row for row in results.find("latency_ms") if row.group == group]
        notes = [note for row in rows if row.value is not None for note in row.note.split("; ")]
        kinds = Counter(note.partition(":")[0] for note in notes if note)
        said = ", ".join(f"{kind} ({count} of {len(rows)})" for kind, count in kinds.items())
        lines.append(f"- {group}: {said or 'none'}")
    return "\n".join(lines) or NOT_RUN


def _paper_table(results: Results) -> str:
    lines = [
        [
            "the paper: 11x to 43x",
            "its own PADRe against standard self-attention, token counts not listed",
            "server GPU and mobile NPU (device), as published",
        ]
    ]
    where = f"host, CPU, onnxruntime fp32, {THREADS} threads"
    for arm in PADRE:
        for kind, over in (
            ("either", "one block over the fastest fused attention of onnxruntime and torch"),
            ("unfused", "one block over unfused attention in torch, where it fits"),
        ):
            points = [point for grid in GRIDS if (point := _gain(results, arm, grid, kind))]
            said = ", ".join(f"{number(gain)}x at {tokens:,}" for tokens, gain in points)
            lines.append([f"here, {arm}: {said or NOT_RUN}", over, where])
    return markdown(["speedup", "of what, over what", "provenance"], lines)
