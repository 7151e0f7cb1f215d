"""The verdicts as markdown: a table, and below it what was found where a claim did not hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeport.types import Verdict
from edgeport.verdicts.words import (
    NOTHING_JUDGED,
    OUTCOMES,
    claim_text,
    clean,
    headline,
    in_order,
    judged,
    measured_text,
)

_COLUMNS = ("outcome", "model", "claim", "measured", "why")
# Any of these may be escaped (CommonMark 2.4), and they mean something within a line: "$" begins a
# formula, "|" ends a cell.
_PUNCTUATION = re.compile(r"([\\`*_\[\]<>|~&$])")
# A name behind "@" would be told, a number behind "#" or "!" linked. An escape does not prevent
# that; an empty comment in between does.
_CALLS = re.compile(r"([@#!])(?=\w)")


def markdown(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Returns a heading, the table with one row a verdict, and the reasons of what did not hold."""
    ordered = in_order(verdicts)
    lines = [f"### edgeport check: {headline(verdicts, strict)}", ""]
    if not judged(verdicts):
        lines += [f"**{_prose(NOTHING_JUDGED)}.**", ""]
    if ordered:
        lines += [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
        lines += [_row(_cells(one)) for one in ordered]
        lines.append("")
    reasons = [_reason(one) for one in ordered if one.outcome != "pass"]
    if reasons:
        lines += ["What was found:", "", *reasons, ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    outcome = OUTCOMES[verdict.outcome]
    return (
        f"**{outcome}**" if verdict.outcome == "fail" else outcome,
        _name(verdict.subject),
        _name(claim_text(verdict)),
        _prose(measured_text(verdict)),
        _prose(verdict.why) or "-",
    )


def _reason(verdict: Verdict) -> str:
    what = f"{_name(verdict.subject)}, {_name(claim_text(verdict))}"
    return f"- {OUTCOMES[verdict.outcome]}: {what}: {_prose(verdict.reason)}"


def _name(text: str) -> str:
    """Returns a name or an expression as code, where code can show it."""
    text = clean(text)
    return f"`{text}`" if text and not set(text) & set("`|\\") else _prose(text)


def _prose(text: str) -> str:
    """Returns the text as markdown that shows it as it is, in one line and in a table's cell."""
    return _CALLS.sub(r"\1<!-- -->", _PUNCTUATION.sub(r"\\\1", clean(text)))
