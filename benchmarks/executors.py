"""One loaded model in a process of its own, which runs when it is told to.

    python -m benchmarks.executors KIND MODEL THREADS INPUTS OUTPUTS

prints one JSON line with what loading and the first run took, writes the outputs of every sample,
then runs as often as each number on stdin says, and answers with a line; an empty line ends it with
the process's peak of memory. Each runtime has a process, so that none disturbs another's memory or
threads; in turns, because the parent asks one at a time.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.measure import elapsed_ms
from edgeport.runtimes.samples import load_samples, named_outputs, save_samples

Feed = Mapping[str, NDArray[Any]]
Call = Callable[[], list[NDArray[Any]]]
Bind = Callable[[Feed], Call]  # what can be done once for a feed is not timed
ROOT = Path(__file__).parents[1]


class Served:
    """A model in its own process: `load_ms`, `first_ms`, its outputs, and `run(times)`."""

    def __init__(self, kind: str, model: Path, threads: int, inputs: Path, work: Path) -> None:
        self.outputs_file = work / f"{model.name}.outputs.npz"
        self._log = (work / f"{model.name}.log").open("w+", encoding="utf-8")
        argv = [kind, str(model), str(threads), str(inputs), str(self.outputs_file)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.executors", *argv],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            first = json.loads(self._answer())
        except StageFailed:
            self.close()
            raise
        self.load_ms, self.first_ms = first["load_ms"], first["first_ms"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, times: int) -> None:
        """Runs the first sample so often."""
        self._say(f"{times}\n")
        self._answer()

    def peak_bytes(self) -> int:
        """Returns the peak of resident memory; the process ends with that."""
        self._say("\n")
        return int(json.loads(self._answer())["peak_bytes"])

    def outputs(self) -> list[dict[str, NDArray[Any]]]:
        """Returns the outputs of every sample."""
        return [dict(one) for one in load_samples(self.outputs_file)]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then the answer says how it ended
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return line
        self._process.wait()
        self._log.seek(0)
        said = [one for one in self._log.read().splitlines() if one.strip()] or ["nothing"]
        raise StageFailed("benchmark", f"exit {self._process.returncode}: {said[-1][:160]}")


# The process


def main() -> None:
    """Serves one model."""
    kind, model, threads, inputs, outputs = sys.argv[1:]
    out = _own_stdout()
    feeds = load_samples(Path(inputs))
    for module in _MODULES[kind]:  # importing is Python's cost, and not the model's
        importlib.import_module(module)
    bind, load_ms = elapsed_ms(lambda: _LOADERS[kind](Path(model), int(threads)))
    call = bind(feeds[0])
    first, first_ms = elapsed_ms(call)
    results = [first, *(bind(feed)() for feed in feeds[1:])]
    save_samples(Path(outputs), [named_outputs(one) for one in results])
    _write(out, {"load_ms": load_ms, "first_ms": first_ms})
    for line in sys.stdin:
        if not line.strip():
            _write(out, {"peak_bytes": _peak_bytes()})
            break
        for _ in range(int(line)):
            call()
        _write(out, {})


def _peak_bytes() -> int:
    """Returns the peak of this process since it was started (proc(5)).

    getrusage(2) would begin with the peak of the process that forked it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _own_stdout() -> IO[str]:
    """Returns the pipe to the parent; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _write(out: IO[str], value: Mapping[str, Any]) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


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


_LOADERS: dict[str, Callable[[Path, int], Bind]] = {
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

if __name__ == "__main__":
    main()
