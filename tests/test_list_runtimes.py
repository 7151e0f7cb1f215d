"""`edgeport list runtimes`: what works here and in which interpreter, what others lack."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import venv
from pathlib import Path

import pytest
from support import Command, check_refusal

from edgeport.errors import InputError, UnknownName
from edgeport.runtimes import RUNTIMES, find_runtime, status
from edgeport.runtimes.status import Status, statuses


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def config(folder: Path, **pythons: Path) -> None:
    sections = [f'[runtimes.{name}]\npython = "{path}"\n' for name, path in pythons.items()]
    (folder / "edgeport.toml").write_text("".join(sections))


def found(name: str) -> Status:
    return next(one for one in statuses() if one.runtime.name == name)


def test_every_runtime_says_whether_it_works(run_cli: Command) -> None:
    rows = json.loads(run_cli("list", "runtimes", "--json").stdout)
    assert [row["name"] for row in rows] == list(RUNTIMES)
    for row in rows:
        lacking = [one for one in row["requires"] if importlib.util.find_spec(one) is None]
        assert set(lacking) <= set(row["missing"])
        assert row["works_here"] == (not row["missing"])
        assert row["get_it"] == (row["install"] if row["missing"] else None)
        assert row["interpreter"] is None
    table = run_cli("list", "runtimes").stdout.splitlines()
    assert table[0].split()[:3] == ["name", "works", "here"]
    assert table[1].split()[:2] == ["onnx", "yes"]
    assert "float, w8a8, w8a16, w4a16, auto" in table[1]


def test_what_this_interpreter_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgeport.runtimes._is_importable", lambda name: name not in ("executorch", "torchao")
    )
    one = found("executorch")
    assert (one.works, one.missing) == (False, ("executorch", "torchao"))
    assert one.remedy == 'pip install "edgeport[executorch]"'
    with pytest.raises(InputError, match=r"needs executorch, torchao: pip install"):
        find_runtime("executorch")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A virtual environment with nothing in it, and what this one has not."""
    venv.create(tmp_path / "venv", with_pip=False)
    return tmp_path / "venv" / "bin" / "python"


def test_another_interpreter_is_asked_once(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = script(tmp_path / "python", f'echo x >> "{tmp_path}/asked"\nexec {bare} "$@"')
    config(tmp_path, tflite=counted, executorch=counted)
    monkeypatch.chdir(tmp_path)
    for name in ("tflite", "executorch"):
        one = found(name)
        assert not one.works and one.interpreter == counted
        assert "numpy" in one.missing and "torch" in one.missing
        assert one.remedy == f'{counted} -m pip install "edgeport[{name}]"'
    assert (tmp_path / "asked").read_text() == "x\n" * 2  # once for each call of statuses()
    assert found("onnx").interpreter is None


def test_what_is_printed_of_another_interpreter(
    tmp_path: Path, bare: Path, run_cli: Command
) -> None:
    config(tmp_path, tflite=bare)
    printed = run_cli("list", "runtimes").stdout.splitlines()
    (row,) = (line for line in printed if line.startswith("tflite  "))
    assert row.split()[1] == "no" and row.endswith(str(bare))
    assert printed[-1].startswith("tflite: numpy, litert_torch")
    assert f'missing; to get it: {bare} -m pip install "edgeport[tflite]"' in printed[-1]


def test_an_interpreter_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has what this one has: its packages come with PYTHONPATH, which a child starts without."""
    here = os.pathsep.join(entry for entry in sys.path if entry)
    there = script(
        tmp_path / "python", f'PYTHONPATH="$PYTHONPATH:{here}" exec {sys.executable} "$@"'
    )
    config(tmp_path, onnx=there)
    monkeypatch.chdir(tmp_path)
    one = found("onnx")
    assert (one.works, one.interpreter, one.missing, one.remedy) == (True, there, (), "")


def test_an_interpreter_that_fails_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Command
) -> None:
    broken = script(tmp_path / "broken", "echo 'libpython3.11.so: cannot open' >&2\nexit 127")
    config(tmp_path, qnn_dlc=broken)
    done = run_cli("list", "runtimes")
    assert done.returncode == 0
    assert f"qnn_dlc: {broken} does not answer (libpython3.11.so: cannot open)" in done.stdout

    hanging = script(tmp_path / "hanging", "exec sleep 60")
    config(tmp_path, qnn_dlc=hanging)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status, "_SECONDS", 0.5)
    start = time.monotonic()
    assert found("qnn_dlc").problem == f"{hanging} does not answer (timeout)"
    assert time.monotonic() - start < 20


def test_an_unknown_runtime_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Command
) -> None:
    config(tmp_path, tflit=Path(sys.executable))
    done = run_cli("list", "runtimes")
    words = r"unknown runtime in .*edgeport\.toml, \[runtimes\.tflit\].*Did you mean 'tflite'"
    check_refusal(done.returncode, done.stdout, done.stderr, words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'tflite'"):  # an export too
        find_runtime("onnx")
