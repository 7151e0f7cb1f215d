"""The baseline: one JSON line for each number that was accepted, on which machine, and why.

Lines are sorted and have their keys in one order, so that a change is a diff that can be reviewed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from edgeport.errors import InputError
from edgeport.gate import Known
from edgeport.private import write_text_atomic
from edgeport.types import Measurement, plain

OWN = Path("edgeport-baseline.jsonl")
SHIPPED = Path("benchmarks/baseline.jsonl")  # in a checkout of edgeport


def default_baseline() -> Path:
    """Returns the baseline of the current folder; in a checkout of edgeport its own."""
    return SHIPPED if SHIPPED.is_file() and not OWN.is_file() else OWN


def read_baseline(file: Path) -> list[Known]:
    """Returns the lines of a baseline, none where there is no file.

    Raises InputError, with the line's number, for one that is none of ours.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    known = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                known.append(_from_json(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(
                    f"{file}, line {number}, is no line of a baseline; restore it, or write it"
                    " again with --update-baseline --why"
                ) from None
    return known


def updated(
    before: Sequence[Known],
    measured: Sequence[tuple[str, Measurement]],
    machine: str,
    why: str,
) -> list[Known]:
    """Returns the baseline with the numbers of now for the subjects that were measured.

    A number that did not change keeps its line, and with it its reason.
    """
    subjects = {subject for subject, _ in measured}
    kept = [one for one in before if one.subject not in subjects]
    old = {(one.subject, one.metric, one.provenance): one for one in before}
    for subject, one in measured:
        timed = one.noise_floor is not None
        fresh = Known(
            subject=subject,
            metric=one.metric,
            value=one.value,
            unit=one.unit,
            provenance=one.provenance,
            interval=one.interval if timed else None,
            noise_floor=one.noise_floor,
            machine=machine if timed else "",
            why=why,
        )
        known = old.get((subject, one.metric, one.provenance))
        kept.append(known if known is not None and known.value == one.value else fresh)
    return sorted(kept, key=lambda one: (one.subject, one.metric, one.provenance))


def write_baseline(file: Path, known: Sequence[Known]) -> str:
    """Writes the baseline whole and returns what changed, as a unified diff."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    after = "".join(json.dumps(plain(one)) + "\n" for one in known)
    write_text_atomic(file, after)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(file), str(file), n=0, lineterm=""
    )
    return "\n".join(lines)


def _from_json(line: str) -> Known:
    table = json.loads(line)
    interval = table["interval"]
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    return Known(**{**table, "value": float(table["value"]), "interval": ends})
