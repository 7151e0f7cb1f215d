"""The output directory is the old one or the new one, whoever is killed, and with two at once."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support import run_python
from versions import fail, names, read_version, replace

from edgeport.staging import check_target

# Replaces DIR again and again by versions whose files all hold the version's number.
WRITER = """
import json, os, sys, time
from pathlib import Path
from edgeport import staging

if sys.argv[3] == "two-renames":  # a kernel without renameat2
    staging._exchange = lambda one, other: False
version = int(sys.argv[2])
while True:
    version += 1
    with staging.staged_directory(Path(sys.argv[1])) as directory:
        for index in range(8):
            (directory / f"f{index}").write_text(str(version) * 1000)
        files = {f"f{index}": {} for index in range(8)}
        text = json.dumps({"generator": "edgeport", "version": version, "files": files})
        (directory / "manifest.json").write_text(text)
    print(version, flush=True)
    if len(sys.argv) > 4 and version >= int(sys.argv[4]):
        break
"""


@pytest.mark.parametrize("way", ["exchange", "two-renames"])
def test_kill_at_any_moment_leaves_the_old_or_the_new(out: Path, way: str) -> None:
    replace(out, 1)
    generator = random.Random(way)
    for _ in range(12):
        writer = run_python(WRITER, str(out), str(read_version(out)), way)
        assert writer.stdout is not None
        told = int(writer.stdout.readline())
        time.sleep(generator.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        told = int([str(told), *rest.split()][-1])
        if way == "exchange":
            assert read_version(out) in {told, told + 1}
        check_target(out)
        with pytest.raises(ZeroDivisionError):
            fail(out, ZeroDivisionError())
        assert read_version(out) in {told, told + 1}
    replace(out, 999)
    assert names(out.parent) == ["out"]


def test_two_runs_into_one_directory(out: Path) -> None:
    """Both succeed; a reader sees one version or another, and no lock or leftover stays."""
    replace(out, 1)
    first = run_python(WRITER, str(out), "1000", "exchange", "1040")
    second = run_python(WRITER, str(out), "2000", "exchange", "2040")
    while first.poll() is None or second.poll() is None:
        descriptor = os.open(out, os.O_RDONLY)  # one version, even while others replace it
        os.close(descriptor)
        time.sleep(0.001)
    for writer in (first, second):
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, "")
    assert read_version(out) in {1040, 2040}
    assert names(out.parent) == ["out"]


def test_the_turn_to_swap_is_the_name_and_not_the_old_file(out: Path) -> None:
    """A lock file is unlinked by its holder; who waited for it must queue at the next one."""
    name = out.with_name(".out.swap.lock")
    first = os.open(name, os.O_RDWR | os.O_CREAT)
    fcntl.flock(first, fcntl.LOCK_EX)
    writer = run_python(WRITER, str(out), "0", "exchange", "1")
    time.sleep(0.5)
    name.unlink()
    second = os.open(name, os.O_RDWR | os.O_CREAT)
    fcntl.flock(second, fcntl.LOCK_EX)
    os.close(first)
    time.sleep(0.5)
    assert not out.exists()
    name.unlink()
    os.close(second)
    _, errors = writer.communicate(timeout=20)
    assert (read_version(out), errors) == (1, "")


def test_two_runs_into_one_directory_by_two_renames(out: Path) -> None:
    writers = [run_python(WRITER, str(out), str(n), "two-renames", str(n + 30)) for n in (0, 500)]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, "")
    assert read_version(out) in {30, 530}
    assert names(out.parent) == ["out"]


# Dies by its own hand just before its n-th change of the file system.
SUICIDE = """
import os, signal, sys
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym"}
left = int(sys.argv[3])
def hook(event, arguments):
    global left
    left -= event in CHANGES
    if left == 0 and event in CHANGES:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv[3] = sys.argv[5]
"""


@pytest.mark.parametrize("way", ["exchange", "two-renames"])
def test_kill_before_each_change_leaves_the_old_or_the_new(out: Path, way: str) -> None:
    replace(out, 1)
    missing = 0
    for count in range(1, 100):
        old = read_version(out)
        # Imports come first: what they change is not of interest.
        code = "import edgeport.staging\n" + SUICIDE + WRITER
        writer = run_python(code, str(out), str(old), str(count), str(old + 1), way)
        _, errors = writer.communicate(timeout=20)
        assert errors == ""
        missing += not out.exists()
        assert way == "two-renames" or out.exists()
        with pytest.raises(ZeroDivisionError):
            fail(out, ZeroDivisionError())
        assert read_version(out) in {old, old + 1}
        if writer.returncode == 0:
            break
        assert writer.returncode == -signal.SIGKILL
        replace(out, 10 * count)
        assert names(out.parent) == ["out"]
    assert count > 10, "the writer died at many different moments"
    assert missing == (way == "two-renames")


HOLDER = """
import sys, time
from pathlib import Path
from edgeport.staging import staged_directory
with staged_directory(Path(sys.argv[1])) as directory:
    (directory / "x").write_text("x")
    print(directory, flush=True)
    time.sleep(600)
"""


def test_sweeps_the_dead_and_spares_the_living(out: Path) -> None:
    living = run_python(HOLDER, str(out))
    dead = run_python(HOLDER, str(out))
    assert living.stdout is not None
    assert dead.stdout is not None
    kept, swept = Path(living.stdout.readline().strip()), Path(dead.stdout.readline().strip())
    dead.kill()
    dead.communicate()
    assert swept.is_dir()
    replace(out, 1)
    assert not swept.exists()
    assert (kept / "x").read_text() == "x"
    living.kill()
    living.communicate()
    replace(out, 2)
    assert names(out.parent) == ["out"]
