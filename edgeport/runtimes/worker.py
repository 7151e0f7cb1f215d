"""Runs vendor code in a child process, where it may print, crash, hang or eat memory.

Three processes. This one starts a **watcher** (`python -m edgeport.runtimes.worker`), which reads
the request from its stdin, forks the **worker**, and answers on its stdout with how the worker
ended. The watcher runs no vendor code, so it always reacts: to SIGTERM (a time limit here) and to
the death of the process that started it, it kills the worker with all that the worker started.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from edgeport import errors
from edgeport.errors import EdgeportError, RuntimeCrashed
from edgeport.private import scratch_directory

_GRACE_SECONDS = 10.0
_NEAR_LIMIT = 0.9
_STARVED = 0.98  # an allocation that fails may be larger than what is left
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|MemoryError|cannot allocate memory|failed to allocate memory|out of memory"
    r"|memory allocation (still )?failed|failed to map segment",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """What a child process may take: wall-clock seconds, and bytes of writable private memory."""

    seconds: float
    memory_bytes: int


def run_in_child(
    target: str,
    arguments: Mapping[str, Any],
    *,
    stage: str,
    workdir: Path,
    limits: Limits,
    python: Path | None = None,
) -> Any:
    """Returns what the function `target` ("module:function") gives for `arguments` in a child.

    Arguments and result are plain JSON values; the child's current directory is `workdir`. What it
    prints is kept in `workdir`/`stage`.log when it fails. `python` is another interpreter, with its
    own packages and this edgeport. Raises the child's own EdgeportError,
    and RuntimeCrashed with reason "exit" (an exception or an exit status), "signal", "timeout" or
    "memory".
    """
    assert re.fullmatch(r"[\w.-]+", stage), f"a stage names a file: {stage!r}"
    request = {
        "target": target,
        "arguments": dict(arguments),
        "memory_bytes": limits.memory_bytes,
        "parent": os.getpid(),
    }
    log = workdir / f"{stage}.log"
    # Temporary files of a child that is killed go with this process's directory.
    with log.open("wb") as output, scratch_directory() as scratch:
        environment = {**os.environ, "PYTHONPATH": _module_path(python, scratch)}
        environment["TMPDIR"] = str(scratch)
        interpreter = str(python or sys.executable)
        answer = _exchange(
            json.dumps(request), workdir, output, environment, limits.seconds, interpreter
        )
    if "result" in answer:
        log.unlink()
        return answer["result"]
    raise _failure(answer, stage, limits, _last_lines(log))


def _exchange(
    request: str,
    workdir: Path,
    output: IO[bytes],
    environment: Mapping[str, str],
    seconds: float,
    interpreter: str,
) -> dict[str, Any]:
    """Returns the watcher's answer; the worker is dead when this returns or raises."""
    # -P: a file in workdir must not shadow a module. A new session: the terminal's Ctrl-C reaches
    # this process only, which then stops the others.
    process = subprocess.Popen(
        [interpreter, "-P", "-m", "edgeport.runtimes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        cwd=workdir,
        env=environment,
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(request.encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return {"timeout": True}
    except BaseException:
        _stop(process)
        raise
    try:
        return dict(json.loads(answer))
    except ValueError:
        return {"status": process.returncode}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the watcher, which kills the worker and its children; returns when they are dead."""
    process.terminate()
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # the worker has PR_SET_PDEATHSIG and goes with it
        process.communicate()


def _module_path(python: Path | None, scratch: Path) -> str:
    """Returns a PYTHONPATH that finds the modules which we find; for another interpreter, edgeport.

    Another interpreter must not meet the packages beside edgeport, which were built for this one.
    """
    if python is None:
        found = (os.path.abspath(entry) for entry in sys.path)
        return os.pathsep.join(dict.fromkeys(found))
    (scratch / "edgeport").symlink_to(Path(errors.__file__).parent, target_is_directory=True)
    return str(scratch)


# What became of the worker, in words


def _failure(
    answer: Mapping[str, Any], stage: str, limits: Limits, last_lines: str
) -> EdgeportError:
    """Returns the error to raise for a worker that gave no result."""
    if "edgeport_error" in answer:
        return _rebuild(answer["edgeport_error"])
    reason, message = _explain(answer, limits, last_lines)
    message = f"{message}; what it printed is in {stage}.log"
    return RuntimeCrashed(stage, message, reason=reason, last_lines=last_lines)


def _explain(answer: Mapping[str, Any], limits: Limits, last_lines: str) -> tuple[str, str]:
    """Returns RuntimeCrashed's reason and one line that says what happened."""
    if "timeout" in answer:
        return "timeout", f"the child process did not end in {limits.seconds:g} s (--timeout)"
    raised = answer.get("exception")
    what = raised or _ending(answer["status"])
    # A native crash near the limit is taken for a failed allocation that nothing checked. An
    # exception says itself what it is about, unless it was raised where nothing was left at all:
    # then any library, and the interpreter's own parser, fail in words of their own.
    near = answer.get("starved") or (
        not raised and answer.get("peak_bytes", 0) >= _NEAR_LIMIT * limits.memory_bytes
    )
    # A library that cannot be loaded tells the system's reason in its last line.
    told = last_lines if not raised or raised.startswith("ImportError") else raised
    if near or _OUT_OF_MEMORY.search(told):
        limit = f"{limits.memory_bytes / 2**30:.3g} GiB"
        return "memory", f"the child process needs more than {limit} (--memory): {what}"
    if raised:
        return "exit", what
    return ("signal" if answer["status"] < 0 else "exit"), f"the child process {what}"


def _ending(status: int) -> str:
    """Returns how a process ended, from its exit code (negative: the signal that killed it)."""
    if status >= 0:
        return f"ended with exit status {status} before it gave a result"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _describe(error: EdgeportError) -> dict[str, Any]:
    """Returns `error` as JSON values: its nearest class in edgeport.errors, text and fields."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    fields = {key: value for key, value in vars(error).items() if isinstance(value, str)}
    return {"class": next(known), "message": str(error), "fields": fields}


def _rebuild(description: Mapping[str, Any]) -> EdgeportError:
    """Returns the error that `_describe` described, without calling its class's constructor."""
    kind = getattr(errors, description["class"])
    error = kind.__new__(kind, description["message"])
    vars(error).update(description["fields"])
    assert isinstance(error, EdgeportError)
    return error


def _last_lines(log: Path, count: int = 20) -> str:
    """Returns the last lines of a log of any size."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])


# The watcher


def main() -> None:
    """Reads a request from stdin, runs it in a fork, and prints the answer as one JSON object."""
    request = json.load(sys.stdin)
    # Blocked until the handler knows whom to kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _die_with_parent(request["parent"], signal.SIGTERM)
    with tempfile.TemporaryFile() as response:
        watcher = os.getpid()
        worker = os.fork()
        if worker == 0:
            _work(request, response, watcher)
        with contextlib.suppress(OSError):  # the worker may have done it itself, and be gone
            os.setpgid(worker, worker)
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(worker, signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        print(json.dumps(_wait(worker, response)), flush=True)


def _wait(worker: int, response: IO[bytes]) -> dict[str, Any]:
    """Returns the worker's response if it is whole, with the exit code and the peak of memory."""
    # Left as a zombie for a moment, the worker keeps its process group's id from being reused
    # while that group - whatever the vendor code started and left behind - is killed.
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):  # nothing but the zombie is left, on some systems
        os.killpg(worker, signal.SIGKILL)
    _, status, usage = os.wait4(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    response.seek(0)
    text = response.read()
    answer = json.loads(text) if code == 0 and text else {}
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return {"status": code, "peak_bytes": usage.ru_maxrss * unit, **answer}


def _die_with_parent(parent: int, signal_number: int) -> None:
    """Makes the kernel send this process a signal when its parent dies; Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal_number), 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


# The worker


def _work(request: Mapping[str, Any], response: IO[bytes], watcher: int) -> NoReturn:
    """Calls the target and writes its result or exception to `response`; does not return."""
    code = 1
    try:
        _enter_worker(request["memory_bytes"], watcher)
        answer = json.dumps(_call(request["target"], request["arguments"]))
        response.write(answer.encode())
        response.flush()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        if code == 1 and sys.exception() is not None:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            ctypes.CDLL(None).fflush(None)
        # Not sys.exit: the result is whole, and vendor libraries like to crash in their teardown.
        os._exit(code & 0xFF)


def _enter_worker(memory_bytes: int, watcher: int) -> None:
    """Sets the limits, the signals and the standard streams that vendor code is to see."""
    os.setpgid(0, 0)
    _die_with_parent(watcher, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # stdout is the watcher's answer
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # DATA counts writable private memory, which is what a leak or a huge buffer takes. AS would
    # also count address space that is only reserved, and thread pools, allocators and mapped
    # weights reserve many times what they use.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _call(target: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"result": ...}, or what was raised as plain JSON values."""
    try:
        module, _, function = target.partition(":")
        result = getattr(importlib.import_module(module), function)(**arguments)
        return {"result": json.loads(json.dumps(result))}
    except EdgeportError as error:
        traceback.print_exc()
        return {"edgeport_error": _describe(error)}
    except Exception as error:  # vendor code may raise anything
        # The limit may be what was raised about: saying so needs a little memory.
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        traceback.print_exc()
        first, *_ = str(error).strip().splitlines() or [""]
        told = f"{type(error).__name__}: {first[:300]}".rstrip(": ")
        return {"exception": told, "starved": _data_bytes() >= _STARVED * soft}


def _data_bytes() -> int:
    """Returns the writable private memory of this process (proc(5)); 0 where nothing tells it."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if found := re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
