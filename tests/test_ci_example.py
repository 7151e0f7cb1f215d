"""The example in examples/ci: a workflow that GitHub takes, and its shell steps, really run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import ROOT, command_environment, conv_net, needs_compiler, save

import edgeport
from edgeport.check import find_subjects

yaml = pytest.importorskip("yaml", reason="needs pyyaml: pip install pyyaml")

EXAMPLE = ROOT / "examples" / "ci"
WORKFLOW = yaml.safe_load((EXAMPLE / "edgeport.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["check"]["steps"]
SHELL_STEPS = [step for step in STEPS if "run" in step]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the runners: the cache that one leaves is there for the next."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's repository with the example in it."""
    root = tmp_path / "repository"
    (root / "models").mkdir(parents=True)
    save(conv_net(), root / "models" / "net.onnx")
    shutil.copy(EXAMPLE / "test_gate.py", root)
    return root


@pytest.fixture
def claims(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's edgeport.toml, in the user's repository: all that its gate is about."""
    file = Path(shutil.copy(EXAMPLE / "edgeport.toml", repository))
    monkeypatch.chdir(repository)
    judged = [one.name for one in find_subjects(())]
    assert judged == ["models/net.onnx w8a8 on Samsung Galaxy S24"]  # and no recipe of edgeport's
    return file


@pytest.fixture
def runner(repository: Path, home: Path, tmp_path: Path) -> dict[str, str]:
    """What the steps find in their environment: python, edgeport, pytest with the plugin."""
    bin_folder, site = tmp_path / "bin", tmp_path / "site"
    for folder in (bin_folder, site):
        folder.mkdir()
    for name, words in {"python": '"$@"', "edgeport": '-m edgeport "$@"'}.items():
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}\n')
        (bin_folder / name).chmod(0o755)
    _installed(site)
    environment = command_environment(
        HOME=str(home),
        PATH=os.pathsep.join([str(bin_folder), os.environ["PATH"]]),
        GITHUB_ACTIONS="true",
        GITHUB_WORKSPACE=str(repository),
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
        PIP_NO_INDEX="1",  # what the install step asks for is here, or the step fails
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    environment["PYTHONPATH"] = os.pathsep.join([str(site), environment["PYTHONPATH"]])
    for name in (
        "EDGEPORT_CACHE_DIR",
        "XDG_CACHE_HOME",
    ):  # the cache is where the workflow keeps it
        environment.pop(name, None)
    return environment


def _installed(site: Path) -> None:
    """Makes what an installation has and a checkout has not: the version, and the entry point."""
    points = metadata.entry_points(group="pytest11")
    if any(point.value == "edgeport.pytest_plugin" for point in points):
        return
    info = site / f"edgeport-{edgeport.__version__}.dist-info"
    info.mkdir()
    version = f"Metadata-Version: 2.1\nName: edgeport\nVersion: {edgeport.__version__}\n"
    (info / "METADATA").write_text(version)
    (info / "entry_points.txt").write_text("[pytest11]\nedgeport = edgeport.pytest_plugin\n")


def run_step(
    step: dict[str, Any], repository: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a step as a runner does where no shell is named: bash, ending at the first failure."""
    script = repository.parent / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        ["bash", "-e", str(script)],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def step_named(words: str) -> dict[str, Any]:
    (step,) = [step for step in SHELL_STEPS if words in step["run"]]
    return step


def test_the_workflow_asks_for_little() -> None:
    # YAML 1.1 reads the key `on` as true; GitHub reads it as the name.
    assert set(WORKFLOW) == {"name", True, "permissions", "concurrency", "jobs"}
    assert set(WORKFLOW[True]) == {"pull_request", "push"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    (job,) = WORKFLOW["jobs"].values()
    assert job["permissions"] == {"contents": "read", "security-events": "write"}
    assert job["timeout-minutes"] <= 60


def test_each_step_uses_a_major_version_or_runs_a_script_without_expressions() -> None:
    for step in STEPS:
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            name, _, version = step["uses"].partition("@")
            assert name.split("/")[0] in ("actions", "github")
            assert version[0] == "v" and version[1:].isdigit()
        else:
            assert "${{" not in step["run"]  # a branch's name could be a command
            assert step["name"]


def test_the_reports_that_are_uploaded_are_those_that_are_written() -> None:
    check, tests = step_named("edgeport check")["run"], step_named("-m pytest")["run"]
    uploads = [step["with"] for step in STEPS if "upload" in step.get("uses", "")]
    sarif, reports = uploads
    assert f"--sarif {sarif['sarif_file']}" in check
    assert check.count(reports["path"]) == 3
    assert reports["path"] in tests
    assert all("!cancelled()" in step["if"] for step in STEPS if "upload" in step.get("uses", ""))


@needs_compiler
@pytest.mark.xdist_group("ci example")
def test_the_shell_steps_run_in_their_order(
    repository: Path, claims: Path, home: Path, runner: dict[str, str]
) -> None:
    assert claims.is_file()
    for step in SHELL_STEPS:
        done = run_step(step, repository, runner)
        assert done.returncode == 0, f"{step['name']}: {done.stdout}{done.stderr}"
    out = repository / "edgeport-out"
    made = {"junit.xml", "edgeport.sarif", "edgeport.md", "pytest.xml"}
    assert made <= {path.name for path in out.iterdir()}
    junit = ElementTree.parse(out / "junit.xml").getroot()
    assert (junit.get("tests"), junit.get("failures"), junit.get("skipped")) == ("3", "0", "0")
    assert json.loads((out / "edgeport.sarif").read_text())["runs"][0]["results"] == []
    assert len(list(ElementTree.parse(out / "pytest.xml").iter("testcase"))) == 2
    kept = next(step["with"]["path"] for step in STEPS if "cache@" in step.get("uses", ""))
    assert any(Path(kept.replace("~", str(home))).iterdir())
    assert (out / "edgeport.md").read_text() in Path(runner["GITHUB_STEP_SUMMARY"]).read_text()


@needs_compiler
@pytest.mark.xdist_group("ci example")
def test_a_claim_that_fails_ends_the_step_and_is_named(
    repository: Path, claims: Path, runner: dict[str, str]
) -> None:
    claims.write_text(claims.read_text().replace("limit = 25.0", "limit = 250.0"))
    done = run_step(step_named("edgeport check"), repository, runner)
    assert done.returncode == 1, done.stdout + done.stderr
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("::error ")]
    assert "sqnr_db:qnn_context_binary >= 250" in error
    assert "file=edgeport.toml" in error
    log = json.loads((repository / "edgeport-out" / "edgeport.sarif").read_text())
    assert [one["level"] for one in log["runs"][0]["results"]] == ["error"]
    assert "**failed**" in Path(runner["GITHUB_STEP_SUMMARY"]).read_text()
