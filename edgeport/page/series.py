"""Latencies from manifests and from `edgeport bench`, in one form that charts and tables take."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgeport.errors import InputError
from edgeport.traces import Ratio, Word
from edgeport.types import Measurement, Provenance

_STEADY = ("latency_ms", "latency_mean_ms")
TIMED: tuple[Provenance, ...] = ("device", "host")  # an emulator's or a model's time is none


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
class Standing:
    """How arm `name` stands to arm `base`: `speed` is how many times its speed, with the interval.

    `floor` is the noise floor as a share, by which two runs of one thing differ; None where it was
    not learned.
    """

    name: str
    base: str
    speed: Ratio
    verdict: Word
    floor: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms that were measured together, and how they stand to each other.

    `conditions` says what they ran on; `notes` and `warnings` are sentences.
    """

    title: str
    series: tuple[Series, ...]
    standings: tuple[Standing, ...] = ()
    conditions: str = ""
    notes: tuple[str, ...] = ()
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
    if measured.metric not in _STEADY or measured.provenance not in TIMED:
        return None
    mean = " (a mean)" if measured.metric == "latency_mean_ms" else ""
    return Series(f"{name}{mean}", measured.samples or (measured.value,), measured.provenance)


def figures_of(name: str, measured: Sequence[Measurement]) -> tuple[Figure, ...]:
    """Returns the other numbers that were really measured: never an emulated or modelled time."""
    return tuple(
        Figure(name, one)
        for one in measured
        if series_of(name, one) is None and one.provenance in TIMED
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
        if speedup.interval is None:
            raise ValueError(f"the speedup of {row['what']} has no interval")
        series = [series_of(name, one) for name, one in arms.items()]
        name, base = arms
        found.append(
            Comparison(
                row["what"],
                tuple(one for one in series if one is not None),
                (_standing(name, base, Ratio(speedup.value, *speedup.interval)),),
                f"onnxruntime fp32, {_conditions(arms[name])}",
                warnings=_warnings(arms),
            )
        )
    return tuple(found)


def _standing(name: str, base: str, speed: Ratio) -> Standing:
    """Returns what an interval alone says."""
    word: Word = "faster" if speed.low > 1 else "slower" if speed.high < 1 else "inconclusive"
    return Standing(name, base, speed, word)


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
        return _bench(document, f"Bench: {file.name}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not what edgeport bench --json writes ({type(error).__name__}: {error});"
            " write it again"
        ) from error


def _bench(document: Mapping[str, Any], title: str) -> tuple[Comparison, tuple[Figure, ...]]:
    result = document["result"]
    arms = {
        str(arm["name"]): [Measurement.from_dict(one) for one in arm["measurements"]]
        for arm in result["arms"]
    }
    timed = {
        name: one for name, ones in arms.items() for one in ones if series_of(name, one) is not None
    }
    found = Comparison(
        title,
        tuple(series for name, one in timed.items() if (series := series_of(name, one))),
        tuple(_bench_standing(one) for one in result["comparisons"]),
        _conditions(next(iter(timed.values()))) if timed else "",
        tuple(_bench_notes(document)),
        (*_warnings(timed), *result["warnings"]),
    )
    return found, tuple(one for name, ones in arms.items() for one in figures_of(name, ones))


def _bench_standing(table: Mapping[str, Any]) -> Standing:
    """Returns one comparison: the file has time over time."""
    if table["verdict"] not in get_args(Word):
        raise ValueError(f"unknown verdict {table['verdict']!r}")
    low, value, high = (float(table["ratio"][key]) for key in ("low", "value", "high"))
    speed = Ratio(1 / value, 1 / high, 1 / low)
    return Standing(table["name"], table["base"], speed, table["verdict"], float(table["floor"]))


def _bench_notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the noise floor, and whether the arms give the same: fast and wrong is not faster."""
    result = document["result"]
    first = result["arms"][0]["name"]
    yield f"Noise floor {float(result['floor']):.1%}: two runs of {first} differ by as much"
    for arm in result["arms"]:
        own = [m for m in map(Measurement.from_dict, arm["parity"]) if m.metric == "sqnr_db"]
        told = [f"{decibels(own[0].value)} to its reference"] if own else []
        if arm["name"] in document["likeness_db"]:
            told.append(f"{decibels(float(document['likeness_db'][arm['name']]))} to {first}")
        elif arm["name"] != first:
            told.append(f"other inputs or outputs than {first}")
        yield f"Parity of {arm['name']}: {' and '.join(told) or 'it has no reference'}"
        yield from (f"Note on {arm['name']}: {note}" for note in arm["notes"])


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
    return ", ".join([measured.origin, *(one for one in told if one)])


def _warnings(arms: Mapping[str, Measurement]) -> tuple[str, ...]:
    return tuple(f"{name}: {warning}" for name, one in arms.items() for warning in one.warnings)


def decibels(value: float) -> str:
    """Returns an SQNR in words: no noise at all is exact."""
    if math.isnan(value):
        return "not a number"
    return "exact" if value == math.inf else f"{value:.1f} dB"
