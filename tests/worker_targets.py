"""Functions that really misbehave, for a child process to run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeport.errors import InputError, RuntimeCrashed, StageFailed, UnknownName


def echo(**values: Any) -> dict[str, Any]:
    return {"values": values, "cwd": os.getcwd(), "pid": os.getpid()}


def read_stdin() -> str:
    return sys.stdin.read()


def limits_seen() -> dict[str, Any]:
    import resource

    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "group_is_own": os.getpgid(0) == os.getpid(),
        "session": os.getsid(0),
    }


def abort() -> None:
    print("vendor: assertion failed: graph is not finalized", flush=True)
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: int) -> None:
    sys.exit(status)


def hang(pids: str, forever: bool = True) -> str:
    """Starts a process that sleeps, writes three ids, and hangs as a vendor's C code would."""
    grandchild = subprocess.Popen(["sleep", "600"])
    Path(pids).write_text(f"{os.getpid()} {grandchild.pid} {os.getppid()}")
    if forever:
        # Holds the interpreter's lock: no Python thread or handler of this process can run.
        ctypes.PyDLL(None).sleep(600)
    return "left a process behind"


def leave_files(ending: str, told: str) -> None:
    """Writes a temporary file, says where, and dies or hangs."""
    made = Path(tempfile.mkdtemp(), "weights")
    made.write_text("large")
    Path(told).write_text(str(made))
    if ending == "abort":
        os.abort()
    time.sleep(600)


def allocate(count: int) -> int:
    blocks = [bytearray(b"x" * (16 << 20)) for _ in range(count)]
    return len(blocks)


def allocate_then_abort(count: int) -> None:
    """Fills the memory that is allowed, then dies the way C++ does without saying why."""
    blocks = []
    try:
        for _ in range(count):
            blocks.append(bytearray(b"x" * (16 << 20)))
    except MemoryError:
        os.abort()


def reserve(size: int) -> int:
    """Reserves address space without touching it, as allocators and thread pools do."""
    import mmap

    prot_none = 0
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot_none):
        return size


def chatter(size: int) -> int:
    line = "vendor: progress " * 63
    printed = 0
    while printed < size:
        print(line)
        printed += len(line) + 1
    os.write(1, b"from C\n")
    os.write(2, b"{}\n")
    return printed


def refuse() -> None:
    raise InputError("weights.pt holds no tensor 'head.weight': give the file of this network")


def refuse_name() -> None:
    raise UnknownName("precision", "w8a17", ["float", "w8a8", "w8a16"])


def fail_stage() -> None:
    raise StageFailed("quantize", "no calibration data")


def crash_again() -> None:
    raise RuntimeCrashed("lower", "inner", reason="signal", last_lines="a\nb")


def raise_error() -> None:
    raise ValueError("node 'Softmax_3' is not supported\nsecond line")


def not_json() -> object:
    return object()


def slow_write(directory: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        Path(directory, "alive").write_text(str(time.monotonic()))
        time.sleep(0.02)


def print_bytes_and_abort() -> None:
    os.write(1, b"\xff\xfe\x00 not text\n")
    os.abort()


def simplify_folder(folder: str) -> None:
    """Writes N.simple beside each N.onnx that onnxsim takes."""
    from edgeport.passes.simplify import simplify_file

    for source in sorted(Path(folder).glob("*.onnx")):
        try:
            simplify_file(str(source), str(source.with_suffix(".simple")))
        except Exception as error:  # onnxsim's own; the pass goes on without it
            print(f"{source.name}: {error}")


def fail_in_other_words(megabytes: int) -> None:
    """Takes memory to the last block, then raises what a starved library makes up."""
    held = [bytearray(1 << 20) for _ in range(megabytes)]
    try:
        while True:
            held.append(bytearray(1 << 20))
    except MemoryError:
        raise ValueError("field 'target' is required for AnnAssign") from None


def fail_with_room_left() -> None:
    raise ValueError("field 'target' is required for AnnAssign")
