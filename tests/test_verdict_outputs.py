"""What a command that ends in verdicts prints, writes, and exits with."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from verdict_texts import EACH, FAILED, HELD, MISSING

from edgeport.cli.outputs import output_options, show_verdicts
from edgeport.errors import InputError
from edgeport.types import Verdict
from edgeport.verdicts import write_outputs


def run(verdicts: Sequence[Verdict], *arguments: str, **places: str) -> int:
    """Runs a command with these options, whose verdicts are given."""

    @click.command("check")
    @output_options
    def check(strict: bool, **outputs: Any) -> int:
        return show_verdicts(verdicts, strict=strict, places=places, **outputs)

    return check.main(list(arguments), standalone_mode=False)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


def test_the_table_the_reasons_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(EACH) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["outcome", "model", "metric", "limit", "measured"]
    assert [line.split()[0] for line in lines[1:5]] == ["failed", "inconclusive", "missing", "held"]
    assert lines[-1] == "the gate failed: 1 failed, 1 inconclusive, 1 missing, 1 held"
    assert run([HELD, MISSING]) == 0
    assert run([HELD, MISSING], "--strict") == 1
    assert run([]) == 1
    assert capsys.readouterr().out.endswith("the gate failed: no verdicts; nothing was judged\n")


def test_every_file_is_written_whole(capsys: pytest.CaptureFixture[str]) -> None:
    files = {"--junit": "new/a.xml", "--sarif": "a.sarif", "--markdown": "a.md"}
    words = [word for pair in files.items() for word in pair]
    Path("a.md").write_text("what was here before\n" * 1000)
    assert run(EACH, *words, padre="recipes/padre/recipe.py") == 1
    assert ElementTree.parse("new/a.xml").getroot().get("tests") == "4"
    (log,) = json.loads(Path("a.sarif").read_text())["runs"]
    assert "recipes/padre/recipe.py" in json.dumps(log["results"])
    page = Path("a.md").read_text()
    assert page.startswith("### edgeport check: ")
    assert "before" not in page
    assert sorted(os.listdir()) == ["a.md", "a.sarif", "new"]  # nothing temporary is left
    assert "::" not in capsys.readouterr().out


def test_github_prints_annotations_and_appends_to_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(EACH, "--github")  # outside of a runner there is no summary
    summary = tmp_path / "summary.md"
    summary.write_text("# The job before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run(EACH, "--github")
    assert summary.read_text().startswith("# The job before\n### edgeport check: ")
    out = capsys.readouterr().out
    assert out.count("\n::error ") == 2
    assert out.count("\n::notice ") == 2


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([HELD, FAILED], "--json", "--github") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 1
    assert err.startswith("::error ")


def test_a_place_outside_of_the_repository_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code scanning refuses a log with a file that the repository has not."""
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    places = {"padre": "/usr/lib/recipe.py", "models/net.onnx": "edgeport.toml"}
    run([FAILED, MISSING], "--sarif", "a.sarif", "--github", **places)
    (log,) = json.loads(Path("a.sarif").read_text())["runs"]
    found = {
        one["properties"]["subject"]: one["locations"][0]["physicalLocation"]["artifactLocation"]
        for one in log["results"]
    }
    assert found == {
        "models/net.onnx": {"uri": "sub/edgeport.toml"},
        "padre": {"uri": "edgeport.toml"},
    }
    out = capsys.readouterr().out
    assert "::error file=sub/edgeport.toml,title=" in out
    assert "::notice title=" in out


def test_a_file_that_cannot_be_written_is_named_and_the_others_are_written(tmp_path: Path) -> None:
    Path("plain").write_text("")
    with pytest.raises(InputError, match=r"plain/a\.xml cannot be written: ") as refused:
        write_outputs([HELD], junit=Path("plain/a.xml"), markdown=Path("a.md"))
    assert refused.value.exit_code == 2
    assert Path("a.md").is_file()
    with pytest.raises(InputError, match=r"GITHUB_STEP_SUMMARY: .* cannot be written: "):
        write_outputs(
            [HELD],
            github=True,
            environ={"GITHUB_STEP_SUMMARY": str(tmp_path / "none" / "summary")},
        )
    with pytest.raises(click.BadParameter, match="is a directory"):
        run([HELD], "--junit", ".")


def test_annotations_for_a_terminal_that_has_no_such_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252", newline="\n")
    odd = Verdict("net \U0001f600 é", "claim", "m", "fail", "<= 1", "2")
    write_outputs([odd], github=True, environ={}, stream=stream)
    expected = "::error title=edgeport check%3A net ? é%3A failed::m <= 1: 2\n"
    assert raw.getvalue().decode("cp1252") == expected
