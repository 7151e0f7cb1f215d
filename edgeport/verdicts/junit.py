"""The verdicts as JUnit's XML: a suite a subject, a test case a claim.

The elements and attributes are those that Jenkins, GitLab and the readers in GitHub's actions
have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from xml.etree import ElementTree

from edgeport.types import Verdict
from edgeport.verdicts.words import (
    NOTHING_JUDGED,
    breaks,
    clean,
    judged,
    measured_text,
    unique_claims,
)

_NAME = "edgeport check"


def junit_xml(
    verdicts: Sequence[Verdict], *, strict: bool = False, places: Mapping[str, str] | None = None
) -> str:
    """Returns a `testsuites` document.

    What breaks the gate is a failure, other missing and inconclusive verdicts are skipped. Readers
    of the file do not see our exit code: where nothing was judged, a test case fails that says so.
    """
    root = ElementTree.Element("testsuites", name=_NAME)
    for subject, cases in _suites(verdicts, strict, places or {}):
        suite = ElementTree.SubElement(root, "testsuite", name=subject)
        suite.extend(cases)
        _count(suite)
    if not judged(verdicts):
        suite = ElementTree.SubElement(root, "testsuite", name=_NAME)
        case = ElementTree.SubElement(
            suite, "testcase", classname=_NAME, name="something was judged"
        )
        ElementTree.SubElement(case, "failure", message=NOTHING_JUDGED, type="nothing judged")
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="UTF-8"?>\n', "\n")
    )


def _suites(
    verdicts: Sequence[Verdict], strict: bool, places: Mapping[str, str]
) -> Iterator[tuple[str, list[ElementTree.Element]]]:
    named = sorted(zip(verdicts, unique_claims(verdicts)), key=lambda pair: clean(pair[0].subject))
    for subject, group in groupby(named, key=lambda pair: clean(pair[0].subject)):
        yield subject, [_case(one, name, strict, places) for one, name in group]


def _case(
    verdict: Verdict, name: str, strict: bool, places: Mapping[str, str]
) -> ElementTree.Element:
    """Returns the test case: GitLab knows it again by its class name and name together."""
    case = ElementTree.Element("testcase", classname=clean(verdict.subject), name=name)
    if verdict.subject in places:
        case.set("file", clean(places[verdict.subject]))
    told = _told(verdict)
    if verdict.outcome == "pass":
        ElementTree.SubElement(case, "system-out").text = told
        return case
    failed = breaks(verdict, strict)
    outcome = ElementTree.SubElement(case, "failure" if failed else "skipped")
    outcome.set("message", f"{verdict.outcome}: {clean(verdict.reason)}")
    outcome.set("type", verdict.outcome)
    outcome.text = told
    return case


def _told(verdict: Verdict) -> str:
    lines = {
        "measured": measured_text(verdict),
        "limit": verdict.limit,
        "found": verdict.reason,
        "why": verdict.why,
    }
    return "\n".join(f"{key}: {clean(text)}" for key, text in lines.items() if text)


def _count(element: ElementTree.Element) -> None:
    """Sets how many test cases an element holds, and what became of them."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for attribute, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", None)):
        name = outcome or attribute
        element.set(attribute, str(sum(case.find(name) is not None for case in cases)))
