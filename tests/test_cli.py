"""The command: --json is one document, --dry-run writes nothing, lists and help."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import (
    FACTORY,
    ON_HOST,
    OUT,
    S24,
    TINY,
    Command,
    command,
    command_environment,
    manifest_of,
    tree,
)

from edgeport.devices import all_devices


def test_json_is_one_document_whatever_the_model_prints(tmp_path: Path, run_cli: Command) -> None:
    loud = FACTORY.replace("def build", "print('import')\n\n\ndef build").replace(
        "    return", "    print('call')\n    return"
    )
    (tmp_path / "tiny.py").write_text(loud)
    done = run_cli(*TINY, *ON_HOST, *OUT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == manifest_of(tmp_path / "out")
    assert done.stderr.splitlines()[:2] == ["import", "call"]


@pytest.mark.parametrize("as_json", [True, False])
def test_dry_run_writes_nothing(
    tmp_path: Path, factory: Path, run_cli: Command, as_json: bool
) -> None:
    before = tree(tmp_path)
    cache = tmp_path.with_name("unused-cache")
    extra = ("--json",) if as_json else ()
    done = run_cli(*TINY, *S24, *OUT, "--dry-run", *extra, EDGEPORT_CACHE_DIR=str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path) == before
    assert not cache.exists()
    if as_json:
        assert json.loads(done.stdout)["device"]["name"] == "Samsung Galaxy S24"
    else:
        assert "nothing was run" in done.stdout


def test_lists(run_cli: Command) -> None:
    devices = json.loads(run_cli("list", "devices", "--json").stdout)
    assert [row["name"] for row in devices] == [device.name for device in all_devices()]
    table = run_cli("list", "devices").stdout
    assert "Samsung Galaxy S24" in table
    assert table.splitlines()[0].split()[0] == "name"
    (recipe,) = (
        row
        for row in json.loads(run_cli("list", "recipes", "--json").stdout)
        if row["name"] == "padre"
    )
    assert recipe["variants"] == ["attention", "padre2", "padre3"]
    assert "qnn_context_binary" in run_cli("list", "runtimes").stdout


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("list", "devices", "--json"),
        cwd=tmp_path,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize("words", [("--help",), ("export", "--help"), ("--version",)])
def test_help(run_cli: Command, words: tuple[str, ...]) -> None:
    done = run_cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_help_shows_the_options_of_a_recipe(run_cli: Command) -> None:
    assert "--grid" in run_cli("export", "padre", "--help").stdout
    assert "--grid" not in run_cli("export", "--help").stdout


def test_an_output_directory_may_have_the_name_of_a_recipe(
    tmp_path: Path, factory: Path, run_cli: Command
) -> None:
    done = run_cli(*TINY, *ON_HOST, "-o", "padre", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")


def test_spaces_between_runtimes(tmp_path: Path, factory: Path, run_cli: Command) -> None:
    done = run_cli(*TINY, *S24, "--target-runtime", "onnx, qnn_context_binary", *OUT, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")


def test_passes_lists_every_pass_and_shows_an_example(run_cli: Command) -> None:
    from edgeport.passes import all_passes

    rows = json.loads(run_cli("passes", "--json").stdout)
    assert [row["function"] for row in rows] == [one.__name__ for one in all_passes()]
    assert all(row["does"] and row["targets"] for row in rows)
    shown = run_cli("passes", "reciprocal to Div").stdout
    before, _, after = shown.partition("after (1)")
    assert "Reciprocal (" in before
    assert "Div (" in after and "Reciprocal (" not in after
    unknown = run_cli("passes", "recprocal")
    assert unknown.returncode == 2
    assert "reciprocal" in unknown.stderr
