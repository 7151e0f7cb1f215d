"""The cache never changes an answer: edited, full, shared or missing, it only costs time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import run_python

from edgeport.cache import Cache, Entry, default_root
from edgeport.fingerprint import digest

Build = Callable[[Path], Mapping[str, Any]]


def builder(calls: list[int], text: str = "model", size: int = 0) -> Build:
    def build(directory: Path) -> Mapping[str, Any]:
        calls.append(1)
        (directory / "sub").mkdir()
        (directory / "sub" / "model.bin").write_text(text)
        (directory / "large").write_bytes(bytes(size))
        return {"shape": (1, 3), "text": text}

    return build


def content(entry: Entry) -> tuple[str, dict[str, Any]]:
    return (entry.directory / "sub" / "model.bin").read_text(), entry.result


EXPECTED = ("model", {"shape": [1, 3], "text": "model"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Entries


def test_builds_once(root: Path) -> None:
    calls: list[int] = []
    with Cache(root) as cache:
        first = cache.step("lower", {"soc": 57}, builder(calls))
        second = cache.step("lower", {"soc": 57}, builder(calls))
        other = cache.step("lower", {"soc": 69}, builder(calls))
    assert (first.hit, second.hit, other.hit, len(calls)) == (False, True, False, 2)
    assert content(first) == content(second) == EXPECTED
    assert second.seconds == first.seconds > 0
    assert second.directory == root / "lower" / digest({"soc": 57})
    assert cache.warnings == ()
    assert sorted(path.name for path in root.iterdir()) == ["lower"]


def damage_edit(directory: Path) -> None:
    (directory / "sub" / "model.bin").write_text("mode1")


def damage_truncate(directory: Path) -> None:
    os.truncate(directory / "sub" / "model.bin", 2)


def damage_remove(directory: Path) -> None:
    (directory / "large").unlink()


def damage_add(directory: Path) -> None:
    (directory / "extra").write_text("")


def damage_index(directory: Path) -> None:
    os.truncate(directory / "entry.json", 20)


def damage_replace(directory: Path) -> None:
    directory.rename(directory.with_name("gone"))
    directory.write_text("a file in the place of an entry")


@pytest.mark.parametrize(
    "damage",
    [damage_edit, damage_truncate, damage_remove, damage_add, damage_index, damage_replace],
)
def test_builds_again_what_is_damaged(root: Path, damage: Callable[[Path], None]) -> None:
    calls: list[int] = []
    with Cache(root) as cache:
        damage(cache.step("lower", {}, builder(calls)).directory)
        again = cache.step("lower", {}, builder(calls))
        assert (again.hit, content(again)) == (False, EXPECTED)
        assert cache.step("lower", {}, builder(calls)).hit
    assert (len(calls), cache.warnings) == (2, ())


def test_a_failed_build_leaves_nothing_but_the_kept_files(root: Path, tmp_path: Path) -> None:
    def fail(directory: Path) -> Mapping[str, Any]:
        (directory / "half.onnx").write_text("half")
        (directory / "lower.log").write_text("log")
        raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with Cache(root) as cache, pytest.raises(KeyboardInterrupt):
        cache.step("lower", {}, fail, keep_failed=kept)
    assert sorted(path.name for path in kept.iterdir()) == ["half.onnx", "lower.log"]
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert cache.warnings == ()


def test_without_a_root_it_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    calls: list[int] = []
    for _ in range(2):
        with Cache(None) as cache:
            entry = cache.step("lower", {}, builder(calls))
            assert entry.directory.is_relative_to(tmp_path)
            assert (entry.hit, content(entry)) == (False, EXPECTED)
            cache.remember("sources", {}, {"a": 1})
            assert cache.recall("sources", {}) == {"a": 1}
        assert list(tmp_path.iterdir()) == []
    assert len(calls) == 2


# Notes


def test_remembers_small_values(root: Path) -> None:
    with Cache(root) as cache:
        assert cache.recall("sources", {"factory": "a"}) is None
        cache.remember("sources", {"factory": "a"}, {"files": ("x", "y")})
    with Cache(root) as cache:
        assert cache.recall("sources", {"factory": "a"}) == {"files": ["x", "y"]}
        assert cache.recall("sources", {"factory": "b"}) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"value": {"a": 2}, "sha256": "0"}'])
def test_forgets_a_damaged_note(root: Path, text: str) -> None:
    with Cache(root) as cache:
        cache.remember("sources", {}, {"a": 1})
        [note] = (root / "sources").iterdir()
        note.write_text(text)
        assert cache.recall("sources", {}) is None
        cache.remember("sources", {}, {"a": 3})
        assert cache.recall("sources", {}) == {"a": 3}


# Eviction


def test_evicts_the_least_recently_used(root: Path) -> None:
    def age(entry: Entry, hours: float) -> None:
        os.utime(entry.directory, (time.time() - hours * 3600,) * 2)

    with Cache(root, limit_bytes=2500) as cache:
        steps = [cache.step("s", {"n": n}, builder([], size=700)) for n in range(4)]
        assert all(entry.directory.exists() for entry in steps), "none is an hour old"
        for entry, hours in zip(steps, (2, 9, 8, 0.5), strict=True):
            age(entry, hours)
        assert cache.step("s", {"n": 1}, builder([])).hit  # used again: now the youngest
        cache.step("s", {"n": 4}, builder([], size=100))
    assert [entry.directory.exists() for entry in steps] == [False, True, False, True]
    assert [path.name for path in root.iterdir()] == ["s"]


# Disks that take no more


def test_a_full_cache_is_a_warning(small_disk: Path) -> None:
    calls: list[int] = []
    with Cache(small_disk / "cache") as cache:
        entry = cache.step("lower", {}, builder(calls, size=3 << 20))
        assert (entry.hit, content(entry), len(calls)) == (False, EXPECTED, 2)
        assert not entry.directory.is_relative_to(small_disk)
        assert cache.step("lower", {}, builder(calls)).hit
        assert "No space left" in cache.warnings[0]
        assert len(cache.warnings) == 1
        assert "\n" not in cache.warnings[0]
    assert not entry.directory.exists()


def test_a_full_cache_is_found_behind_another_error(small_disk: Path) -> None:
    def build(directory: Path) -> Mapping[str, Any]:
        with suppress(OSError):
            (directory / "large").write_bytes(bytes(3 << 20))
        if (directory / "large").stat().st_size < 3 << 20:
            raise RuntimeError("failed writing file")
        return {"whole": True}

    with Cache(small_disk / "cache") as cache:
        assert cache.step("lower", {}, build).result == {"whole": True}
        assert len(cache.warnings) == 1


def test_a_read_only_cache_still_serves(small_disk: Path) -> None:
    calls: list[int] = []
    with Cache(small_disk) as cache:
        cache.step("lower", {}, builder(calls))
        cache.remember("sources", {}, {"a": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Cache(small_disk) as cache:
        assert cache.step("lower", {}, builder(calls)).hit
        assert cache.recall("sources", {}) == {"a": 1}
        assert cache.warnings == ()
        assert not cache.step("lower", {"new": 1}, builder(calls)).hit
        cache.remember("sources", {"new": 1}, {"b": 1})
        assert cache.recall("sources", {"new": 1}) == {"b": 1}
        assert all("cannot be written (" in warning for warning in cache.warnings)
        assert "Read-only file system" in cache.warnings[0]


def test_a_file_in_the_place_of_the_cache_is_a_warning(root: Path) -> None:
    root.write_text("")
    with Cache(root) as cache:
        assert content(cache.step("lower", {}, builder([]))) == EXPECTED
        assert len(cache.warnings) == 1


def test_an_error_of_the_build_is_not_blamed_on_the_cache(root: Path) -> None:
    def build(_: Path) -> Mapping[str, Any]:
        raise PermissionError(13, "Permission denied", "/data/weights.pt")

    with Cache(root) as cache, pytest.raises(PermissionError, match=r"/data/weights\.pt"):
        cache.step("lower", {}, build)
    assert cache.warnings == ()


# Several processes

STEP = """
import sys, time
from pathlib import Path
from edgeport.cache import Cache

def build(directory):
    (directory / "model.bin").write_text(sys.argv[2])
    print("building", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
    return {"by": sys.argv[2]}

with Cache(Path(sys.argv[1])) as cache:
    entry = cache.step("lower", {}, build)
    print((entry.directory / "model.bin").read_text(), entry.result["by"], len(cache.warnings))
"""


def start_builds(root: Path, go: Path, *names: str) -> list[subprocess.Popen[str]]:
    """Returns processes that all are in the middle of a build, until the file `go` exists."""
    processes = [run_python(STEP, str(root), name, str(go)) for name in names]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
    return processes


def test_two_processes_that_build_the_same_agree(root: Path, tmp_path: Path) -> None:
    processes = start_builds(root, tmp_path / "go", "a", "b")
    (tmp_path / "go").touch()
    answers = []
    for process in processes:
        told, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        answers.append(told.strip())
    assert answers[0] == answers[1]
    assert answers[0] in {"a a 0", "b b 0"}
    assert sorted(path.name for path in root.iterdir()) == ["lower"]


def test_a_killed_build_is_swept_and_a_living_one_spared(root: Path, tmp_path: Path) -> None:
    dead, living = start_builds(root, tmp_path / "go", "dead", "living")
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert len(list(root.glob(".building-*[!k]"))) == 2
    with Cache(root) as cache:
        assert not cache.step("lower", {"other": 1}, builder([])).hit
    assert len(list(root.glob(".building-*[!k]"))) == 1
    (tmp_path / "go").touch()
    told, _ = living.communicate(timeout=30)
    assert told == "living living 0\n"
    assert sorted(path.name for path in root.iterdir()) == ["lower"]


# Where it is


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("EDGEPORT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_root() == Path("/home/ada/.cache/edgeport")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: ignored
    assert default_root() == Path("/home/ada/.cache/edgeport")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert default_root() == Path("/var/cache/ada/edgeport")
    monkeypatch.setenv("EDGEPORT_CACHE_DIR", "~/fast")
    assert default_root() == Path("/home/ada/fast")
    for off in ("", "off"):
        monkeypatch.setenv("EDGEPORT_CACHE_DIR", off)
        assert default_root() is None
