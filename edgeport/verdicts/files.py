"""The gate's outputs: files, annotations, one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from edgeport.errors import InputError
from edgeport.private import write_text_atomic
from edgeport.types import Verdict
from edgeport.verdicts.annotations import github_annotations
from edgeport.verdicts.code_scanning import sarif as sarif_log
from edgeport.verdicts.junit import junit_xml
from edgeport.verdicts.pull_request import markdown as markdown_page
from edgeport.verdicts.words import OUTCOMES, exit_code

SCHEMA_VERSION = 1
_SUMMARY = "GITHUB_STEP_SUMMARY"


def to_json(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Returns one JSON document: the verdicts, how many of each outcome, and the exit code."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "strict": strict,
        "exit_code": exit_code(verdicts, strict),
        "outcomes": {name: sum(one.outcome == name for one in verdicts) for name in OUTCOMES},
        "verdicts": [one.to_dict() for one in verdicts],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def write_outputs(
    verdicts: Sequence[Verdict],
    *,
    junit: Path | None = None,
    sarif: Path | None = None,
    markdown: Path | None = None,
    github: bool = False,
    strict: bool = False,
    places: Mapping[str, Path | str] | None = None,
    environ: Mapping[str, str] = os.environ,
    stream: TextIO | None = None,
) -> None:
    """Writes the files that were asked for, each whole; prints annotations where `github`.

    `places` maps a subject to the file that declares it. `github` also appends the markdown to the
    file that GITHUB_STEP_SUMMARY names, where it is set; the annotations go to `stream`, stdout
    without one. Raises InputError for a file that cannot be written; the others are written.
    """
    root = Path(environ.get("GITHUB_WORKSPACE") or Path.cwd())
    inside = places_inside(places or {}, root)
    given: dict[str, Any] = {"strict": strict, "places": inside}
    page = markdown_page(verdicts, strict=strict)
    texts = (
        (junit, junit_xml(verdicts, **given)),
        (sarif, sarif_log(verdicts, **given)),
        (markdown, page),
    )
    problems = [_written(file, text) for file, text in texts if file is not None]
    if github:
        _print(github_annotations(verdicts, **given), stream or sys.stdout)
        if summary := environ.get(_SUMMARY):
            problems.append(_appended(Path(summary), page))
    if told := "; ".join(filter(None, problems)):
        raise InputError(told)


def places_inside(places: Mapping[str, Path | str], root: Path) -> dict[str, str]:
    """Returns each place relative to the repository's root; without those that lie elsewhere.

    Such as the recipes that come with edgeport: no alert can stand at a file that a repository has
    not.
    """
    root = root.resolve()
    found = {subject: Path(place).resolve() for subject, place in places.items()}
    return {
        subject: place.relative_to(root).as_posix()
        for subject, place in found.items()
        if place.is_relative_to(root)
    }


def _written(file: Path, text: str) -> str:
    """Writes the file, with the folders above it; returns what was wrong."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(file, text)
    except OSError as error:
        return f"{file} cannot be written: {error.strerror or error}"
    return ""


def _appended(file: Path, text: str) -> str:
    try:
        with file.open("a", encoding="utf-8") as summary:
            summary.write(f"{text}\n")
    except OSError as error:
        return f"{_SUMMARY}: {file} cannot be written: {error.strerror or error}"
    return ""


def _print(text: str, stream: TextIO) -> None:
    """Prints the text; what the stream's encoding has not is replaced."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
