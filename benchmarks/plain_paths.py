"""What a user gets without edgeport: each runtime's own documented path from the same module.

`make` runs in a child process, since these converters abort, print and leave state behind. Its
request is a JSON file: source, inputs, weights, seed, precision, the calibration and the directory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport.catalog import find_source
from edgeport.runtimes.samples import Sample, load_samples
from edgeport.sources import build_module

if TYPE_CHECKING:
    import torch
    from torch import nn

FILES = {
    "onnx": "plain.onnx",
    "tflite": "plain.tflite",
    "executorch": "plain.pte",
    "openvino": "plain.onnx",  # it takes ONNX as it is
    "mnn": "plain.mnn",
    "ncnn": "plain.ncnn.param",
}


def make(kind: str, request_file: str) -> None:
    """Makes the file of one runtime."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    source = find_source(
        request["source"],
        inputs=request["inputs"],
        weights=Path(request["weights"]) if request["weights"] else None,
    )
    module = build_module(source, request["seed"])
    feeds = load_samples(Path(request["calibration"]))
    _MAKERS[kind](module, feeds, Path(request["directory"], FILES[kind]), request["precision"])


def _arguments(feed: Sample) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(array) for array in feed.values())


def _onnx(module: nn.Module, feeds: list[Sample], target: Path, precision: str) -> None:
    """torch.onnx.export, then onnxruntime's static quantization with its default settings."""
    import torch

    flat = target if precision == "float" else target.with_name("float.onnx")
    torch.onnx.export(
        module,
        _arguments(feeds[0]),
        flat,
        input_names=list(feeds[0]),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    if precision == "float":
        return
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(flat), str(prepared))
    reader = _Reader(iter(feeds))
    quantization.quantize_static(str(prepared), str(target), reader, per_channel=True)


class _Reader:
    """Gives onnxruntime's calibrator one feed after another."""

    def __init__(self, feeds: Iterator[Sample]) -> None:
        self._feeds = feeds

    def get_next(self) -> Mapping[str, Any] | None:
        """Returns the next feed, None at the end."""
        return next(self._feeds, None)


def _tflite(module: nn.Module, feeds: list[Sample], target: Path, precision: str) -> None:
    """litert_torch.convert, then ai-edge-quantizer's static_wi8_ai8 recipe."""
    import litert_torch

    converted = litert_torch.convert(module, _arguments(feeds[0]))
    if precision == "float":
        converted.export(str(target))
        return
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    flat = target.with_name("float.tflite")
    converted.export(str(flat))
    ((key, signature),) = Interpreter(str(flat)).get_signature_list().items()
    names = sorted(signature["inputs"])
    given = [dict(zip(names, feed.values())) for feed in feeds]
    tool = quantizer.Quantizer(str(flat))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    tool.quantize(tool.calibrate({key: given})).export_model(str(target))


def _executorch(module: nn.Module, feeds: list[Sample], target: Path, precision: str) -> None:
    """to_edge_transform_and_lower for XNNPACK, with PT2E quantization before it."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    arguments = _arguments(feeds[0])
    exported = torch.export.export(module, arguments)
    if precision != "float":
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        config = get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(exported.module(), XNNPACKQuantizer().set_global(config))
        for feed in feeds:
            prepared(*_arguments(feed))
        exported = torch.export.export(convert_pt2e(prepared), arguments)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    target.write_bytes(program.to_executorch().buffer)


def _mnn(module: nn.Module, feeds: list[Sample], target: Path, precision: str) -> None:
    """mnnconvert from torch's ONNX file."""
    import onnx

    plain = target.with_name("for_mnn.onnx")
    _onnx(module, feeds, plain, "float")
    # What the command `mnnconvert` calls. The command itself installs packages into the environment
    # that runs it, in order to report each conversion to its maker.
    from _tools import mnnconvert

    paths = ["--modelFile", str(plain), "--MNNModel", str(target)]
    mnnconvert(["mnnconvert", "-f", "ONNX", *paths, "--bizCode", "MNN"])
    graph = onnx.load(plain, load_external_data=False).graph
    names = {"inputs": [v.name for v in graph.input], "outputs": [v.name for v in graph.output]}
    target.with_suffix(".json").write_text(json.dumps(names), encoding="utf-8")


def _ncnn(module: nn.Module, feeds: list[Sample], target: Path, precision: str) -> None:
    """pnnx from a TorchScript trace."""
    import torch

    traced = target.with_name("plain.pt")
    torch.jit.trace(module, _arguments(feeds[0])).save(str(traced))
    tool = shutil.which("pnnx", path=str(Path(sys.executable).parent))
    assert tool, "pnnx's package brings its converter"
    shapes = ",".join(str(list(array.shape)).replace(" ", "") for array in feeds[0].values())
    subprocess.run(
        [tool, str(traced), f"inputshape={shapes}", "fp16=0"], check=True, cwd=target.parent
    )


_MAKERS: dict[str, Callable[[Any, list[Sample], Path, str], None]] = {
    "onnx": _onnx,
    "openvino": _onnx,
    "tflite": _tflite,
    "executorch": _executorch,
    "mnn": _mnn,
    "ncnn": _ncnn,
}
