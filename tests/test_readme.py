"""The README's commands are the command line's, and its files are there."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest

from edgeport.cli import cli
from edgeport.places import find_place
from edgeport.plan import make_plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_commands() -> list[list[str]]:
    """Returns the words of every `edgeport ...` line in the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [one for one in words if one and one[0] == "edgeport"]


@pytest.mark.parametrize("words", shell_commands(), ids=" ".join)
def test_each_command_would_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("model.onnx", "net.py", "net.safetensors"):
        Path(name).write_bytes(b"")
    np.save("photos/one.npy", np.zeros((1, 3)))
    if "--on" in words:  # the place is understood; whether it answers is its user's
        at = words.index("--on")
        assert find_place(words[at + 1]).text == words[at + 1]
        words = [*words[:at], *words[at + 2 :]]
    name, *arguments = words[1:]
    if name not in ("export", "list") or "--help" in words:  # those that would really run
        with contextlib.suppress(click.exceptions.Exit):  # of --help
            cli.commands[name].make_context(name, arguments)
        return
    dry = [*words[1:], "--dry-run"] if name == "export" else words[1:]
    with pytest.raises(SystemExit) as end:
        cli.main(dry, prog_name="edgeport")
    assert end.value.code == 0


def test_the_python_example_has_the_parameters_of_a_plan(tmp_path: Path) -> None:
    example = re.search(r"result = edgeport\.export\((.*?)\n\)", README, re.S)
    assert example is not None
    names = set(re.findall(r"^    (\w+)=", example[1], re.M))
    assert names
    assert names <= set(make_plan.__annotations__)


def test_the_files_that_it_names_are_there() -> None:
    table = README.partition("## What is where")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    folder = "edgeport/"
    for name in (name for row in rows for name in re.findall(r"`([^`]+)`", row)):
        folder = name.rpartition("/")[0] + "/" if "/" in name.rstrip("/") else folder
        assert (ROOT / name).exists() or (ROOT / folder / name).exists(), name


def test_two_commands_are_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.M)
