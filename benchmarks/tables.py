"""Rows of results as JSON lines, and the Markdown tables that are printed from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeport.measure import Ratio, Timing
from edgeport.types import Provenance, Serialisable

NOT_RUN = "not run"
DEFAULT, FULL = "default", "full"


@dataclass(frozen=True)
class Row(Serialisable):
    """One number of one arm; rows of one group were measured together and are written together.

    `value` is None where the arm could not run, and `note` says why. `samples` are rounded.
    """

    suite: str
    group: str
    arm: str
    metric: str
    value: float | None
    unit: str
    provenance: Provenance = "host"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    samples: tuple[float, ...] = ()
    note: str = ""
    budget: str = DEFAULT
    environment: Mapping[str, str] = field(default_factory=dict)


class Results:
    """The rows in a file; groups that are in it with this budget count as finished."""

    def __init__(self, path: Path, budget: str, fresh: bool = False) -> None:
        self.path, self.budget = path, budget
        # What is there is dropped with the first group that finishes, not before.
        self._mode = "w" if fresh else "a"
        kept = path.exists() and not fresh
        lines = path.read_text(encoding="utf-8").splitlines() if kept else []
        read = [Row(**json.loads(line)) for line in lines if line.strip()]
        self.rows = [row for row in read if row.budget == budget]

    def finished(self, group: str) -> bool:
        """Returns whether the group's rows are there."""
        return any(row.group == group for row in self.rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Appends a finished group's rows to the file, in one write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open(self._mode, encoding="utf-8") as file:
            file.write("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
        self._mode = "a"
        self.rows.extend(rows)

    def find(self, metric: str, arm: str | None = None, **parameters: Any) -> list[Row]:
        """Returns the rows of a metric, of one arm if given, that have these parameters."""
        return [
            row
            for row in self.rows
            if row.metric == metric
            and arm in (None, row.arm)
            and all(row.parameters.get(key) == value for key, value in parameters.items())
        ]


def timing_fields(timing: Timing) -> dict[str, Any]:
    """Returns value, interval (the quartiles), samples and warnings of a timing for a row."""
    return {
        "metric": "latency_ms",
        "value": timing.median_ms,
        "unit": "ms",
        "interval": timing.iqr_ms,
        "samples": tuple(float(f"{sample:.4g}") for sample in timing.samples_ms),
        "note": "; ".join(timing.warnings),
    }


def ratio_fields(gain: Ratio) -> dict[str, Any]:
    """Returns value and 95 % interval of a speedup for a row."""
    return {
        "metric": "speedup",
        "value": gain.value,
        "unit": "ratio",
        "interval": (gain.low, gain.high),
    }


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are aligned in plain text too."""
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    ruled = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in ruled
    )


def number(value: float) -> str:
    """Returns three significant digits without an exponent."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def cell(row: Row | None, suffix: str = "") -> str:
    """Returns value and interval of a row, its note where it has no value, or `not run`."""
    if row is None:
        return NOT_RUN
    if row.value is None:
        return row.note
    text = number(row.value) + suffix
    if row.interval is None:
        return text
    return f"{text} ({number(row.interval[0])} to {number(row.interval[1])})"


def environment_line(environment: Mapping[str, str]) -> str:
    """Returns in one line what the timings of a run depend on."""
    return ", ".join(f"{key} {value}" for key, value in environment.items())
