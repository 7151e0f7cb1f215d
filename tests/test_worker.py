"""Vendor code in a child process: real processes that abort, hang, leak, print and disappear."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeport.errors import InputError, RuntimeCrashed, StageFailed, UnknownName
from edgeport.runtimes.worker import Limits, run_in_child

GIB = 1 << 30


def call(
    workdir: Path, function: str, seconds: float = 30, memory_bytes: int = GIB, **arguments: Any
) -> Any:
    limits = Limits(seconds, memory_bytes)
    target = f"worker_targets:{function}"
    return run_in_child(target, arguments, stage="lower", workdir=workdir, limits=limits)


def crash(workdir: Path, function: str, **arguments: Any) -> RuntimeCrashed:
    with pytest.raises(RuntimeCrashed) as caught:
        call(workdir, function, **arguments)
    assert caught.value.stage == "lower"
    assert "\n" not in str(caught.value)
    return caught.value


def is_running(pid: int) -> bool:
    """Returns whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_returns_the_result_and_leaves_nothing_behind(tmp_path: Path) -> None:
    answer = call(tmp_path, "echo", text="ä\n", numbers=[1, 2.5, None])
    assert answer["values"] == {"text": "ä\n", "numbers": [1, 2.5, None]}
    assert Path(answer["cwd"]) == tmp_path
    assert answer["pid"] != os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_child_has_its_own_group_no_stdin_and_the_limits(tmp_path: Path) -> None:
    seen = call(tmp_path, "limits_seen", memory_bytes=3 * GIB)
    assert seen["core"] == [0, 0]
    assert seen["data"] == 3 * GIB
    assert seen["group_is_own"]
    assert seen["session"] != os.getsid(0)
    assert call(tmp_path, "read_stdin") == ""


def test_a_module_in_the_work_directory_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    (tmp_path / "worker_targets.py").write_text("def echo(): return 'the wrong module'")
    assert call(tmp_path, "echo", x=1)["values"] == {"x": 1}


def test_stdout_is_no_channel(tmp_path: Path) -> None:
    """10 MB of output, some from C and some that looks like an answer, changes nothing."""
    assert call(tmp_path, "chatter", size=10 << 20) >= 10 << 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "name"), [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("kill_self", "SIGKILL")]
)
def test_a_signal_is_named(tmp_path: Path, function: str, name: str) -> None:
    error = crash(tmp_path, function)
    assert error.reason == "signal"
    assert name in str(error)
    assert list(tmp_path.glob("core*")) == []


def test_the_last_lines_and_the_log_are_kept(tmp_path: Path) -> None:
    error = crash(tmp_path, "abort")
    assert "vendor: assertion failed: graph is not finalized" in error.last_lines
    assert "worker_targets.py" in error.last_lines  # the Python stack at the abort
    assert len(error.last_lines.splitlines()) <= 20
    assert "assertion failed" in (tmp_path / "lower.log").read_text()


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_is_no_result(tmp_path: Path, status: int) -> None:
    error = crash(tmp_path, "leave", status=status)
    assert error.reason == "exit"
    assert f"exit status {status}" in str(error)


def test_any_other_exception_is_told_by_type_and_first_line(tmp_path: Path) -> None:
    error = crash(tmp_path, "raise_error")
    assert error.reason == "exit"
    assert "ValueError: node 'Softmax_3' is not supported" in str(error)
    assert "second line" not in str(error)
    assert "second line" in error.last_lines


def test_a_result_that_is_not_json_is_an_error(tmp_path: Path) -> None:
    assert "not JSON serializable" in str(crash(tmp_path, "not_json"))


def test_a_target_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "no_such_function" in str(crash(tmp_path, "no_such_function"))


def test_our_errors_come_back_as_they_were_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        call(tmp_path, "refuse")
    assert type(refused.value) is InputError
    text = "weights.pt holds no tensor 'head.weight': give the file of this network"
    assert str(refused.value) == text
    with pytest.raises(UnknownName, match="Did you mean 'w8a16'"):
        call(tmp_path, "refuse_name")
    with pytest.raises(StageFailed) as failed:
        call(tmp_path, "fail_stage")
    assert (type(failed.value), failed.value.stage) == (StageFailed, "quantize")
    assert str(failed.value) == "quantize: no calibration data"
    error = crash(tmp_path, "crash_again")
    assert (error.reason, error.last_lines) == ("signal", "a\nb")


def test_more_memory_than_allowed_is_told_as_that(tmp_path: Path) -> None:
    error = crash(tmp_path, "allocate", count=100, memory_bytes=GIB // 2)
    assert error.reason == "memory"
    assert "0.5 GiB" in str(error)
    assert call(tmp_path, "allocate", count=4, memory_bytes=GIB // 2) == 4


def test_an_abort_near_the_limit_is_told_as_memory(tmp_path: Path) -> None:
    error = crash(tmp_path, "allocate_then_abort", count=100, memory_bytes=GIB // 2)
    assert error.reason == "memory"
    assert "SIGABRT" in str(error)


def test_address_space_that_is_only_reserved_is_free(tmp_path: Path) -> None:
    assert call(tmp_path, "reserve", size=64 * GIB) == 64 * GIB


def test_a_hang_ends_with_all_its_processes(tmp_path: Path) -> None:
    started = time.monotonic()
    error = crash(tmp_path, "hang", pids=str(tmp_path / "pids"), seconds=1.0)
    assert time.monotonic() - started < 5
    assert error.reason == "timeout"
    assert "1 s" in str(error)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("ending", ["abort", "hang"])
def test_temporary_files_of_a_child_that_dies_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    crash(tmp_path, "leave_files", ending=ending, told=str(tmp_path / "told"), seconds=1.0)
    made = Path((tmp_path / "told").read_text())
    assert made.is_relative_to(tmp_path / "temporary")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_processes_left_behind_end_with_a_result_too(tmp_path: Path) -> None:
    assert call(tmp_path, "hang", pids=str(tmp_path / "pids"), forever=False)
    grandchild = int((tmp_path / "pids").read_text().split()[1])
    assert wait_until(lambda: not is_running(grandchild))


PARENT = """
import sys
from pathlib import Path
from edgeport.runtimes.worker import Limits, run_in_child
run_in_child("worker_targets:hang", {"pids": sys.argv[1] + "/pids"}, stage="lower",
             workdir=Path(sys.argv[1]), limits=Limits(60, 1 << 30))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_parent_ends_the_child(tmp_path: Path, number: int) -> None:
    """The child holds the interpreter's lock in C code, and has a child of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    )
    pids = tmp_path / "pids"
    assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    children = [int(pid) for pid in pids.read_text().split()]  # with the watcher
    assert all(map(is_running, children))
    parent.send_signal(number)
    assert parent.wait(10) != 0
    assert wait_until(lambda: not any(map(is_running, children)))


def test_a_log_of_any_bytes_is_read(tmp_path: Path) -> None:
    error = crash(tmp_path, "print_bytes_and_abort")
    assert "�" in error.last_lines
    json.dumps(error.last_lines)


def test_a_failure_in_other_words_is_memory_where_none_is_left(tmp_path: Path) -> None:
    """A starved parser said "field 'target' is required for AnnAssign"."""
    error = crash(tmp_path, "fail_in_other_words", megabytes=4, memory_bytes=GIB // 4)
    assert error.reason == "memory"
    assert "AnnAssign" in str(error)
    error = crash(tmp_path, "fail_with_room_left", memory_bytes=GIB // 4)
    assert error.reason == "exit"
