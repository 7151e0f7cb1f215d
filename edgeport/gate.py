"""Judges measurements by claims and by a baseline; pure.

What was not measured is `missing`, what lies within the noise is `inconclusive`: neither is a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeport.types import Claim, Measurement, Outcome, Provenance, Serialisable, Verdict
from edgeport.verdicts.words import number_text

Better = Literal["less", "more"]


@dataclass(frozen=True)
class Rule:
    """How a number may move against the baseline: which way is better, and by how much worse.

    `tolerance` is in the metric's own unit; None is for ratios of times, which have a noise floor.
    """

    better: Better
    tolerance: float | None


RULES: Mapping[str, Rule] = {
    "size_bytes": Rule("less", 0.0),
    "cpu_ops": Rule("less", 0.0),
    "peak_activation_bytes": Rule("less", 0.0),
    "sqnr_db": Rule("more", 0.5),
    "speedup": Rule("more", None),
    "psnr_db": Rule("more", 0.5),
    "psnr_loss_db": Rule("less", 0.5),
    "ssim": Rule("more", 0.01),
    "top1": Rule("more", 0.005),
    "top1_loss": Rule("less", 0.5),  # points
    "ap50_loss": Rule("less", 0.5),  # points
    "top1_of_mixing": Rule("more", 0.5),
    "ap50_of_mixing": Rule("more", 0.5),
    "absrel": Rule("less", 0.005),
    "absrel_growth": Rule("less", 0.5),  # percent
    "macs_saving": Rule("more", 0.02),  # percent
    "macs_saving_onehot": Rule("more", 0.02),
    "selector_overlap_gain": Rule("more", 0.02),
}
OTHER = Rule("more", 0.005)
"""For what a user's own metric gives: shares such as accuracy, half a point."""
MARGIN = 0.05
"""What a ratio of times may fall where the noise floor is lower: two days differ by as much."""


@dataclass(frozen=True)
class Known(Serialisable):
    """A number of the baseline: what was measured once and accepted, on what, and why.

    `machine` is what a ratio of times depends on; it is empty for numbers that no machine changes.
    """

    subject: str
    metric: str
    value: float
    unit: str
    provenance: Provenance
    interval: tuple[float, float] | None = None
    noise_floor: float | None = None
    machine: str = ""
    why: str = ""


def judge_claims(
    subject: str, claims: Sequence[Claim], measured: Sequence[Measurement]
) -> list[Verdict]:
    """Returns a verdict for each claim: the worst of the measurements that it is about decides."""
    return [_judge_claim(subject, claim, measured) for claim in claims]


def judge_changes(
    subject: str,
    known: Sequence[Known],
    measured: Sequence[Measurement],
    machine: str,
    rules: Mapping[str, Rule] = RULES,
) -> list[Verdict]:
    """Returns a verdict for each number of the baseline of this subject.

    `machine` is the one of now; `rules` are by metric, without what it is of.
    """
    found = {(one.metric, one.provenance): one for one in measured}
    return [
        _judge_change(one, found.get((one.metric, one.provenance)), machine, rules)
        for one in known
        if one.subject == subject
    ]


def about(claimed: str, measured: str) -> bool:
    """Returns whether a claim's metric is about a measured one: the same, or of any."""
    return measured == claimed or measured.startswith(f"{claimed}:")


# A claim


def _judge_claim(subject: str, claim: Claim, measured: Sequence[Measurement]) -> Verdict:
    limit = f"{claim.op} {claim.limit:g} ({' or '.join(claim.provenance)})"

    def verdict(outcome: Outcome, reason: str, one: Measurement | None = None) -> Verdict:
        return Verdict(subject, "claim", claim.metric, outcome, limit, reason, claim.why, one)

    found = [one for one in measured if about(claim.metric, one.metric)]
    accepted = [one for one in found if one.provenance in claim.provenance]
    if not accepted:
        if not found:
            return verdict("missing", "nothing measured it here")
        where = ", ".join(sorted({one.provenance for one in found}))
        return verdict("missing", f"measured as {where} only")
    outcomes = [(_held(claim, one), one) for one in accepted]
    order: Sequence[Outcome] = ("fail", "inconclusive", "pass")
    outcome, worst = min(
        outcomes, key=lambda pair: (order.index(pair[0]), _margin(claim, pair[1].value))
    )
    return verdict(outcome, _found(worst, limit), worst)


def _held(claim: Claim, one: Measurement) -> Outcome:
    """Returns whether the number holds the limit; a time's ratio with all of its noise."""
    if math.isnan(one.value):
        return "fail"
    low, high = _reach(one)
    if claim.op == ">=":
        return "pass" if low >= claim.limit else "fail" if high < claim.limit else "inconclusive"
    return "pass" if high <= claim.limit else "fail" if low > claim.limit else "inconclusive"


def _reach(one: Measurement) -> tuple[float, float]:
    """Returns between which ends the number may lie: itself, unless it is a ratio of times."""
    if one.noise_floor is None:
        return one.value, one.value
    low, high = one.interval or (one.value, one.value)
    width = 1.0 + one.noise_floor
    return min(low, one.value / width), max(high, one.value * width)


def _margin(claim: Claim, value: float) -> float:
    return value - claim.limit if claim.op == ">=" else claim.limit - value


def _found(one: Measurement, limit: str = "") -> str:
    text = f"{one.metric} {number_text(one.value, one.unit, limit)}"
    if one.interval is not None and one.noise_floor is not None:
        text += f" [{one.interval[0]:.3g}, {one.interval[1]:.3g}], floor {one.noise_floor:.1%}"
    return f"{text} ({one.origin})"


# A change


def _judge_change(
    known: Known, now: Measurement | None, machine: str, rules: Mapping[str, Rule]
) -> Verdict:
    rule = rules.get(known.metric.partition(":")[0], OTHER)
    before = f"baseline {number_text(known.value, known.unit)}"

    def verdict(outcome: Outcome, reason: str) -> Verdict:
        limit = f"{before}, {_allowed(rule, known.unit)}"
        return Verdict(
            known.subject, "regression", known.metric, outcome, limit, reason, known.why, now
        )

    if now is None:
        return verdict("missing", f"the baseline has it as {known.provenance}, this run does not")
    if rule.tolerance is None:
        if known.machine != machine:
            return verdict("inconclusive", f"the baseline is of another machine: {known.machine}")
        return verdict(*_judge_ratio(known, now, rule))
    if math.isnan(now.value):
        return verdict("fail", f"{known.metric} is not a number")
    worse = (now.value - known.value) * (1.0 if rule.better == "less" else -1.0)
    if math.isnan(worse):  # both are infinite: exact before and now
        worse = 0.0
    if worse > rule.tolerance:
        return verdict("fail", f"{_found(now)}: {number_text(worse, known.unit)} worse")
    better = worse < -rule.tolerance
    return verdict("pass", _found(now) + (": better; --update-baseline keeps it" if better else ""))


def _judge_ratio(known: Known, now: Measurement, rule: Rule) -> tuple[Outcome, str]:
    """Returns whether a ratio of times fell, by more than the noise of both of its measurements.

    Their intervals are independent: the change's is their root of squares, on the log scale.
    """
    change = math.log(now.value / known.value) * (1.0 if rule.better == "more" else -1.0)
    floor = max(known.noise_floor or 0.0, now.noise_floor or 0.0, MARGIN)
    least = -math.log1p(floor)
    error = math.hypot(_half_log(known.interval, known.value), _half_log(now.interval, now.value))
    moved = f"{_found(now)}: {math.expm1(change):+.1%} against the baseline"
    if change + error < 0.0 and change < least:
        return "fail", f"{moved}, where {math.expm1(least):+.1%} is allowed"
    if change - error > least:
        return "pass", moved
    allowed = math.expm1(least)
    return "inconclusive", f"{moved} ± {error:.1%}, where {allowed:+.1%} is allowed: more --seconds"


def _half_log(interval: tuple[float, float] | None, value: float) -> float:
    if interval is None:
        return 0.0
    return max(math.log(interval[1] / value), math.log(value / interval[0]))


def _allowed(rule: Rule, unit: str) -> str:
    if rule.tolerance is None:
        return f"less by the noise floor or {MARGIN:.0%} at most"
    way = "more" if rule.better == "less" else "less"
    if rule.tolerance == 0.0:
        return f"no {way}"
    return f"{number_text(rule.tolerance, unit)} {way} at most"
