"""LiteRT's `benchmark_model` on a phone: it times a .tflite file and gives no outputs.

Source of the format: tensorflow/lite/tools/benchmark, as versions from 2.3 to 2.20 print it. Times
are in microseconds, large means with an exponent; logs may stand behind a prefix on each line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeport.errors import StageFailed
from edgeport.measure import WANTED_SAMPLES, WIDE_SPREAD
from edgeport.places.keeper import last_line
from edgeport.types import Measurement, Provenance

_NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?)"
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER},"
    rf" Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_RUNS = re.compile(rf"\bcount=(\d+)((?: \w+={_NUMBER})*)")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_GROWTH = re.compile(
    r"(?:Memory footprint delta from the start of the tool|Peak memory footprint)"
    rf" \(MB\): init={_NUMBER} overall={_NUMBER}"
)
_MEGABYTE = 2**20  # the tool divides kilobytes by 1024


@dataclass(frozen=True)
class Report:
    """What the tool measured: microseconds over `count` runs, and bytes; None where not told."""

    init_us: float
    first_us: float
    mean_us: float
    count: int
    min_us: float
    max_us: float
    std_us: float
    median_us: float | None
    peak_bytes: float | None
    growth_bytes: float | None


def arguments(graph: str, threads: int, timed_seconds: float, limit_seconds: float) -> list[str]:
    """Returns the tool's flags; it ignores, with a line, those that its version does not know."""
    return [
        f"--graph={graph}",
        f"--num_threads={threads}",
        "--warmup_runs=5",
        "--warmup_min_secs=0.5",
        "--num_runs=50",
        f"--min_secs={timed_seconds:g}",
        f"--max_secs={limit_seconds:g}",
        "--report_peak_memory_footprint=true",
    ]


def parse(text: str) -> Report:
    """Returns what the tool printed; raises StageFailed with its last line where it did not run."""
    summary = _SUMMARY.search(text)
    runs = list(_RUNS.finditer(text))
    if summary is None or not runs:
        raise StageFailed("run", f"benchmark_model measured nothing: {last_line(text)}")
    init_us, first_us, _, mean_us = (float(number) for number in summary.groups())
    # The first line of this form is the warm-up's. One run has neither spread nor extremes.
    told = {name: float(number) for name, number in re.findall(rf"(\w+)={_NUMBER}", runs[-1][2])}
    peak, growth = _PEAK.search(text), _GROWTH.search(text)
    return Report(
        init_us,
        first_us,
        mean_us,
        int(runs[-1][1]),
        told.get("min", mean_us),
        told.get("max", mean_us),
        told.get("std", 0.0),
        told.get("median"),
        float(peak[1]) * _MEGABYTE if peak else None,
        float(growth[2]) * _MEGABYTE if growth else None,
    )


def measurements(
    report: Report, provenance: Provenance, environment: Mapping[str, str]
) -> tuple[Measurement, ...]:
    """Returns the report's figures; a mean is not called a latency's median."""
    surroundings = {
        **environment,
        "tool": "benchmark_model",
        "runs": str(report.count),
        "min_ms": f"{report.min_us / 1e3:g}",
        "max_ms": f"{report.max_us / 1e3:g}",
        "std_ms": f"{report.std_us / 1e3:g}",
    }
    warnings = ["a mean: benchmark_model gives no samples"]
    if report.count < WANTED_SAMPLES:
        warnings.append(f"few runs: {report.count}, where {WANTED_SAMPLES} or more are wanted")
    if report.std_us > WIDE_SPREAD * report.mean_us:
        share = report.std_us / report.mean_us
        warnings.append(f"wide spread: the standard deviation is {share:.0%} of the mean")
    values = {
        "latency_ms": (_ms(report.median_us), "ms"),
        "latency_mean_ms": (_ms(report.mean_us), "ms"),
        "first_latency_ms": (_ms(report.first_us), "ms"),
        "load_ms": (_ms(report.init_us), "ms"),
        "peak_bytes": (report.peak_bytes, "B"),
        "memory_growth_bytes": (report.growth_bytes, "B"),
    }
    return tuple(
        Measurement(
            metric,
            value,
            unit,
            provenance,
            environment=surroundings,
            warnings=tuple(warnings) if metric == "latency_mean_ms" else (),
        )
        for metric, (value, unit) in values.items()
        if value is not None
    )


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3
