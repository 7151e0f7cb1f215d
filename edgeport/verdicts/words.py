"""What the formats have in common: outcomes, numbers and headlines in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from edgeport.types import Measurement, Outcome, Verdict

OUTCOMES: Mapping[Outcome, str] = {
    "fail": "failed",
    "inconclusive": "inconclusive",
    "missing": "missing",
    "pass": "held",
}
"""Each outcome in words, what has to be looked at first."""

NOTHING_JUDGED = (
    "nothing was judged: no claim held and none failed, so this run says nothing about the model;"
    " measure what the claims ask for, or name a recipe or a source that declares claims"
)

_SUFFIXES = {"": "", "1": "", "share": "", "ratio": "x"}
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LEAST_DIGITS = 4
# What XML 1.0 cannot carry (section 2.2), and the marks that turn the direction of text.
_UNWRITABLE = re.compile(
    "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|[\u007f-\u009f\u202a-\u202e\u2066-\u2069]"
)


def breaks(verdict: Verdict, strict: bool) -> bool:
    """Returns whether this verdict alone makes the gate fail."""
    return verdict.outcome == "fail" or (strict and verdict.outcome != "pass")


def judged(verdicts: Sequence[Verdict]) -> bool:
    """Returns whether anything held or failed: else the run says nothing."""
    return any(one.outcome in ("pass", "fail") for one in verdicts)


def exit_code(verdicts: Sequence[Verdict], strict: bool = False) -> int:
    """Returns 0 where the gate held, else 1.

    A failed verdict, or nothing that was judged at all, is 1; a missing or inconclusive one is 1
    only if `strict`.
    """
    return int(not judged(verdicts) or any(breaks(one, strict) for one in verdicts))


def in_order(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Returns the verdicts, what has to be looked at first; otherwise as they came."""
    rank = list(OUTCOMES)
    return sorted(verdicts, key=lambda one: rank.index(one.outcome))


def headline(verdicts: Sequence[Verdict], strict: bool = False) -> str:
    """Returns how many verdicts have each outcome, and whether the gate held."""
    counts = Counter(one.outcome for one in verdicts)
    told = [f"{counts[outcome]} {words}" for outcome, words in OUTCOMES.items() if counts[outcome]]
    gate = "the gate failed" if exit_code(verdicts, strict) else "the gate held"
    text = f"{gate}: {', '.join(told) or 'no verdicts'}"
    if not judged(verdicts):
        return f"{text}; nothing was judged"
    if strict and not counts["fail"] and exit_code(verdicts, strict):
        return f"{text}; strict takes only what held"
    return text


def claim_text(verdict: Verdict) -> str:
    """Returns what was asked: the metric and its limit, which names the baseline that set it."""
    between = ", " if verdict.kind == "regression" else " "
    return f"{verdict.metric}{between}{verdict.limit}"


def unique_claims(verdicts: Sequence[Verdict]) -> list[str]:
    """Returns each verdict's claim, numbered where its subject has the same one before it."""
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for one in verdicts:
        text = clean(claim_text(one))
        seen[clean(one.subject), text] += 1
        count = seen[clean(one.subject), text]
        names.append(text if count == 1 else f"{text} ({count})")
    return names


def measured_text(verdict: Verdict) -> str:
    """Returns the number that decided, with unit, interval and provenance; "-" without one."""
    found = verdict.measurement
    if found is None:
        return "-"
    value = number_text(found.value, found.unit, verdict.limit)
    return f"{value}{_interval_text(found)} ({found.origin})"


def _interval_text(found: Measurement) -> str:
    if found.interval is None:
        return ""
    low, high = (number_text(bound, "") for bound in found.interval)
    return f" [{low}, {high}]"


def number_text(value: float, unit: str, limit: str = "") -> str:
    """Returns the number with its unit, with as many digits as tell it from those in `limit`.

    Infinite SQNR, where two tensors are the same, is "exact".
    """
    if math.isinf(value) and unit == "dB":
        return "exact" if value > 0 else "-inf dB"
    suffix = _SUFFIXES.get(unit, f" {unit}")
    if not math.isfinite(value):
        return f"{value}{suffix}"  # inf, -inf or nan
    bounds = {float(text) for text in _NUMBER.findall(limit.replace(",", ""))} - {value}
    texts = (_rounded(value, digits) for digits in range(_LEAST_DIGITS, 18))
    told = next((one for one in texts if float(one.replace(",", "")) not in bounds), f"{value!r}")
    return f"{told}{suffix}"


def _rounded(value: float, digits: int) -> str:
    """Returns at least `digits` significant digits; whole numbers are never rounded."""
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 15:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def clean(text: str) -> str:
    """Returns the text in one line, with U+FFFD for what not every reader can be given.

    That is what XML forbids, other control characters, and marks that would show text backwards.
    """
    return " ".join(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text).split())
