"""The verdicts as SARIF 2.1.0, which code scanning on GitHub and editors show as alerts.

An alert is opened by a result and closed by its absence in a later run, so what held is no result.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import edgeport
from edgeport.types import Outcome, Verdict, plain
from edgeport.verdicts.words import (
    NOTHING_JUDGED,
    breaks,
    claim_text,
    clean,
    exit_code,
    judged,
    measured_text,
)

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: Mapping[Outcome, str] = {"fail": "error", "inconclusive": "warning", "missing": "note"}

# What a metric means and what to do when it fails, by its name before the colon.
_HELP = {
    "sqnr_db": (
        "How far the outputs are from torch's: signal over error, in dB; more is nearer.",
        "`edgeport bisect DIR` names the first tensor where two stages part, `edgeport"
        " sensitivity SOURCE` the layers that lose most when quantized.",
    ),
    "max_abs": (
        "The largest difference between an output and torch's.",
        "`edgeport compare DIR` shows it for every stage, `edgeport bisect DIR` where it begins.",
    ),
    "cpu_ops": (
        "How many operators the device runs on its CPU because its NPU or GPU does not take them.",
        "`edgeport doctor SOURCE` names each one, the reason, and what would fix it.",
    ),
    "size_bytes": (
        "The size of the files that go to the device.",
        "A smaller precision, such as w8a8 in place of w8a16, or fewer weights.",
    ),
    "peak_activation_bytes": (
        "The most memory that tensors between the operators take at once, by their liveness.",
        "Smaller inputs, or fewer tensors that are kept for a later operator.",
    ),
    "speedup": (
        "How many times faster the model is than a baseline measured in the same run.",
        "`edgeport doctor SOURCE` names the operators that do not run on the NPU, and why.",
    ),
    "latency_ms": (
        "How long one inference takes.",
        "`edgeport doctor SOURCE` names the operators that do not run on the NPU, and why.",
    ),
    "": (
        "A number that a claim or a baseline holds.",
        "The reason says what was measured; a limit that no longer fits is changed with its why.",
    ),
}


def sarif(
    verdicts: Sequence[Verdict],
    *,
    strict: bool = False,
    places: Mapping[str, str] | None = None,
    default_place: str = "edgeport.toml",
) -> str:
    """Returns a SARIF log: a rule a metric, a result for each verdict that did not hold.

    `places` maps a subject to the file that declares it, relative to the repository's root;
    code scanning refuses a result without one, so others get `default_place`. Levels: failed is an
    error, inconclusive a warning, missing a note; if `strict`, all are errors.
    """
    metrics = sorted({clean(one.metric) for one in verdicts})
    open_ones = [one for one in verdicts if one.outcome != "pass"]
    results = [
        _result(
            one,
            metrics.index(clean(one.metric)),
            "error" if breaks(one, strict) else _LEVELS[one.outcome],
            (places or {}).get(one.subject, default_place),
            mark,
        )
        for one, mark in zip(open_ones, _fingerprints(open_ones))
    ]
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "edgeport",
                        "semanticVersion": edgeport.__version__,
                        "rules": [_rule(metric) for metric in metrics],
                    }
                },
                "invocations": [_invocation(verdicts, strict)],
                "columnKind": "unicodeCodePoints",
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _invocation(verdicts: Sequence[Verdict], strict: bool) -> dict[str, Any]:
    """Returns how the run ended: one that judged nothing was no success, and says so."""
    told: dict[str, Any] = {
        "executionSuccessful": judged(verdicts),
        "exitCode": exit_code(verdicts, strict),
    }
    if not judged(verdicts):
        told["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": NOTHING_JUDGED}}
        ]
    return told


def _rule(metric: str) -> dict[str, Any]:
    meaning, remedy = _HELP.get(metric.partition(":")[0], _HELP[""])
    return {
        "id": metric,
        "shortDescription": {"text": f"{metric} holds its limit"},
        "fullDescription": {"text": meaning},
        "help": {
            "text": f"{meaning} {remedy}".replace("`", ""),
            "markdown": f"{meaning}\n\n{remedy}",
        },
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["edgeport"]},
    }


def _result(
    verdict: Verdict, rule: int, level: str, place: str, fingerprint: str
) -> dict[str, Any]:
    # Code scanning shows no fingerprint but this one. Its uploader computes it from a line of the
    # file, and leaves ours alone, only where the location has no line: two claims in one file would
    # be the same alert.
    return {
        "ruleId": clean(verdict.metric),
        "ruleIndex": rule,
        "level": level,
        "message": {"text": _message(verdict)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": quote(clean(place))}}}],
        "partialFingerprints": {
            "primaryLocationLineHash": f"{fingerprint[:16]}:1",
            "edgeportVerdict/v1": fingerprint,
        },
        "properties": {
            "subject": clean(verdict.subject),
            "kind": verdict.kind,
            "outcome": verdict.outcome,
            "limit": clean(verdict.limit),
            "why": clean(verdict.why),
            "measured": clean(measured_text(verdict)),
            "value": plain(verdict.measurement.value) if verdict.measurement else None,
        },
    }


def _message(verdict: Verdict) -> str:
    text = f"{verdict.subject}: {claim_text(verdict)}: {verdict.outcome}: {verdict.reason}"
    return clean(f"{text} (why: {verdict.why})" if verdict.why else text)


def _fingerprints(verdicts: Sequence[Verdict]) -> list[str]:
    """Returns a mark for each verdict that stays the same when its limit or number changes."""
    seen: Counter[tuple[str, str, str]] = Counter()
    marks = []
    for one in verdicts:
        key = (clean(one.subject), one.kind, clean(one.metric))
        seen[key] += 1
        marks.append(hashlib.sha256(json.dumps([*key, seen[key]]).encode()).hexdigest())
    return marks
