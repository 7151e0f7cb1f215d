"""The plain path: what a user has without edgeport, with the same module, feeds and compiler.

`torch.onnx.export`, onnxruntime's own QNN preprocessing and quantization configuration (int8
weights per channel, which is its better setting), and a session that may fall back to the CPU.
Of edgeport it uses only the child process, in which a crash is a row and not the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.runtimes.samples import load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits, run_in_child

Feed = Mapping[str, NDArray[Any]]
CONVERTERS = ("QuantizeLinear", "DequantizeLinear")


class _Reader:
    """Gives onnxruntime's calibrator one feed at a time."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def export_plain(module: Any, feed: Feed, target: Path) -> None:
    """Writes the module as ONNX, opset 21, with torch's exporter and its own optimisation."""
    import torch

    arguments = tuple(torch.from_numpy(np.array(array)) for array in feed.values())
    with torch.no_grad():
        program = torch.onnx.export(
            module, arguments, dynamo=True, opset_version=21, input_names=list(feed), verbose=False
        )
    assert program is not None
    program.save(target)


def quantize_plain(source: Path, target: Path, precision: str, feeds: Iterator[Feed]) -> None:
    """Writes the quantized model, with onnxruntime's QNN configuration."""
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import (
        get_qnn_qdq_config,
        qnn_preprocess_model,
    )

    prepared = source.with_name("prepared.onnx")
    prepared.unlink(missing_ok=True)
    model = prepared if qnn_preprocess_model(source, prepared) else source
    activation = {"w8a8": QuantType.QUInt8, "w8a16": QuantType.QUInt16}[precision]
    config = get_qnn_qdq_config(
        model,
        _Reader(feeds),
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    quantize(model, target, config)


def place_and_run(
    model: Path, work: Path, provider: Mapping[str, str], samples: Sequence[Feed], limits: Limits
) -> tuple[dict[str, Any], list[Mapping[str, NDArray[Any]]]]:
    """Returns {npu, cpu, compile_s, run_s} and the outputs; raises RuntimeCrashed.

    The nodes are the operators without QuantizeLinear and DequantizeLinear.
    """
    inputs, outputs = work / "inputs.npz", work / "outputs.npz"
    save_samples(inputs, samples)
    told = run_in_child(
        f"{__name__}:_place_and_run_here",
        {
            "model": str(model.resolve()),
            "inputs": str(inputs.resolve()),
            "outputs": str(outputs.resolve()),
            "provider": dict(provider),
        },
        stage="plain",
        workdir=work,
        limits=limits,
    )
    return told, load_samples(outputs)


def _place_and_run_here(
    model: str, inputs: str, outputs: str, provider: dict[str, str]
) -> dict[str, Any]:
    import onnxruntime as ort
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    ort.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices(devices, {**provider, **backend})
    started = time.perf_counter()
    session = ort.InferenceSession(model, options)
    compiled = time.perf_counter()
    results = [named_outputs(session.run(None, dict(one))) for one in load_samples(Path(inputs))]
    save_samples(Path(outputs), results)
    ended = time.perf_counter()
    counts = {"npu": 0, "cpu": 0}
    for part in session.get_provider_graph_assignment_info():
        unit = "npu" if part.ep_name == name else "cpu"
        counts[unit] += sum(node.op_type not in CONVERTERS for node in part.get_nodes())
    return {**counts, "compile_s": compiled - started, "run_s": ended - compiled}
