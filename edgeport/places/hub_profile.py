"""Measurements and placement from the profile of an AI Hub job; its times are microseconds.

Source: qai_hub 0.56, `InferenceJob.download_profile`; the units are those that qai-hub-models
divides by (times by 1,000 for ms; memory is bytes).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgeport.types import UNITS, Measurement, NodeReport, Provenance, Unit

_FEW = 20  # samples; a median of fewer moves
# Our metric, AI Hub's name of all samples, and of its one estimate.
_TIMES = (
    ("latency_ms", "all_inference_times", "estimated_inference_time"),
    ("load_ms", "all_warm_load_times", "warm_load_time"),
    ("first_load_ms", "all_first_load_times", "first_load_time"),
)


def measurements(
    profile: Mapping[str, Any], provenance: Provenance, environment: Mapping[str, str]
) -> tuple[Measurement, ...]:
    """Returns latency_ms, load_ms, first_load_ms and peak_bytes, those that the profile has."""
    summary = profile.get("execution_summary", {})
    found = []
    for metric, every, one in _TIMES:
        samples = tuple(time / 1000 for time in summary.get(every) or () if time > 0)
        if not samples and not summary.get(one):  # 0 is protobuf's "not given"
            continue
        value = statistics.median(samples) if samples else summary[one] / 1000
        warnings = _warnings(metric, samples)
        found.append(
            Measurement(
                metric,
                value,
                "ms",
                provenance,
                samples,
                interval=_quartiles(samples),
                environment=dict(environment),
                warnings=warnings,
            )
        )
    peak = _peak_bytes(summary)
    if peak:
        found.append(
            Measurement("peak_bytes", float(peak), "B", provenance, environment=dict(environment))
        )
    return tuple(found)


def _warnings(metric: str, samples: Sequence[float]) -> tuple[str, ...]:
    if metric != "latency_ms":
        return ()
    if not samples:
        return ("AI Hub's own estimate: it gave no samples",)
    return (f"few samples: {len(samples)}",) if len(samples) < _FEW else ()


def _quartiles(samples: Sequence[float]) -> tuple[float, float] | None:
    if len(samples) < 4:
        return None
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


def _peak_bytes(summary: Mapping[str, Any]) -> int:
    """Returns the upper end of the peak while it ran; 0 where the profile has none."""
    peak = summary.get("inference_memory_peak_range")
    return int(peak[1] if peak else summary.get("estimated_inference_peak_memory") or 0)


def placement(profile: Mapping[str, Any]) -> tuple[NodeReport, ...]:
    """Returns where the phone's runtime ran each layer; one of an unknown unit is left out."""
    reports = []
    for layer in profile.get("execution_detail", ()):
        unit = _unit(layer["compute_unit"])
        if unit is not None:
            reports.append(NodeReport(layer["name"], layer["type"], unit))
    return tuple(reports)


def _unit(name: str) -> Unit | None:
    return next((unit for unit in UNITS if unit == name.lower()), None)


def placement_note(nodes: Sequence[NodeReport]) -> str:
    """Returns the counts per unit in words, with the layers that fell to the CPU by type."""
    units = Counter(node.unit for node in nodes)
    counts = ", ".join(f"{unit} {units[unit]}" for unit in UNITS)
    fallen = Counter(node.op for node in nodes if node.unit == "cpu")
    if not fallen or not units["npu"]:
        return f"{counts} layers"
    most = ", ".join(f"{op} x{count}" for op, count in fallen.most_common(5))
    return f"{counts} layers; on the cpu: {most}"
