"""The runtime `precompiled_qnn_onnx`: one ONNX file with the context binary inside it.

The name is that of Qualcomm's AI Hub. It is `qnn_context_binary` for an app that ships one file:
the same EPContext node, with the binary itself where the name of its file stood.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeport.errors import StageFailed
from edgeport.runtimes import CompileRequest, qnn_context_binary
from edgeport.runtimes.qnn_context_binary import (
    BINARY,
    PLACEMENT,
    WRAPPER,
    EmulatedSession,
    compiled_with,
    context_attributes,
)
from edgeport.types import NodeReport

NAME = "precompiled_qnn_onnx"
FILE = "precompiled_qnn.onnx"
# Protocol buffers hold 2 GiB: https://protobuf.dev/programming-guides/proto-limits/#total
_MOST_BYTES = 2**31 - 2**20  # the graph's names and shapes need some of it


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Writes `precompiled_qnn.onnx`; `model` is a model, or the binary that was compiled from it.

    Returns the QAIRT version. Raises StageFailed where the binary cannot be embedded.
    """
    model, directory = Path(request.model), Path(request.directory)
    if model.name == BINARY:
        return {"qairt_version": _embed(model, directory)}
    with TemporaryDirectory(dir=directory) as folder:
        qnn_context_binary.compile_model(replace(request, directory=folder))
        return {"qairt_version": _embed(Path(folder, BINARY), directory)}


def load(directory: Path, device: Mapping[str, Any]) -> EmulatedSession:
    """Returns the file in `directory`, to be run in the emulator of the device's NPU."""
    return EmulatedSession(directory / FILE, device)


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns where the compiler put each operator of the model."""
    return qnn_context_binary.report_nodes(directory)


def _embed(binary: Path, directory: Path) -> str:
    """Writes the binary's wrapper with the binary inside into `directory`, and the placement.

    Returns the QAIRT version.
    """
    import onnx

    size = binary.stat().st_size
    if size > _MOST_BYTES:
        raise StageFailed(
            "lower",
            f"the context binary is {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB: use"
            " --target-runtime qnn_context_binary, which keeps it in a file of its own",
        )
    model = onnx.load(binary.with_name(WRAPPER), load_external_data=False)
    attributes = context_attributes(model)
    attributes["embed_mode"].i = 1
    attributes["ep_cache_context"].s = binary.read_bytes()
    onnx.save(model, directory / FILE)
    shutil.copyfile(binary.with_name(PLACEMENT), directory / PLACEMENT)
    return compiled_with(attributes)
