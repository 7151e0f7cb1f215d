"""What runs a model's file for the suite `runtimes`: our runtimes as an app would, and the peers.

python -m benchmarks.executors REQUEST      as edgeport.places.served, for these kinds
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.places.served import Bind, Feed, Request, serve

Call = Callable[[], list[NDArray[Any]]]


def _onnx(path: Path, threads: int) -> Bind:
    from edgeport.runtimes.onnx import Session

    session = Session(path, threads, spin=False)
    return lambda feed: lambda: list(session.run(feed))


def _tflite(path: Path, threads: int) -> Bind:
    """Integers at both ends are converted here, as an app would."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
    takes, gives = runner.get_input_details(), runner.get_output_details()

    def bind(feed: Feed) -> Call:
        names = list(feed) if set(feed) == set(takes) else sorted(takes)
        given = {name: _stored(array, takes[name]) for name, array in zip(names, feed.values())}

        def call() -> list[NDArray[Any]]:
            answer = runner(**given)
            return [_real(answer[name], gives[name]) for name in sorted(gives)]

        return call

    return bind


def _stored(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    if not scale:
        return array
    limits = np.iinfo(detail["dtype"])
    levels = np.round(array / scale) + zero_point
    return levels.clip(limits.min, limits.max).astype(detail["dtype"])


def _real(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    if not scale:
        return array
    return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _executorch(path: Path, threads: int) -> Bind:
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))
    method = program.load_method("forward")

    def bind(feed: Feed) -> Call:
        given = [torch.from_numpy(array) for array in feed.values()]
        return lambda: [one.numpy() for one in method.execute(given)]

    return bind


def _openvino(path: Path, threads: int) -> Bind:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    def bind(feed: Feed) -> Call:
        def call() -> list[NDArray[Any]]:
            answer = request.infer(dict(feed))
            return [np.array(answer[output]) for output in compiled.outputs]

        return call

    return bind


def _mnn(path: Path, threads: int) -> Bind:
    import MNN

    settings = {"precision": "high", "backend": 0, "numThread": threads}
    manager = MNN.nn.create_runtime_manager((settings,))
    names = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    net = MNN.nn.load_module_from_file(
        str(path), names["inputs"], names["outputs"], runtime_manager=manager
    )

    def bind(feed: Feed) -> Call:
        given = [MNN.expr.const(a, list(a.shape), MNN.expr.NCHW) for a in feed.values()]

        def call() -> list[NDArray[Any]]:
            answer = net.forward(given)
            answers = answer if isinstance(answer, list) else [answer]
            return [np.array(one.read()) for one in answers]

        return call

    return bind


def _ncnn(path: Path, threads: int) -> Bind:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise StageFailed("benchmark", "ncnn cannot load the network")

    def bind(feed: Feed) -> Call:
        given = [ncnn.Mat(array[0]).clone() for array in feed.values()]

        def call() -> list[NDArray[Any]]:
            extractor = net.create_extractor()
            for index, one in enumerate(given):
                extractor.input(f"in{index}", one)
            code, answer = extractor.extract("out0")
            if code:
                raise StageFailed("benchmark", "ncnn cannot run the network")
            return [np.array(answer)[None]]

        return call

    return bind


LOADERS: dict[str, Callable[[Path, int], Bind]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "executorch": _executorch,
    "openvino": _openvino,
    "mnn": _mnn,
    "ncnn": _ncnn,
}

_MODULES = {
    "onnx": ("edgeport.runtimes.onnx",),
    "tflite": ("ai_edge_litert.interpreter",),
    "executorch": ("torch", "executorch.runtime"),
    "openvino": ("openvino",),
    "mnn": ("MNN",),
    "ncnn": ("ncnn",),
}


def _load(request: Request, environment: dict[str, str]) -> Bind:
    del environment  # the processor says it all
    return LOADERS[request.runtime](Path(request.model), request.threads)


def _modules_of(kind: str) -> Sequence[str]:
    return _MODULES[kind]


if __name__ == "__main__":
    serve(_load, _modules_of)
