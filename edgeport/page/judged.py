"""A recipe's claims beside what became of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgeport.errors import InputError
from edgeport.page.series import read_json
from edgeport.types import Claim, Measurement, Outcome, Verdict

Judged = Literal["pass", "fail", "missing", "inconclusive", "not judged"]


@dataclass(frozen=True)
class ClaimRow:
    """One claim, or one number beside the baseline's; `why` holds the paper's figure."""

    metric: str
    limit: str
    accepts: str
    outcome: Judged
    reason: str
    why: str


def read_verdicts(file: Path) -> tuple[Verdict, ...]:
    """Returns the verdicts of `edgeport check --json`, or of a JSON list of them.

    Raises InputError where the file holds something else.
    """
    what = "what edgeport check --json wrote"
    document = read_json(file, what)
    try:
        listed = document["verdicts"] if isinstance(document, dict) else document
        return tuple(_verdict(one) for one in listed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is not {what} ({type(error).__name__}: {error})") from error


def _verdict(table: Mapping[str, Any]) -> Verdict:
    measured = table.get("measurement")
    verdict = Verdict(
        **{
            **table,
            "measurement": None if measured is None else Measurement.from_dict(measured),
        }
    )
    if verdict.outcome not in get_args(Outcome):
        raise ValueError(f"unknown outcome {verdict.outcome!r}")
    return verdict


def claim_rows(
    subject: str,
    claims: Sequence[Claim],
    verdicts: Sequence[Verdict],
    files: Collection[str],
) -> tuple[ClaimRow, ...]:
    """Returns the claims in their order, judged or not, then the subject's other verdicts.

    `files` are the sha256 of the export's: a verdict on another file says so.
    """
    own = [one for one in verdicts if is_about(one.subject, subject)]
    own.sort(key=lambda one: not _on_these(one, files))
    rows = []
    for claim in claims:
        verdict = next((one for one in own if _judges(one, claim)), None)
        if verdict is not None:
            own.remove(verdict)
        rows.append(
            ClaimRow(
                claim.metric,
                f"{claim.op} {claim.limit:g}" if verdict is None else verdict.limit,
                " or ".join(claim.provenance),
                "not judged" if verdict is None else verdict.outcome,
                "" if verdict is None else _reason(verdict, subject, files),
                claim.why,
            )
        )
    others = (
        ClaimRow(v.metric, v.limit, "", v.outcome, _reason(v, subject, files), v.why) for v in own
    )
    return (*rows, *others)


def is_about(subject: str, name: str) -> bool:
    """Returns whether a verdict's subject is this source, at any setting: "padre w8a16 on s24"."""
    return subject == name or subject.startswith(f"{name} ")


def _on_these(verdict: Verdict, files: Collection[str]) -> bool:
    judged = verdict.measurement.artifact_sha256 if verdict.measurement else ""
    return judged in ("", *files)


def _reason(verdict: Verdict, name: str, files: Collection[str]) -> str:
    """Returns what was found, with the setting, and whether it was found on other files."""
    setting = "" if verdict.subject == name else f"{verdict.subject}: "
    return f"{setting}{verdict.reason}{'' if _on_these(verdict, files) else '; not on these files'}"


def _judges(verdict: Verdict, claim: Claim) -> bool:
    """Returns whether it is this claim's verdict: two claims may be on the same metric."""
    same = verdict.kind == "claim" and verdict.metric == claim.metric
    return same and verdict.why in ("", claim.why)
