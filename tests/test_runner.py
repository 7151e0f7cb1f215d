"""The runner that is copied to boards: it stands alone, runs on old Pythons, and is judged here."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeport import measure
from edgeport.places import board, runner

SOURCE = Path(runner.__file__).read_text(encoding="utf-8")
OLDEST = (3, 8)


def test_it_is_of_python_3_8() -> None:
    tree = ast.parse(SOURCE, feature_version=OLDEST)
    assert evaluated_generics(tree) == []
    assert not any(name in SOURCE for name in ("removeprefix", "removesuffix", "waitstatus_to"))
    with pytest.raises(SyntaxError):  # the check can fail
        ast.parse("match 1:\n    case 1: pass", feature_version=OLDEST)
    assert evaluated_generics(ast.parse("x: list[int] = []\nkind = dict[str, int]")) == ["dict"]


def evaluated_generics(tree: ast.AST) -> list[str]:
    """Returns the built-in types that are subscripted where Python 3.8 would evaluate it."""
    unevaluated: set[ast.AST] = set()
    for found in ast.walk(tree):
        typing_only = isinstance(found, ast.If) and ast.unparse(found.test) == "TYPE_CHECKING"
        for name in ("annotation", "returns"):
            if child := getattr(found, name, None):
                unevaluated |= set(ast.walk(child))
        if typing_only:
            unevaluated |= set(ast.walk(found))
    return [
        found.value.id
        for found in ast.walk(tree)
        if isinstance(found, ast.Subscript)
        and found not in unevaluated
        and isinstance(found.value, ast.Name)
        and found.value.id in ("dict", "list", "tuple", "set", "type")
    ]


def test_it_imports_the_standard_library_only() -> None:
    imported = {
        name.split(".")[0]
        for found in ast.walk(ast.parse(SOURCE))
        if isinstance(found, (ast.Import, ast.ImportFrom))
        for name in (
            [found.module or ""]
            if isinstance(found, ast.ImportFrom)
            else [one.name for one in found.names]
        )
    }
    assert imported - {"__future__"} <= sys.stdlib_module_names


def test_it_warms_up_as_the_harness_does() -> None:
    assert runner.STABLE_WINDOW == measure.STABLE_WINDOW
    assert runner.STABLE_CHANGE == measure.STABLE_CHANGE


class Sleeper:
    """A session whose runs take these milliseconds, the last one from then on."""

    def __init__(self, *milliseconds: float) -> None:
        self._left = list(milliseconds)

    def run(self, feed: object) -> None:
        time.sleep((self._left.pop(0) if len(self._left) > 1 else self._left[0]) / 1e3)


def growing() -> Iterator[float]:
    return (5.0 * 1.2**step for step in range(25))


def test_warm_up_ends_where_the_median_has_settled() -> None:
    started = time.monotonic()
    assert runner.warm_up(Sleeper(20), {}, 20.0) <= runner.STABLE_CHANGE
    assert time.monotonic() - started < 10
    assert runner.warm_up(Sleeper(*growing()), {}, 0.4) > runner.STABLE_CHANGE
    assert runner.warm_up(Sleeper(60), {}, 0.1) is None  # too few runs to know


def test_every_timed_run_is_kept() -> None:
    request = {"warmup_seconds": 0.0, "timed_seconds": 0.0, "min_runs": 7, "max_runs": 9}
    found = runner.time_runs(Sleeper(2), {}, request)
    assert len(found["samples_ms"]) == 7
    assert min(found["samples_ms"]) >= 2
    found = runner.time_runs(Sleeper(1), {}, {**request, "timed_seconds": 10.0})
    assert len(found["samples_ms"]) == 9


def test_what_is_read_of_this_machine() -> None:
    state = runner.read_state()
    assert set(state) == {"temperatures_c", "governors", "clocks_khz", "load_average"}
    assert all(1 < degrees < 150 for degrees in state["temperatures_c"].values())
    assert runner.peak_bytes() > 10e6
    told = runner.describe_board(["no-such-package"])
    assert told["no-such-package"] == "unknown"
    assert all(isinstance(text, str) for text in told.values())


def answer(**changed: object) -> dict[str, object]:
    """Returns what a quiet board answers."""
    state = {
        "temperatures_c": {"thermal_zone0": 41.0, "thermal_zone1": 45.5},
        "governors": ["schedutil"],
        "clocks_khz": [1800000, 2400000],
        "load_average": [0.1, 0.2, 0.3],
    }
    return {
        "board": {"logical_cores": "4", "cpu": "Cortex-A76"},
        "samples_ms": [10.0 + step / 100 for step in range(25)],
        "first_ms": 31.0,
        "load_ms": 120.0,
        "peak_bytes": 80_000_000,
        "peak_before_bytes": 30_000_000,
        "threads": 4,
        "drift": 0.01,
        "state_before": state,
        "state_after": state,
        **changed,
    }


def test_a_quiet_boards_figures() -> None:
    latency, first, load, peak = board._measured(answer(), "device")
    assert (latency.metric, latency.value, latency.unit) == ("latency_ms", 10.12, "ms")
    assert latency.warnings == ()
    assert len(latency.samples) == 25
    assert [(one.metric, one.value) for one in (first, load, peak)] == [
        ("first_latency_ms", 31.0),
        ("load_ms", 120.0),
        ("peak_bytes", 80e6),
    ]
    assert latency.environment["hottest_c_before"] == "45.5"
    assert latency.environment["clocks_mhz_after"] == "1800 2400"


def test_what_makes_a_boards_timing_doubtful() -> None:
    quiet = answer()["state_before"]
    assert isinstance(quiet, dict)
    before = {**quiet, "governors": ["powersave"], "load_average": [3.0, 1.0, 1.0]}
    after = {**quiet, "temperatures_c": {"thermal_zone0": 61.0}}
    found = answer(drift=0.2, state_before=before, state_after=after)
    assert board._warnings(found) == [
        "warm-up not stable after 10 s: the median still moved by 20%, more than 5%",
        "the board became 16 °C hotter while it was timed",
        "the CPU governor is powersave: clocks stay low",
        "the board was busy before: load 3.0 on 4 cores",
    ]
    assert "too few runs" in board._warnings(answer(drift=None))[0]
    dark = {"temperatures_c": {}, "governors": [], "clocks_khz": [], "load_average": []}
    unread = answer(state_before=dark, state_after=dark)
    assert board._warnings(unread) == []
    assert board._measured(unread, "device")[0].environment["governors"] == "not readable"


def test_what_to_install_where_the_system_keeps_pip_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.PACKAGES, "onnx", (("no_such_module",), "no-such-package"))
    python = re.escape(sys.executable)
    with pytest.raises(runner.Missing, match=rf"{python} -m pip install no-such-package$"):
        runner.check_packages(["onnx", "onnx"])
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(runner, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(runner.Missing, match=r"-m venv ~/edge .*\?python=~/edge/bin/python$"):
        runner.check_packages(["onnx"])


def asked(python: str, folder: Path, request: dict[str, object]) -> dict[str, object]:
    """Returns the runner's answer in another interpreter, its stdin held open."""
    shutil.copy(runner.__file__, folder / "runner.py")
    (folder / "request.json").write_text(json.dumps({"marker": "M ", "seconds": 60, **request}))
    with subprocess.Popen(
        [python, str(folder / "runner.py"), str(folder / "request.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    return dict(json.loads(said.rpartition("\nM ")[2]))


def test_python_3_8_really_runs_it(tmp_path: Path) -> None:
    words = ["python3.8", "-c", "import select"]
    if shutil.which("python3.8") is None or subprocess.run(words, check=False).returncode != 0:
        pytest.skip("needs python3.8, as old boards have it")
    found = asked("python3.8", tmp_path, {"task": "check", "runtimes": []})
    assert re.search(r"\b3\.8\.", str(found)), found  # it runs, or says that numpy is missing


def test_files_that_did_not_arrive_whole(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"half")
    request = {"task": "run", "runtime": "onnx", "sha256": {"model.onnx": "0" * 64}}
    found = asked(sys.executable, tmp_path, request)
    assert found == {
        "error": "ValueError: model.onnx did not arrive whole: is the board's disk full?",
        "kind": "failed",
    }
