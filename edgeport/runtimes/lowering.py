"""Compiles a model for a runtime and runs what came of it, both in a child process.

The functions named `_..._here` are the child's. Where edgeport.toml names an interpreter for the
runtime, that one is the child: it needs Python 3.11, numpy and what the runtime needs, but no
edgeport of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.config import load_config
from edgeport.errors import InputError
from edgeport.runtimes import RUNTIMES, CompileRequest
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.types import Device, NodeReport, Precision


@dataclass(frozen=True)
class Compiled:
    """What a compiler said: where each operator runs, and facts for the manifest."""

    nodes: tuple[NodeReport, ...]
    facts: Mapping[str, Any]


def compile_for(
    name: str,
    model: Path,
    directory: Path,
    device: Device,
    precision: Precision,
    limits: Limits,
    calibration: Path | None = None,
) -> Compiled:
    """Writes the files of the runtime `name` into `directory`, compiled from an ONNX model.

    `calibration` is a file of `save_samples` for the converters that quantize by themselves.
    Raises StageFailed where the model cannot be compiled, InputError where it is not for this
    runtime, and RuntimeCrashed when the compiler aborts, hangs or takes more than its limits.
    """
    python = _interpreter(name, directory, limits)
    request = CompileRequest(
        str(model.resolve()),
        str(directory.resolve()),
        precision,
        device.values,
        None if calibration is None else str(calibration.resolve()),
    )
    answer = run_in_child(
        f"{__name__}:_compile_here",
        {"module": RUNTIMES[name].module, "request": request.to_dict()},
        stage="lower",
        workdir=directory,
        limits=limits,
        python=python,
    )
    return Compiled(tuple(NodeReport(**node) for node in answer["nodes"]), answer["facts"])


def run_compiled(
    name: str, compiled: Path, workdir: Path, inputs: Path, device: Device, limits: Limits
) -> list[Sample]:
    """Returns the outputs ("output_0" ...) that the runtime's files in `compiled` give here.

    `inputs` is a file of `save_samples`. In the NPU's emulator the numbers are the NPU's, and the
    time it takes means nothing. Raises RuntimeCrashed and StageFailed.
    """
    outputs = workdir / f"{name}_outputs.npz"
    run_in_child(
        f"{__name__}:_run_here",
        {
            "module": RUNTIMES[name].module,
            "directory": str(compiled.resolve()),
            "inputs": str(inputs.resolve()),
            "outputs": str(outputs.resolve()),
            "device": device.values,
        },
        stage="run",
        workdir=workdir,
        limits=limits,
        python=load_config().interpreters.get(name),
    )
    return load_samples(outputs)


def _interpreter(name: str, workdir: Path, limits: Limits) -> Path | None:
    """Returns the interpreter that edgeport.toml names for the runtime, None without one.

    Raises InputError where a module is missing there: this one cannot know it before.
    """
    python = load_config().interpreters.get(name)
    if python is None:
        return None
    target = "edgeport.runtimes:missing_modules"
    lacking = run_in_child(
        target, {"name": name}, stage="lower", workdir=workdir, limits=limits, python=python
    )
    if lacking:
        raise InputError(
            f"runtime {name}: {python} of edgeport.toml lacks {', '.join(lacking)}:"
            f" {python} -m {RUNTIMES[name].install}"
        )
    return python


def _compile_here(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    runtime = importlib.import_module(module)
    asked = CompileRequest.from_dict(request)
    facts = runtime.compile_model(asked)
    nodes = [node.to_dict() for node in runtime.report_nodes(Path(asked.directory))]
    return {"nodes": nodes, "facts": facts}


def _run_here(
    module: str, directory: str, inputs: str, outputs: str, device: Mapping[str, Any]
) -> None:
    session = importlib.import_module(module).load(Path(directory), device)
    results = [named_outputs(session.run(one)) for one in load_samples(Path(inputs))]
    save_samples(Path(outputs), results)
