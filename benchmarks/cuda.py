"""Where a suite in torch runs: a CUDA GPU, with its own clock and memory, or this machine's CPU.

What differs between the two is in `Machine`, so that a suite for a GPU can be tried without one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeport.measure import BatchClock, host_batch_ms

Call = Callable[[], object]
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """What runs the arms: torch's name for it, its name in words, and what its times depend on.

    `batch_ms` is its clock, `peak_bytes` the memory that a call takes above what was allocated
    before it (None: not known), and `compile(module, channels_last)` makes the module fast.
    """

    device: str
    name: str
    facts: Mapping[str, str]
    memory_gib: float
    batch_ms: BatchClock
    peak_bytes: Callable[[Call], float | None]
    compile: Callable[[nn.Module, bool], Callable[..., Any]]
    finish: Call


def find_gpu() -> Machine | None:
    """Returns the current CUDA device, None where torch has none."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties()
    facts = {
        "gpu": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }
    return Machine(
        "cuda",
        found.name,
        facts,
        found.total_memory / 2**30,
        _batch_ms,
        _peak_bytes,
        _compiled,
        torch.cuda.synchronize,
    )


def host(compiler: str = "inductor") -> Machine:
    """Returns this machine's CPU; `compiler` is the name of torch.compile's backend."""

    def compiled(module: nn.Module, channels_last: bool) -> Callable[..., Any]:
        del channels_last
        return torch.compile(module, dynamic=False, fullgraph=True, backend=compiler)

    return Machine("cpu", "CPU", {}, 0.0, host_batch_ms, lambda call: None, compiled, lambda: None)


def _compiled(module: nn.Module, channels_last: bool) -> Callable[..., Any]:
    """Compiles for one shape; inductor may choose the layout only where it is to be the last."""
    options: dict[str, Any] = {"layout_optimization": channels_last}
    return torch.compile(module, dynamic=False, fullgraph=True, options=options)


def _batch_ms(call: Call, calls: int) -> float:
    """Returns the GPU's milliseconds between two of its events around the calls.

    One more call goes ahead: while it runs, the host enqueues those that are timed.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    call()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _peak_bytes(call: Call) -> float:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def driver_version() -> str:
    """Returns the version of NVIDIA's driver, as the kernel or nvidia-smi tells it."""
    if _DRIVER.is_file():
        return driver_in(_DRIVER.read_text(encoding="utf-8", errors="replace"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    argv = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    return driver_in(said.stdout)


def driver_in(text: str) -> str:
    """Returns the first version in what the driver says of itself, "unknown" without one."""
    found = re.search(r"(?<![\w.])\d+\.\d+(\.\d+)?(?![\w.])", text)
    return found[0] if found else "unknown"
