"""The peak resident memory of a whole command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from edgeport.errors import StageFailed

# Linux starts the peak of a child at the peak of the process that forked it: from a parent with
# torch loaded, `true` would report hundreds of MB. This small process in between has about 10 MB,
# which is then the least that can be reported.
_LAUNCHER = """
import os, sys
report, argv = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(report, False)
child = os.fork()
if child == 0:
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(127)
_, status, usage = os.wait4(child, 0)
os.write(report, f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}".encode())
"""


def peak_bytes_of(
    argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> int:
    """Returns the peak resident bytes of the command `argv`, run to its end (Linux and macOS).

    Of the command and the descendants it waited for, the largest single process counts; about
    10 MB is the least. `env` replaces the environment; the command's output is dropped. Raises
    StageFailed, with the last line of its stderr, where it fails or outlives `timeout_s` seconds.
    """
    if not argv:
        raise ValueError("there is no command to run")
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as stderr:
        finished = _launch(argv, timeout_s, env, report, stderr)
        report.seek(0)
        fields = report.read().split()
        problem = _problem(fields) if finished else f"took over {timeout_s:g} s"
        if problem:
            said = _last_line(stderr)
            raise StageFailed("peak memory", f"{argv[0]} {problem}" + (said and f": {said}"))
    # ru_maxrss is in KiB, on macOS in bytes.
    return int(fields[1]) * (1 if sys.platform == "darwin" else 1024)


def _launch(
    argv: Sequence[str],
    timeout_s: float,
    env: Mapping[str, str] | None,
    report: IO[bytes],
    stderr: IO[bytes],
) -> bool:
    """Returns whether `argv` ended in time; kills its whole process group where it did not."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report.fileno()), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=None if env is None else dict(env),
        pass_fds=(report.fileno(),),
        start_new_session=True,
    )
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return True


def _problem(fields: Sequence[bytes]) -> str:
    """Returns what went wrong by the launcher's report, "" where nothing did."""
    if len(fields) != 2:
        return "could not be started"
    code = int(fields[0])
    if code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with {code}" if code else ""


def _last_line(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
