"""The command without space, killed, interrupted, twice at once, or without its cache."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import (
    FACTORY,
    ON_HOST,
    OUT,
    TINY,
    Command,
    check_refusal,
    command,
    command_environment,
    manifest_of,
)


def limit_file_size(limit: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.xdist_group("kill")
def test_no_space(tmp_path: Path, warm: tuple[Path, dict[str, str]]) -> None:
    """With a warm cache the limit meets the output's writes; with a cold one, those of a stage."""
    folder, environment = warm
    cold = {**environment, "EDGEPORT_CACHE_DIR": str(tmp_path / "cold")}
    for where, limit in ((environment, 0), (environment, 2000), (cold, 2000)):
        done = subprocess.run(
            command(*TINY, *ON_HOST, "-o", tmp_path / "out"),
            cwd=folder,
            env=where,
            capture_output=True,
            text=True,
            preexec_fn=limit_file_size(limit),
        )
        words = "a file grew past the size limit while writing"
        check_refusal(done.returncode, done.stdout, done.stderr, words, expected=3)
        assert {path.name for path in tmp_path.iterdir()} <= {"cold", "out.failed"}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A cache that holds the exports of two seeds; and the environment that names it."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "tiny.py").write_text(FACTORY)
    environment = command_environment(EDGEPORT_CACHE_DIR=str(folder / "cache"))
    for seed in ("0", "1"):
        subprocess.run(
            command(*TINY, *ON_HOST, "-o", "out", "--seed", seed),
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
    return folder, environment


@pytest.mark.xdist_group("kill")
def test_kill_at_any_moment_leaves_the_old_export_or_the_new(
    warm: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = warm
    seeds_seen = set()
    rng = random.Random(7)
    started = time.perf_counter()
    subprocess.run(command(*TINY, *ON_HOST, *OUT), cwd=folder, env=environment, check=True)
    delay = time.perf_counter() - started
    for attempt in range(24):
        before = manifest_of(folder / "out")["options"]["seed"]
        seed = 1 - before
        process = subprocess.Popen(
            command(*TINY, *ON_HOST, *OUT, "--seed", seed),
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(delay * (0.95 + 0.1 * rng.random()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = manifest_of(folder / "out")["options"]["seed"]
        seeds_seen.add((attempt, after != before))
        assert after in (before, seed)
        delay *= 0.85 if after == seed else 1.1  # it settles around the swap, on any machine
    assert {changed for _, changed in seeds_seen} == {True, False}  # both sides of the swap
    subprocess.run(command(*TINY, *ON_HOST, *OUT), cwd=folder, env=environment, check=True)
    assert {path.name for path in folder.iterdir()} == {"cache", "out", "tiny.py"}


def descendants(pid: int) -> set[int]:
    """Returns the process ids below `pid`, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {p for p, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


@pytest.mark.xdist_group("kill")
def test_kill_in_a_stage_keeps_the_old_export_and_ends_the_child(
    warm: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """With a cold cache; killed while a vendor tool runs in its child process."""
    folder, environment = warm
    before = (folder / "out" / "manifest.json").read_bytes()
    environment = _cold(environment, tmp_path)
    process, below = _start_until_a_child_runs(folder, environment, "5")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (folder / "out" / "manifest.json").read_bytes() == before
    manifest_of(folder / "out")
    assert not _left_alive(below)
    assert _temporary(tmp_path)  # nobody was there to remove them
    done = subprocess.run(
        command(*TINY, *ON_HOST, *OUT, "--seed", "5"), cwd=folder, env=environment
    )
    assert done.returncode == 0
    assert manifest_of(folder / "out")["options"]["seed"] == 5
    assert {path.name for path in folder.iterdir()} == {"cache", "out", "tiny.py"}
    assert not list((tmp_path / "cold").glob(".building*"))
    assert not _temporary(tmp_path)


@pytest.mark.xdist_group("kill")
def test_a_signal_to_end_leaves_no_child_and_no_temporary_file(
    warm: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environment = warm
    before = (folder / "out" / "manifest.json").read_bytes()
    process, below = _start_until_a_child_runs(folder, _cold(environment, tmp_path), "7")
    assert _temporary(tmp_path)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1].startswith("error: ended by SIGTERM")
    assert "Traceback" not in err
    assert not _left_alive(below)
    assert not _temporary(tmp_path)
    assert (folder / "out" / "manifest.json").read_bytes() == before


def _cold(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Returns the environment with an empty cache, and with temporary files below `folder`."""
    (folder / "temporary").mkdir()
    own = {"EDGEPORT_CACHE_DIR": str(folder / "cold"), "TMPDIR": str(folder / "temporary")}
    return {**environment, **own}


def _temporary(folder: Path) -> list[str]:
    """Returns edgeport's own temporary files; torch keeps a cache of its own beside them."""
    return [name for name in os.listdir(folder / "temporary") if name.startswith("edgeport")]


def _start_until_a_child_runs(
    folder: Path, environment: dict[str, str], seed: str
) -> tuple[subprocess.Popen[str], set[int]]:
    """Returns the running export, and the processes below it."""
    process = subprocess.Popen(
        command(*TINY, *ON_HOST, *OUT, "--seed", seed),
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (below := descendants(process.pid)) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before any child was seen"
        time.sleep(0.01)
    time.sleep(0.3)  # the watcher forks the worker
    return process, below | descendants(process.pid)


def _left_alive(pids: set[int]) -> set[int]:
    """Returns those of the processes that still run after a while."""
    deadline = time.monotonic() + 30
    while (alive := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.xdist_group("kill")
def test_interrupt_is_told_and_keeps_the_old_export(
    warm: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environment = warm
    before = (folder / "out" / "manifest.json").read_bytes()
    process = subprocess.Popen(
        command(*TINY, *ON_HOST, *OUT, "--seed", "6"),
        cwd=folder,
        env={**environment, "EDGEPORT_CACHE_DIR": str(tmp_path / "cold")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(folder.glob(".out.staging*")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "error: interrupted")
    assert "Traceback" not in err
    assert (folder / "out" / "manifest.json").read_bytes() == before


@pytest.mark.xdist_group("kill")
def test_two_exports_at_once_into_one_cache_and_one_directory(
    tmp_path: Path, factory: Path
) -> None:
    environment = command_environment(EDGEPORT_CACHE_DIR=str(tmp_path / "cache"))
    processes = [
        subprocess.Popen(
            command(*TINY, *ON_HOST, *OUT, "--seed", seed),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 0, 1)
    ]
    ends = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert manifest_of(tmp_path / "out")["options"]["seed"] in (0, 1)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        "cache",
        "out",
        "tiny.py",
    }
    assert not list((tmp_path / "cache").glob(".building*"))


def test_the_cache_can_be_read_only_or_lost(
    tmp_path: Path, factory: Path, run_cli: Command
) -> None:
    """chmod proves nothing as root; a file in the place of the cache does."""
    (tmp_path / "file").write_text("")
    done = run_cli(*TINY, *ON_HOST, *OUT, EDGEPORT_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 0, done.stderr
    assert "warning: the cache" in done.stdout
    assert manifest_of(tmp_path / "out")["run"]["warnings"]
    assert os.listdir(tmp_path / "out")
