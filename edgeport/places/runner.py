"""Runs a model's files on a board and tells what they gave and took: edgeport copies it there.

    python3 runner.py request.json      in a directory with the request, the model and the inputs

It stands alone, on old boards too: the standard library of Python 3.8, numpy, and the runtime that
is installed there. It times by itself, because edgeport.measure is not on the board; the samples go
back and are judged there. The last line of its stdout is a marker and a JSON object.

Two processes. The parent **watches**: the time limit, and its stdin, which stays open for as long
as somebody waits for the answer. At the end of either it kills the **worker**, its child, which
loads the runtime; a crash there becomes an answer.
"""

from __future__ import annotations

import gc
import glob
import hashlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from sysconfig import get_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot evaluate these
    from collections.abc import Sequence

    Request = dict[str, Any]
STABLE_WINDOW, STABLE_CHANGE = 5, 0.05  # as in edgeport.measure
NPU = ("qnn_context_binary", "precompiled_qnn_onnx")
PROVIDER = "QNNExecutionProvider"
# Modules, of which one runs the files, and what pip calls the first.
PACKAGES = {
    "onnx": (("onnxruntime",), "onnxruntime"),
    "qnn_context_binary": (("onnxruntime_qnn",), "onnxruntime-qnn"),
    "precompiled_qnn_onnx": (("onnxruntime_qnn",), "onnxruntime-qnn"),
    "tflite": (("ai_edge_litert", "tflite_runtime", "tensorflow"), "ai-edge-litert"),
    "executorch": (("executorch",), "executorch"),
}


class Missing(Exception):
    """Something is not installed on the board."""


# Sessions: loaded from a file, they run a feed {name: array} and give the outputs in order


class OnnxSession:
    """An ONNX file in onnxruntime, on the CPU; with a QNN context in it, on the NPU."""

    def __init__(self, request: Request, threads: int) -> None:
        ort = import_module("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        if not request.get("spin", True):
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if request["runtime"] in NPU:
            self._session = _npu_session(ort, options, request)
        else:
            self._session = ort.InferenceSession(
                request["model"],
                options,
                providers=["CPUExecutionProvider"],
                # Where the file was proven, layers in float stay so: here too.
                disabled_optimizers=request["disabled_optimizers"],
            )

    def run(self, feed: Any) -> Any:
        return self._session.run(None, feed)


def _npu_session(ort: Any, options: Any, request: Request) -> Any:
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"htp_performance_mode": "burst"}
    if is_emulated(request["runtime"]):  # an emulator has to be told which chip to be
        settings = dict(request["emulator"])
    qnn = import_module("onnxruntime_qnn")
    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    settings["backend_path"] = qnn.get_qnn_htp_path()
    devices = [one for one in ort.get_ep_devices() if one.ep_name == PROVIDER]
    options.add_provider_for_devices(devices, settings)
    return ort.InferenceSession(request["model"], options)


class LiteSession:
    """A .tflite file in LiteRT, or in one of its older packages; its tensors have the names."""

    def __init__(self, request: Request, threads: int) -> None:
        (module,) = modules_of("tflite")
        interpreter = import_module(module).Interpreter
        self._model = interpreter(model_path=request["model"], num_threads=threads)
        self._model.allocate_tensors()
        self._inputs = self._model.get_input_details()
        self._outputs = [detail["index"] for detail in self._model.get_output_details()]

    def run(self, feed: Any) -> Any:
        for detail in self._inputs:  # 64-bit integers are 32-bit ones in the file
            array = feed[detail["name"]].astype(detail["dtype"], copy=False)
            self._model.set_tensor(detail["index"], array)
        self._model.invoke()
        return [self._model.get_tensor(index) for index in self._outputs]


class ExecutorchSession:
    """A .pte file in ExecuTorch's Python runtime."""

    def __init__(self, request: Request, threads: int) -> None:
        self._torch = import_module("torch")
        runtime = import_module("executorch.runtime").Runtime.get()
        self._program = runtime.load_program(request["model"])
        self._forward = self._program.load_method("forward")
        (names,) = self._program.load_method("input_names").execute([])
        self._names = names.split("\n")

    def run(self, feed: Any) -> Any:
        inputs = [self._torch.from_numpy(feed[name]).contiguous() for name in self._names]
        return [output.numpy() for output in self._forward.execute(inputs)]


SESSIONS: dict[str, Any] = {"tflite": LiteSession, "executorch": ExecutorchSession}


def modules_of(runtime: str) -> Sequence[str]:
    """Returns the modules that a session uses; to import them is not to load a model."""
    if runtime == "tflite":
        package = next(name for name in PACKAGES["tflite"][0] if find_spec(name))
        inside = "lite.python.interpreter" if package == "tensorflow" else "interpreter"
        return [f"{package}.{inside}"]
    if runtime == "executorch":
        return ["torch", "executorch.runtime"]
    if runtime == "webgpu":
        return ["wgpu"]
    return ["onnxruntime", "onnxruntime_qnn"] if runtime in NPU else ["onnxruntime"]


def is_emulated(runtime: str) -> bool:
    """Returns whether the NPU is Qualcomm's emulator: on x86 its library is nothing else."""
    return runtime in NPU and platform.machine().lower() not in ("aarch64", "arm64")


# What is installed, and what the board is


def check_packages(runtimes: Sequence[str]) -> None:
    """Raises Missing, with the pip line, for what the runtimes need and this Python lacks."""
    needed = [PACKAGES[runtime] for runtime in runtimes]
    lacking = [] if find_spec("numpy") else ["numpy"]
    lacking += [package for modules, package in needed if not any(map(find_spec, modules))]
    if lacking:
        names = list(dict.fromkeys(lacking))
        python, version = sys.executable, platform.python_version()
        install = f"{python} -m pip install {' '.join(names)}"
        managed = os.path.exists(os.path.join(get_path("stdlib"), "EXTERNALLY-MANAGED"))
        if managed and sys.prefix == sys.base_prefix:  # there pip refuses (PEP 668)
            install = f"{python} -m venv ~/edge && ~/edge/bin/pip install {' '.join(names)}"
            install += ", then name it: ?python=~/edge/bin/python"
        raise Missing(f"{python} (Python {version}) has no {' and no '.join(names)}: {install}")


def describe_board(modules: Sequence[str]) -> dict[str, str]:
    """Returns what a timing depends on and what stays the same while it runs, as words."""
    packages = [module.partition(".")[0].replace("_", "-") for module in ("numpy", *modules)]
    return {
        "board": _board_name(),
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "logical_cores": str(os.cpu_count() or "unknown"),
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
        **{package: _version(package) for package in packages},
    }


def _board_name() -> str:
    named = _text("/proc/device-tree/model") or _text("/sys/class/dmi/id/product_name")
    if not named and os.path.exists("/system/bin/getprop"):
        asked = ["/system/bin/getprop", "ro.product.model"]
        named = subprocess.run(asked, stdout=subprocess.PIPE, check=False).stdout.decode().strip()
    return named or "unknown"


def _cpu_name() -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def read_state() -> dict[str, Any]:
    """Returns what changes with load, where it is readable: temperatures, governors, clocks."""
    cpus = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_"
    clocks = [_text(path) for path in sorted(glob.glob(f"{cpus}cur_freq"))]
    zones = sorted(glob.glob("/sys/class/thermal/thermal_zone*"))
    degrees = {os.path.basename(zone): _text(f"{zone}/temp") for zone in zones}
    celsius = {zone: int(text) / 1000.0 for zone, text in degrees.items() if text.isdigit()}
    return {
        # A zone that is off tells 0, or what no board has.
        "temperatures_c": {zone: value for zone, value in celsius.items() if 1 < value < 150},
        "governors": sorted({_text(path) for path in glob.glob(f"{cpus}governor")} - {""}),
        "clocks_khz": [int(text) for text in clocks if text.isdigit()],
        "load_average": [float(text) for text in _text("/proc/loadavg").split()[:3]],
    }


def peak_bytes() -> int:
    """Returns the peak of this process's resident memory since it began."""
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    resource = import_module("resource")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:  # not there, or not for us to read
        return ""


# The worker


def work(request: Request) -> dict[str, Any]:
    """Returns the answer to a request."""
    if request["task"] == "check":
        check_packages(request["runtimes"])
        return {"python": platform.python_version()}
    for name, sha256 in request["sha256"].items():
        if file_sha256(name) != sha256:
            raise ValueError(f"{name} did not arrive whole: is the board's disk full?")
    check_packages([request["runtime"]])
    return run_model(request)


def run_model(request: Request) -> dict[str, Any]:
    """Returns times, memory and the board's state; the outputs go to their own file."""
    np, runtime = import_module("numpy"), request["runtime"]
    modules = modules_of(runtime)
    for module in modules:
        import_module(module)
    feeds, cores = load_feeds(np, request["inputs"]), os.cpu_count() or 1
    threads = request["threads"] or len(getattr(os, "sched_getaffinity", lambda _: range(cores))(0))
    state, before, started = read_state(), peak_bytes(), time.perf_counter_ns()
    session = SESSIONS.get(runtime, OnnxSession)(request, threads)
    loaded = time.perf_counter_ns()
    outputs = [session.run(feeds[0])]
    ran = time.perf_counter_ns()
    outputs[0] = [np.array(array) for array in outputs[0]]  # the next run may reuse its memory
    answer = {"board": describe_board(modules), "emulated": is_emulated(runtime)}
    if not answer["emulated"]:  # what an emulator takes means nothing
        answer.update(load_ms=(loaded - started) / 1e6, first_ms=(ran - loaded) / 1e6)
        answer.update(time_runs(session, feeds[0], request), state_before=state)
        answer.update(peak_before_bytes=before, peak_bytes=peak_bytes(), state_after=read_state())
        answer["threads"] = threads if runtime in ("onnx", "tflite") else 0  # 0: not ours to set
    outputs += [[np.array(array) for array in session.run(feed)] for feed in feeds[1:]]
    indexed = ((i, j, a) for i, one in enumerate(outputs) for j, a in enumerate(one))
    np.savez(request["outputs"], **{f"{i}:output_{j}": array for i, j, array in indexed})
    answer["outputs_sha256"] = file_sha256(request["outputs"])
    return answer


def time_runs(session: Any, feed: Any, request: Request) -> dict[str, Any]:
    """Returns every timed call in ms, and by how much the warm-up before it was still moving."""
    drift = warm_up(session, feed, request["warmup_seconds"])
    samples: list[float] = []
    spent_ms, limit_ms = 0.0, request["timed_seconds"] * 1e3
    gc.disable()
    while len(samples) < (request["min_runs"] if spent_ms >= limit_ms else request["max_runs"]):
        samples.append(_call_ms(session, feed))
        spent_ms += samples[-1]
    gc.enable()
    return {"samples_ms": samples, "drift": drift}


def warm_up(session: Any, feed: Any, seconds: float) -> Any:
    """Runs until the running median settles or the time is over; returns its last change."""
    recent: list[float] = []
    drift = None
    deadline = time.perf_counter() + seconds
    while (drift is None or drift > STABLE_CHANGE) and time.perf_counter() < deadline:
        recent = [*recent[1 - 2 * STABLE_WINDOW :], _call_ms(session, feed)]
        if len(recent) == 2 * STABLE_WINDOW:
            windows = [recent[i : i + STABLE_WINDOW] for i in range(STABLE_WINDOW + 1)]
            medians = [statistics.median(window) for window in windows]
            drift = max(medians) / min(medians) - 1.0
    return drift


def _call_ms(session: Any, feed: Any) -> float:
    start = time.perf_counter_ns()
    session.run(feed)
    return (time.perf_counter_ns() - start) / 1e6


def load_feeds(np: Any, path: str) -> Any:
    """Returns the samples of a file with the keys "0:name", "1:name" ..."""
    feeds: dict[int, Any] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, _, name = key.partition(":")
            feeds.setdefault(int(index), {})[name] = arrays[key]
    return [feeds[index] for index in sorted(feeds)]


def file_sha256(name: str) -> str:
    digest = hashlib.sha256()
    with open(name, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def answer_to(request: Request) -> dict[str, Any]:
    """Returns the answer, or what went wrong in one line."""
    try:
        return work(request)
    except Missing as error:
        return {"error": str(error), "kind": "missing"}
    except Exception as error:  # a runtime may raise anything
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}", "kind": "failed"}


# The watcher


def main() -> None:
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    os.chdir(folder)
    os.environ["TMPDIR"] = folder  # what libraries leave behind goes with it
    with open(name, encoding="utf-8") as file:
        request = json.load(file)
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # libraries print; stdout is the answer's
        answer = json.dumps(answer_to(request)).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        sys.stderr.flush()
        os._exit(0)  # some libraries crash in their teardown
    os.close(writer)
    found = watch(worker, reader, request["seconds"])
    print(f"\n{request['marker']}{json.dumps(found)}", flush=True)


def watch(worker: int, reader: int, seconds: float) -> dict[str, Any]:
    """Returns the worker's answer, or how it ended; it is dead when this returns."""
    deadline, answer, ended = time.monotonic() + seconds, b"", ""
    while not ended:
        ready, _, _ = select.select([0, reader], [], [], 0.2)
        if reader in ready:
            block = os.read(reader, 1 << 16)
            answer += block
            ended = "" if block else "exit"
        elif 0 in ready and not os.read(0, 1 << 16):
            ended = "left"
        elif time.monotonic() > deadline:
            ended = "timeout"
    if ended != "exit":
        os.kill(worker, signal.SIGKILL)  # it may not have made its group yet
        with suppress(OSError):  # nobody else is in it
            os.killpg(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    if answer and ended == "exit":
        return dict(json.loads(answer))
    if ended == "exit" and os.WIFSIGNALED(status):
        return {"ended": "signal", "number": os.WTERMSIG(status)}
    return {"ended": ended}


if __name__ == "__main__":
    main()
