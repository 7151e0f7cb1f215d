"""What the gate says: outcomes, numbers, and each format as its own readers read it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from verdict_texts import EACH, FAILED, HELD, INCONCLUSIVE, LISTS, MISSING

from edgeport.types import Measurement, Verdict
from edgeport.verdicts import (
    exit_code,
    github_annotations,
    headline,
    junit_xml,
    markdown,
    sarif,
)
from edgeport.verdicts.words import claim_text, clean, measured_text, number_text

# Drawing five verdicts of several texts takes long on a busy machine.
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Outcomes and numbers in words


@pytest.mark.parametrize(
    ("verdicts", "code", "strict_code"),
    [
        ([], 1, 1),
        ([MISSING], 1, 1),
        ([MISSING, INCONCLUSIVE], 1, 1),
        ([HELD], 0, 0),
        ([HELD, MISSING], 0, 1),
        ([HELD, INCONCLUSIVE], 0, 1),
        ([HELD, FAILED], 1, 1),
        ([FAILED], 1, 1),
    ],
)
def test_exit_codes(verdicts: list[Verdict], code: int, strict_code: int) -> None:
    assert exit_code(verdicts) == code
    assert exit_code(verdicts, strict=True) == strict_code
    assert ("the gate held" in headline(verdicts)) == (code == 0)
    assert ("the gate held" in headline(verdicts, strict=True)) == (strict_code == 0)


@pytest.mark.parametrize(
    ("value", "unit", "limit", "text"),
    [
        (40.31234, "dB", ">= 30", "40.31 dB"),
        (29.99996, "dB", ">= 30 dB", "29.99996 dB"),  # "30.00" would not be below 30
        (30.0, "dB", ">= 30 dB", "30 dB"),
        (float("inf"), "dB", ">= 30 dB", "exact"),
        (float("-inf"), "dB", "", "-inf dB"),
        (float("inf"), "ms", "", "inf ms"),
        (float("nan"), "dB", "", "nan dB"),
        (1234567.0, "B", "<= 1,000,000", "1,234,567 B"),
        (0.0, "ops", "<= 0", "0 ops"),
        (4.6249, "ratio", "", "4.625x"),
        (0.00123456, "1", "", "0.001235"),
        (1.5e-9, "1", "", "1.5e-09"),
        (12345.678, "ms", "", "12,346 ms"),
        (0.76349, "share", ">= 0.7635", "0.76349"),
    ],
)
def test_numbers(value: float, unit: str, limit: str, text: str) -> None:
    assert number_text(value, unit, limit) == text


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1.0, 1 + 1e-6, 1 - 1e-6]))
def test_a_number_never_reads_as_the_limit_that_it_is_not(limit: float, near: float) -> None:
    value = limit * near
    text = number_text(value, "", f">= {limit!r}").replace(",", "")
    assert value == limit or float(text) != limit


def test_a_measured_number_has_interval_and_provenance() -> None:
    assert measured_text(INCONCLUSIVE) == "1.031x [0.9900, 1.060] (host)"
    assert measured_text(MISSING) == "-"


# JUnit


def cases(text: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text.encode()).iter("testcase"))


def outcome_of(case: ElementTree.Element) -> str:
    return next((one.tag for one in case if one.tag in ("failure", "skipped")), "passed")


def test_junit_says_what_failed_and_what_was_skipped() -> None:
    found = {(one.get("classname"), outcome_of(one)) for one in cases(junit_xml(EACH))}
    assert found == {
        ("padre", "passed"),
        ("padre", "skipped"),
        ("models/net.onnx", "failure"),
    }
    strict = Counter(outcome_of(one) for one in cases(junit_xml(EACH, strict=True)))
    assert strict == {"passed": 1, "failure": 3}


def test_junit_read_by_its_own_library() -> None:
    junitparser = pytest.importorskip("junitparser", reason="needs junitparser")
    text = junit_xml(EACH, places={"padre": "recipes/padre/recipe.py"})
    suites = junitparser.JUnitXml.fromstring(text.encode())
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (4, 1, 0, 2)
    assert {suite.name: suite.tests for suite in suites} == {"padre": 3, "models/net.onnx": 1}
    found = {case.name: case for suite in suites for case in suite}
    failed = found["size_bytes:onnx <= 1e+06 (host)"]
    (result,) = failed.result
    assert isinstance(result, junitparser.Failure)
    assert result.message == "fail: size_bytes:onnx 1,234,567 B (host)"
    assert "why: the app's budget is 1 MB" in result.text
    held = found["sqnr_db:qnn_context_binary >= 30 (emulated)"]
    assert held.is_passed
    assert "measured: 40.31 dB (emulated)" in held.system_out
    assert 'file="recipes/padre/recipe.py"' in text


@pytest.mark.parametrize("verdicts", [[], [MISSING]])
def test_junit_fails_where_nothing_was_judged(verdicts: list[Verdict]) -> None:
    *others, last = cases(junit_xml(verdicts))
    assert outcome_of(last) == "failure"
    assert {outcome_of(one) for one in others} <= {"skipped"}
    assert "nothing was judged" not in junit_xml([HELD, MISSING])


@ANY
@given(LISTS)
def test_junit_is_xml_and_counts_whatever_the_names(verdicts: list[Verdict]) -> None:
    for strict in (False, True):
        root = ElementTree.fromstring(junit_xml(verdicts, strict=strict).encode())
        found = list(root.iter("testcase"))
        own = [one for one in found if one.get("classname") != "edgeport check"]
        assert len(own) == len(verdicts)
        keys = [(one.get("classname"), one.get("name")) for one in own]
        assert len(set(keys)) == len(keys)
        bad = sum(outcome_of(one) == "failure" for one in found)
        assert int(root.get("failures", "")) == bad
        assert (bad > 0) == (exit_code(verdicts, strict) == 1)


# SARIF


def run_of(text: str) -> dict[str, Any]:
    log = json.loads(text)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    return run


def test_sarif_has_a_rule_a_metric_and_a_result_for_what_did_not_hold() -> None:
    run = run_of(sarif(EACH, places={"padre": "recipes/my padre/recipe.py"}))
    levels = {one["ruleId"]: one["level"] for one in run["results"]}
    assert levels == {
        "size_bytes:onnx": "error",
        "speedup:onnx": "warning",
        "speedup_over_attention": "note",
    }
    rules = [one["id"] for one in run["tool"]["driver"]["rules"]]
    assert rules == sorted({*levels, "sqnr_db:qnn_context_binary"})
    for rule in run["tool"]["driver"]["rules"]:
        assert rule["help"]["text"].count(".") >= 2
    places = {
        one["ruleId"]: one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for one in run["results"]
    }
    assert places["speedup:onnx"] == "recipes/my%20padre/recipe.py"
    assert places["size_bytes:onnx"] == "edgeport.toml"
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]


def test_sarif_if_strict_and_where_nothing_was_judged() -> None:
    levels = {one["level"] for one in run_of(sarif(EACH, strict=True))["results"]}
    assert levels == {"error"}
    (invocation,) = run_of(sarif([MISSING]))["invocations"]
    assert not invocation["executionSuccessful"]
    assert "nothing was judged" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def marks(verdicts: Sequence[Verdict]) -> list[str]:
    results = run_of(sarif(verdicts))["results"]
    return [one["partialFingerprints"]["primaryLocationLineHash"] for one in results]


def test_an_alert_stays_the_same_when_its_number_moves_and_no_other_has_it() -> None:
    worse = replace(
        FAILED,
        limit="<= 2e+06 (host)",
        reason="worse",
        measurement=Measurement("size_bytes:onnx", 9e9, "B", "host"),
    )
    assert marks([FAILED]) == marks([worse])
    others = [
        replace(FAILED, subject="other.onnx"),
        replace(FAILED, metric="size_bytes:tflite"),
        replace(FAILED, kind="regression"),
        FAILED,
        FAILED,
    ]
    assert len(set(marks(others))) == len(others)


@ANY
@given(LISTS, st.booleans())
def test_sarif_holds_together_whatever_the_names(verdicts: list[Verdict], strict: bool) -> None:
    text = sarif(verdicts, strict=strict)
    text.encode("ascii")
    run = run_of(text)
    rules = [one["id"] for one in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert len(run["results"]) == sum(one.outcome != "pass" for one in verdicts)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"] == clean(result["message"]["text"])
    assert len(set(marks(verdicts))) == len(run["results"])


# Markdown


def rows_of(text: str) -> list[list[str]]:
    """Returns the text of the table's cells as a CommonMark parser with GitHub's tables has it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            rows[-1].append(shown(token))
    return rows


def shown(token: Any) -> str:
    """Returns what is read of a line: html_inline is the comment that keeps @ from calling."""
    kept = []
    for one in token.children or ():
        if one.type == "html_inline":
            assert one.content == "<!-- -->"
        else:
            assert one.type in (
                "text",
                "text_special",
                "code_inline",
                "strong_open",
                "strong_close",
            )
            kept.append(one.content)
    return "".join(kept)


def test_markdown_is_a_table_that_people_read() -> None:
    text = markdown(EACH)
    assert text.startswith("### edgeport check: the gate failed: 1 failed, 1 inconclusive,")
    first, failed, inconclusive, missing, held = rows_of(text)
    assert first == ["outcome", "model", "claim", "measured", "why"]
    assert failed == [
        "failed",
        "models/net.onnx",
        "size_bytes:onnx <= 1e+06 (host)",
        "1,234,567 B (host)",
        "the app's budget is 1 MB",
    ]
    assert inconclusive[3] == "1.031x [0.9900, 1.060] (host)"
    assert missing[4] == "the paper: 11x to 43x faster than self-attention"
    assert held[0] == "held"
    assert "- missing: `padre`, `speedup_over_attention >= 11 (device)`: nothing measured" in text


def test_markdown_calls_nobody_and_says_that_nothing_was_judged() -> None:
    text = markdown([replace(FAILED, why="@team fixes #12", subject="@org/net|a")])
    assert "@team" not in text
    assert "#12" not in text
    assert "**nothing was judged" in markdown([MISSING])
    assert "nothing was judged" not in text


@ANY
@given(LISTS)
def test_markdown_shows_every_text_as_it_is(verdicts: list[Verdict]) -> None:
    rows = rows_of(markdown(verdicts))
    assert len(rows) == (len(verdicts) + 1 if verdicts else 0)
    expected = Counter(
        (clean(one.subject), clean(claim_text(one)), clean(one.why) or "-") for one in verdicts
    )
    assert Counter((row[1], row[2], row[4]) for row in rows[1:]) == expected


# Annotations


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Returns the commands as a runner reads them: properties end at "::", each at a comma."""

    def read(value: str, *escapes: tuple[str, str]) -> str:
        for escape, meaning in (*escapes, ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            value = value.replace(escape, meaning)
        return value

    found = []
    for line in text.split("\n")[:-1]:
        assert line.startswith("::")
        head, _, message = line[2:].partition("::")
        name, _, told = head.partition(" ")
        pairs = [one.partition("=") for one in told.split(",")]
        properties = {key: read(value, ("%3A", ":"), ("%2C", ",")) for key, _, value in pairs}
        found.append((name, properties, read(message)))
    return found


def test_annotations_have_errors_first_and_a_file_where_it_is_known() -> None:
    found = commands(github_annotations(EACH, places={"padre": "a,b:c%/recipe.py"}))
    assert [name for name, _, _ in found] == ["error", "warning", "notice"]
    error, warning, _ = found
    assert error[1] == {"title": "edgeport check: models/net.onnx: failed"}
    assert error[2] == "size_bytes:onnx <= 1e+06 (host): size_bytes:onnx 1,234,567 B (host)"
    assert warning[1]["file"] == "a,b:c%/recipe.py"
    strict = commands(github_annotations(EACH, strict=True))
    assert {name for name, _, _ in strict} == {"error"}
    assert github_annotations([HELD]) == ""
    (nothing,) = commands(github_annotations([]))
    assert nothing[0] == "error"
    assert "nothing was judged" in nothing[2]


@ANY
@given(LISTS)
def test_annotations_are_read_back_as_they_were(verdicts: list[Verdict]) -> None:
    text = github_annotations(verdicts, places={one.subject: one.why for one in verdicts})
    assert text.isascii() or len(text.splitlines()) == text.count("\n")
    found = commands(text)
    told = Counter(message for _, _, message in found if "nothing was judged" not in message)
    expected = [clean(f"{claim_text(one)}: {one.reason}") for one in verdicts]
    assert told == Counter(
        message for message, one in zip(expected, verdicts) if one.outcome != "pass"
    )
    for _, properties, _ in found:
        assert set(properties) <= {"file", "title"}
