"""The verdicts as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeport.types import Outcome, Verdict
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

if TYPE_CHECKING:
    from rich.table import Table

_STYLES: Mapping[Outcome, str] = {
    "fail": "bold red",
    "inconclusive": "yellow",
    "missing": "yellow",
    "pass": "green",
}


def table(verdicts: Sequence[Verdict]) -> Table:
    """Returns the table: outcome, model, metric, limit, and what was measured where."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("outcome", "model", "metric", "limit", "measured"):
        made.add_column(title, no_wrap=title == "outcome", overflow="fold")  # nothing is cut
    for one in in_order(verdicts):
        cells = (one.subject, one.metric, one.limit, measured_text(one))
        made.add_row(
            Text(OUTCOMES[one.outcome], style=_STYLES[one.outcome]),
            *(Text(clean(cell)) for cell in cells),  # a Text: names are no markup
        )
    return made


def reason_lines(verdicts: Sequence[Verdict], strict: bool = False) -> list[str]:
    """Returns the lines below the table: what was found where a claim did not hold, the result."""
    lines = []
    for one in in_order(verdicts):
        if one.outcome != "pass":
            what = f"{one.subject}: {claim_text(one)}: {one.reason}"
            lines.append(f"{OUTCOMES[one.outcome]}: {clean(what)}")
    if not judged(verdicts):
        lines.append(NOTHING_JUDGED)
    return [*lines, headline(verdicts, strict)]
