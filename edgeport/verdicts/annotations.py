"""The verdicts as workflow commands, which a GitHub runner shows as annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeport.types import Outcome, Verdict
from edgeport.verdicts.words import (
    NOTHING_JUDGED,
    OUTCOMES,
    breaks,
    claim_text,
    clean,
    in_order,
    judged,
)

_COMMANDS: Mapping[Outcome, str] = {"fail": "error", "inconclusive": "warning", "missing": "notice"}
_TITLE = "edgeport check"


def github_annotations(
    verdicts: Sequence[Verdict], *, strict: bool = False, places: Mapping[str, str] | None = None
) -> str:
    """Returns a line for each verdict that did not hold, errors first: a runner shows ten a kind.

    `places` maps a subject to the file that the annotation stands at, relative to the repository's
    root. If `strict`, missing and inconclusive are errors too.
    """
    lines = []
    if not judged(verdicts):
        lines.append(_command("error", {"title": _TITLE}, NOTHING_JUDGED))
    for one in in_order(verdicts):
        if one.outcome == "pass":
            continue
        command = "error" if breaks(one, strict) else _COMMANDS[one.outcome]
        title = f"{_TITLE}: {one.subject}: {OUTCOMES[one.outcome]}"
        properties = {"file": (places or {}).get(one.subject, ""), "title": title}
        lines.append(_command(command, properties, f"{claim_text(one)}: {one.reason}"))
    return "".join(f"{line}\n" for line in lines)


def _command(name: str, properties: Mapping[str, str], message: str) -> str:
    told = ",".join(f"{key}={_property(clean(text))}" for key, text in properties.items() if text)
    return f"::{name} {told}::{_data(clean(message))}"


def _data(text: str) -> str:
    """Returns a message as the runner reads it back: "%" begins an escape, a line end a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Returns a property's value: ":" would end the properties, "," this one."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
