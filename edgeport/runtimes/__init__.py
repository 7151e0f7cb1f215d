"""Runtimes: a file format and what executes it, declared in one table; importing it is cheap.

Each has one module of its own, `edgeport.runtimes.NAME`, with three functions that
`edgeport.runtimes.lowering` calls in a child process, perhaps of another interpreter:

    compile_model(request: CompileRequest) -> dict   writes `files` into request.directory, and
                                                     returns facts for the manifest, plain values;
                                                     "notes" are sentences, shown with the table
    load(directory: Path, device: dict) -> Session   whose run(feed) gives the outputs in order
    report_nodes(directory: Path) -> list[NodeReport]   where each operator runs, or []
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from edgeport.config import load_config
from edgeport.errors import InputError, UnknownName
from edgeport.types import (
    CONVERTER_PRECISIONS,
    PRECISIONS,
    Precision,
    Provenance,
    Serialisable,
    Unit,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Compiles = Literal["rewritten", "quantized"]
"""Which ONNX file a runtime takes: the float one after the passes, because its own converter
quantizes; or the one with QuantizeLinear pairs (the same file where the precision is float)."""


class Session(Protocol):
    """A loaded model."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns the outputs in the graph's order, for a feed by input name."""
        ...


@dataclass(frozen=True)
class CompileRequest(Serialisable):
    """What one compilation needs: plain JSON values, since it crosses the process line.

    `model` is an absolute path, `directory` where the files go. `device` maps a fact's name to its
    value. `calibration` is a file of `samples.save_samples`, for a converter that quantizes.
    """

    model: str
    directory: str
    precision: Precision
    device: Mapping[str, Any]
    calibration: str | None = None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Returns the request that `to_dict` wrote."""
        return cls(**{field.name: table[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Runtime(Serialisable):
    """A row of the table.

    `files` are those that an export leaves, what is loaded first; `computed` is the type that the
    device computes in where the precision is float; `runs_as` is the provenance of its numbers on
    this machine, None where nothing here runs it; `requires` are the modules that compile, and
    `runs_with` those of which one has to be there to run it. Without `default` it is made only when
    it is asked for by name. `units` are where its operators can land. `packs` names the runtime
    whose files it puts into another form: then those are what an export compiles it from.
    """

    name: str
    files: tuple[str, ...]
    compiles: Compiles
    passes: Literal["npu", "gpu", "any"]
    precisions: tuple[Precision, ...]
    computed: str
    runs_here: str
    runs_as: Provenance | None
    requires: tuple[str, ...]
    runs_with: tuple[str, ...]
    install: str
    default: bool = False
    units: tuple[Unit, ...] = ("npu", "cpu")
    packs: str = ""

    @property
    def module(self) -> str:
        """The module that compiles and loads it."""
        return f"{__name__}.{self.name}"

    def missing(self) -> tuple[str, ...]:
        """Returns the modules that this interpreter lacks to compile and run it."""
        lacking = [name for name in self.requires if not _is_importable(name)]
        if self.runs_with and not any(_is_importable(name) for name in self.runs_with):
            lacking.append(self.runs_with[0])
        return tuple(dict.fromkeys(lacking))


_CONTEXT_BINARY = Runtime(
    name="qnn_context_binary",
    files=("model.bin", "model_ctx.onnx"),
    compiles="quantized",
    passes="npu",
    precisions=(*PRECISIONS, "auto"),
    computed="fp16",
    runs_here="Qualcomm's HTP emulator (numerics only)",
    runs_as="emulated",
    requires=("onnxruntime_qnn",),
    runs_with=("onnxruntime_qnn",),
    install="pip install onnxruntime-qnn  (Linux x86-64 or Windows)",
    default=True,
)

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnx",
            files=("quantized.onnx", "optimized.onnx"),
            compiles="quantized",
            passes="any",
            precisions=(*PRECISIONS, "auto"),
            computed="fp32",
            runs_here="onnxruntime on this machine's CPU",
            runs_as="host",
            requires=("onnxruntime",),
            runs_with=("onnxruntime",),
            install="pip install onnxruntime",
            default=True,
            units=("cpu",),
        ),
        _CONTEXT_BINARY,
        replace(
            _CONTEXT_BINARY,
            name="precompiled_qnn_onnx",
            files=("precompiled_qnn.onnx",),
            packs="qnn_context_binary",
            default=False,
        ),
        replace(_CONTEXT_BINARY, name="qnn_dlc", files=("model.dlc",), default=False),
        Runtime(
            name="executorch",
            files=("model.pte",),
            compiles="rewritten",
            passes="gpu",
            precisions=("float", "w8a8", "w8-dynamic"),
            computed="fp32",
            runs_here="ExecuTorch's XNNPACK on this machine's CPU",
            runs_as="host",
            requires=("executorch", "torchao", "torch", "onnx"),
            runs_with=("executorch",),
            install='pip install "edgeport[executorch]"',
            units=("cpu",),
        ),
        Runtime(
            name="tflite",
            files=("model.tflite",),
            compiles="rewritten",
            passes="gpu",
            precisions=("float", "w8a8", "w8a16", *CONVERTER_PRECISIONS),
            computed="fp32",
            runs_here="LiteRT on this machine's CPU (XNNPACK)",
            runs_as="host",
            requires=("litert_torch", "ai_edge_quantizer", "ai_edge_litert", "onnx", "torch"),
            runs_with=("ai_edge_litert", "tflite_runtime"),
            install='pip install "edgeport[tflite]"',
            units=("gpu", "cpu"),
        ),
        Runtime(
            name="webgpu",
            files=("program.json",),
            compiles="rewritten",
            passes="any",
            precisions=("float",),
            computed="fp32",
            runs_here="wgpu on this machine's Vulkan, Metal or D3D12 driver",
            runs_as="host",
            requires=("wgpu",),
            runs_with=("wgpu",),
            install='pip install "edgeport[webgpu]"',
            units=("gpu",),
        ),
    )
}


def find_runtime(name: str) -> Runtime:
    """Returns the runtime of this name.

    Raises UnknownName, or InputError with the install line where a module is missing that no other
    interpreter in edgeport.toml has.
    """
    if name not in RUNTIMES:
        raise UnknownName("target runtime", name, RUNTIMES)
    runtime = RUNTIMES[name]
    if name in interpreters():
        return runtime
    if missing := runtime.missing():
        raise InputError(f"runtime {name} needs {', '.join(missing)}: {runtime.install}")
    return runtime


def interpreters() -> Mapping[str, Path]:
    """Returns runtime -> the interpreter that edgeport.toml names for it.

    Raises UnknownName for a runtime there that there is not.
    """
    config = load_config()
    for name in config.interpreters:
        if name not in RUNTIMES:
            raise UnknownName(f"runtime in {config.file}, [runtimes.{name}]:", name, RUNTIMES)
    return config.interpreters


def missing_modules(name: str) -> list[str]:
    """Returns what this interpreter lacks for a runtime, numpy included; for a child process."""
    lacking = [] if _is_importable("numpy") else ["numpy"]
    return [*lacking, *RUNTIMES[name].missing()]


def _is_importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
