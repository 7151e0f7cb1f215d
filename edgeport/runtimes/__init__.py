"""Runtimes: a file format and what executes it, declared in one table; importing it is cheap."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from edgeport.errors import InputError, UnknownName
from edgeport.types import Serialisable


@dataclass(frozen=True)
class Runtime(Serialisable):
    """A row of the table: what is compiled, what runs it here, and the package that it needs."""

    name: str
    files: tuple[str, ...]
    runs_here: str
    requires: str
    install: str


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "onnx",
            ("quantized.onnx", "optimized.onnx"),
            "onnxruntime on this machine's CPU",
            "onnxruntime",
            "pip install onnxruntime",
        ),
        Runtime(
            "qnn_context_binary",
            ("model.bin", "model_ctx.onnx"),
            "Qualcomm's HTP emulator (numerics only)",
            "onnxruntime_qnn",
            "pip install onnxruntime-qnn  (Linux x86-64 or Windows)",
        ),
    )
}


def find_runtime(name: str) -> Runtime:
    """Returns the runtime of this name, importable here.

    Raises UnknownName, or InputError with the install line where its package is missing.
    """
    if name not in RUNTIMES:
        raise UnknownName("target runtime", name, RUNTIMES)
    runtime = RUNTIMES[name]
    if importlib.util.find_spec(runtime.requires) is None:
        raise InputError(f"runtime {name} needs {runtime.requires}: {runtime.install}")
    return runtime
