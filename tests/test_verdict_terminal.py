"""What the gate says on a terminal, as JSON, and what every format does to text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from verdict_texts import FAILED, HELD, LISTS, MISSING, TEXTS

from edgeport.types import Measurement, Verdict
from edgeport.verdicts import (
    reason_lines,
    table,
    to_json,
)
from edgeport.verdicts.words import clean, measured_text

# Drawing five verdicts of several texts takes long on a busy machine.
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_table_and_the_reasons_show_names_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.console import Console

    odd = replace(FAILED, subject="[red]net[/]\nnext")
    Console(width=160, highlight=False).print(table([HELD, odd]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        *("failed", "[red]net[/]", "next", "size_bytes:onnx"),
        *("<=", "1e+06", "(host)", "1,234,567", "B", "(host)"),
    ]
    reasons = reason_lines([HELD, odd, MISSING])
    assert [one.partition(":")[0] for one in reasons] == ["failed", "missing", "the gate failed"]
    assert any("nothing was judged:" in one for one in reason_lines([]))


def test_a_narrow_terminal_cuts_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=60, highlight=False).print(table([FAILED]))
    out = capsys.readouterr().out
    assert "…" not in out
    told = FAILED.subject + FAILED.metric + FAILED.limit + measured_text(FAILED)
    assert not Counter("".join(told.split())) - Counter(out)  # folded, in pieces, but all there


def test_json_is_one_document_with_inf_as_text() -> None:
    exact = replace(HELD, measurement=replace(HELD.measurement, value=float("inf")))
    document = json.loads(to_json([exact, MISSING], strict=True))
    assert document["exit_code"] == 1
    assert document["outcomes"] == {"fail": 0, "inconclusive": 0, "missing": 1, "pass": 1}
    first, second = document["verdicts"]
    assert Measurement.from_dict(first["measurement"]).value == float("inf")
    assert second["measurement"] is None


@ANY
@given(LISTS)
def test_json_for_any_names_and_numbers(verdicts: list[Verdict]) -> None:
    document = json.loads(to_json(verdicts), parse_constant=lambda name: pytest.fail(name))
    assert [one["outcome"] for one in document["verdicts"]] == [one.outcome for one in verdicts]


@given(TEXTS)
def test_clean_text_is_one_line_of_what_everybody_can_read(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert cleaned == clean(cleaned)
    assert len(cleaned.splitlines()) <= 1
    assert not set("\x00\x1b\ufffe\u202e\ud800") & set(cleaned)
    assert clean("a\n\x1bb \U0001f600") == "a \ufffdb \U0001f600"
