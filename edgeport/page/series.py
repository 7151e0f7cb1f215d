"""Latencies from manifests and from `edgeport bench`, in one form that charts and tables take."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.errors import InputError
from edgeport.measure import Ratio
from edgeport.types import Measurement, Provenance

_STEADY = ("latency_ms", "latency_mean_ms")
_TIMED: tuple[Provenance, ...] = ("device", "host")  # an emulator's or a model's time is none


@dataclass(frozen=True)
class Series:
    """Milliseconds per call of one arm; a single sample where only a figure was given."""

    name: str
    samples_ms: tuple[float, ...]
    provenance: Provenance

    @property
    def median_ms(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples_ms)


@dataclass(frozen=True)
class Comparison:
    """Arms that were measured together.

    `ratio` says how many times faster the first is than the second. `conditions` says what they ran
    on, `warnings` are the measurements' own.
    """

    title: str
    series: tuple[Series, ...]
    ratio: Ratio | None = None
    conditions: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A measured number that is no distribution: a load, a first inference, a peak of memory."""

    what: str
    measurement: Measurement


def series_of(name: str, measured: Measurement) -> Series | None:
    """Returns the distribution of a steady latency; None for what is no measured latency.

    Emulated and modelled times are none.
    """
    if measured.metric not in _STEADY or measured.provenance not in _TIMED:
        return None
    mean = " (a mean)" if measured.metric == "latency_mean_ms" else ""
    return Series(f"{name}{mean}", measured.samples or (measured.value,), measured.provenance)


def figures_of(name: str, measured: Sequence[Measurement]) -> tuple[Figure, ...]:
    """Returns the other numbers that were really measured: never an emulated or modelled time."""
    return tuple(
        Figure(name, one)
        for one in measured
        if series_of(name, one) is None and one.provenance in _TIMED
    )


def exported_comparisons(manifest: Mapping[str, Any]) -> tuple[Comparison, ...]:
    """Returns what an export measured on this machine against the recipe's baseline."""
    found = []
    for row in manifest["run"]["latency"]:
        arms = {
            manifest["source"]["variant"]: Measurement.from_dict(row["variant"]),
            manifest["baseline"]: Measurement.from_dict(row["baseline"]),
        }
        speedup = Measurement.from_dict(row["speedup"])
        assert speedup.interval is not None
        series = [series_of(name, one) for name, one in arms.items()]
        first = next(iter(arms.values()))
        found.append(
            Comparison(
                row["what"],
                tuple(one for one in series if one is not None),
                Ratio(speedup.value, *speedup.interval),
                f"onnxruntime fp32, {_conditions(first)}",
                _warnings(arms),
            )
        )
    return tuple(found)


def placed_comparison(manifest: Mapping[str, Any]) -> Comparison | None:
    """Returns the latencies that places measured, not against each other; None without any."""
    named = [(name, one) for name, ones in _placed(manifest) for one in ones]
    series = [found for name, one in named if (found := series_of(name, one)) is not None]
    if not series:
        return None
    warned = {name: one for name, one in named if series_of(name, one) is not None}
    return Comparison("where the files were run", tuple(series), warnings=_warnings(warned))


def placed_figures(manifest: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Returns the other numbers that places measured."""
    return tuple(figure for name, ones in _placed(manifest) for figure in figures_of(name, ones))


def _placed(manifest: Mapping[str, Any]) -> list[tuple[str, list[Measurement]]]:
    return [
        (
            f"{run['artifact']['runtime']} on {run['place']}",
            [Measurement.from_dict(one) for one in run["measurements"]],
        )
        for run in manifest["run"]["places"]
    ]


def read_bench(file: Path) -> tuple[Comparison, tuple[Figure, ...]]:
    """Returns what `edgeport bench --json` wrote; raises InputError where it is something else."""
    document = read_json(file, "what edgeport bench --json wrote")
    try:
        return _bench(document, file.name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not what edgeport bench --json writes ({type(error).__name__}: {error});"
            " write it again"
        ) from error


def _bench(document: Mapping[str, Any], title: str) -> tuple[Comparison, tuple[Figure, ...]]:
    arms = [
        (str(arm["name"]), [Measurement.from_dict(one) for one in arm["measurements"]])
        for arm in document["arms"]
    ]
    named = [(name, one) for name, ones in arms for one in ones]
    timed = {name: one for name, one in named if series_of(name, one) is not None}
    series = tuple(found for name, one in timed.items() if (found := series_of(name, one)))
    figures = tuple(figure for name, ones in arms for figure in figures_of(name, ones))
    conditions = _conditions(next(iter(timed.values()))) if timed else ""
    return Comparison(title, series, None, conditions, _warnings(timed)), figures


def read_json(file: Path, what: str) -> Any:
    """Returns the JSON document in a file; raises InputError naming `what` it should be."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); give {what}") from None


def _conditions(measured: Measurement) -> str:
    """Returns where and when it was measured, as far as the measurement says."""
    environment = measured.environment
    told = [
        f"{environment['threads']} threads" if "threads" in environment else "",
        environment.get("cpu", ""),
        environment.get("utc", "").replace("T", " ").replace("+00:00", " UTC"),
    ]
    return ", ".join([measured.provenance, *(one for one in told if one)])


def _warnings(arms: Mapping[str, Measurement]) -> tuple[str, ...]:
    return tuple(f"{name}: {warning}" for name, one in arms.items() for warning in one.warnings)
