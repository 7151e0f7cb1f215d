"""The phones of the AI Hub in `hub_server`: they really compile, quantize and run what they get.

Jobs run one after another in a thread: an ONNX file is compiled to itself or by Qualcomm's
compiler, quantized by edgeport's quantizer, and run by onnxruntime; a context binary runs in
Qualcomm's emulator. `Faults` says what goes wrong.
"""

from __future__ import annotations

import hashlib
import io
import queue
import resource
import shutil
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
from qai_hub import public_api_pb2 as pb
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries

from edgeport.devices import find_device
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits

ROUNDS = 24
LIMITS = Limits(seconds=120, memory_bytes=8 << 30)
_STATES = {
    "compile_job": pb.JOB_STATE_OPTIMIZING_MODEL,
    "quantize_job": pb.JOB_STATE_QUANTIZING_MODEL,
    "inference_job": pb.JOB_STATE_MEASURING_PERFORMANCE,
}
_NUMPY = {
    "float32": pb.TENSOR_DTYPE_FLOAT32,
    "int32": pb.TENSOR_DTYPE_INT32,
    "int64": pb.TENSOR_DTYPE_INT64,
}


@dataclass
class Faults:
    """What goes wrong, and how often.

    `status` answers "METHOD first-part-of-the-path" with an HTTP status and a text, every time;
    `cut_uploads` breaks so many connections in the middle of a model's upload; `fail` is the reason
    with which jobs of a kind fail, so many of them; `hold` keeps jobs of a kind running until it is
    set; `wrong_input` runs on other inputs than were sent; `renamed_outputs` gives them names of
    its own.
    """

    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_uploads: int = 0
    fail: dict[str, tuple[str, int]] = field(default_factory=dict)
    hold: dict[str, threading.Event] = field(default_factory=dict)
    wrong_input: bool = False
    renamed_outputs: bool = False
    dataset_seconds: int = 30 * 24 * 3600  # until one expires


@dataclass(frozen=True)
class Times:
    """Microseconds, as AI Hub gives them."""

    first_load: int
    loads: list[int]
    runs: list[int]


@dataclass
class Hub:
    """What the server has and has seen; `wrappers` are the EPContext files of context binaries.

    A phone reads from a context binary which tensors it takes; here the test says it.
    """

    folder: Path
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    models: dict[str, pb.Model] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    datasets: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, pb.Job] = field(default_factory=dict)
    results: dict[str, pb.JobResult] = field(default_factory=dict)
    wrappers: dict[str, Path] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    waiting: queue.Queue[str] = field(default_factory=queue.Queue)
    count: int = 0

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count:06d}"

    def know(self, wrapper: Path) -> None:
        """Notes which tensors the context binary beside `wrapper` takes."""
        binary = wrapper.with_name("model.bin").read_bytes()
        self.wrappers[hashlib.sha256(binary).hexdigest()] = wrapper

    def submitted(self, kind: str) -> int:
        """Returns how many jobs of a kind ("compile", "quantize", "inference") were submitted."""
        return sum(job.WhichOneof("job") == f"{kind}_job" for job in self.jobs.values())


def work(hub: Hub) -> None:
    """Runs the jobs that wait, one after another; "" ends it."""
    while identity := hub.waiting.get():
        job = hub.jobs[identity]
        kind = job.WhichOneof("job")
        detail = getattr(job, kind)
        detail.job_state = _STATES[kind]
        if event := hub.faults.hold.get(kind.removesuffix("_job")):
            event.wait()
        try:
            reason, left = hub.faults.fail.get(kind.removesuffix("_job"), ("", 0))
            if left:
                hub.faults.fail[kind.removesuffix("_job")] = (reason, left - 1)
                raise RuntimeError(reason)
            with tempfile.TemporaryDirectory() as folder:
                _WORK[kind](hub, identity, detail, Path(folder))
        except Exception as error:
            detail.failure_reason = str(error)
            detail.job_state = pb.JOB_STATE_FAILED
        else:
            detail.job_state = pb.JOB_STATE_DONE


def _onnx_file(hub: Hub, identity: str, folder: Path) -> Path:
    """Returns the ONNX file of a model: itself, or the one in the zipped folder."""
    content = hub.files[identity]
    if not hub.models[identity].is_directory:
        (folder / "model.onnx").write_bytes(content)
        return folder / "model.onnx"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder / "zip")
    (found,) = (folder / "zip").glob("*.onnx/*.onnx")
    return found


def _compile(hub: Hub, identity: str, job: pb.CompileJob, folder: Path) -> None:
    source = _onnx_file(hub, job.model.model_id, folder)
    runtime = job.options.split()[1]
    target = job.target_model
    target.model_type, target.is_directory = pb.MODEL_TYPE_ONNX, False
    if runtime == "onnx":
        model = onnx.load(source)
        onnx.checker.check_model(model)
        hub.files[target.model_id] = model.SerializeToString()
    else:
        out = folder / "out"
        out.mkdir()
        compile_for(runtime, source, out, find_device("s24"), "auto", LIMITS)
        target.model_type = pb.MODEL_TYPE_QNN_CONTEXT_BINARY
        _keep_binary(hub, target.model_id, out)
    target.input_spec.CopyFrom(_spec(onnx.load(source, load_external_data=False).graph.input))
    hub.models[target.model_id] = target


def _keep_binary(hub: Hub, identity: str, out: Path) -> None:
    hub.files[identity] = (out / "model.bin").read_bytes()
    hub.know(shutil.copytree(out, hub.folder / identity) / "model_ctx.onnx")


def _spec(values: Any) -> pb.NamedTensorTypeList:
    types = [
        pb.NamedTensorType(
            name=value.name,
            tensor_type=pb.TensorType(
                shape=[dim.dim_value for dim in value.type.tensor_type.shape.dim],
                dtype=_NUMPY[
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                ],
            ),
        )
        for value in values
    ]
    return pb.NamedTensorTypeList(types=types)


def _quantize(hub: Hub, identity: str, job: pb.QuantizeJob, folder: Path) -> None:
    source = _onnx_file(hub, job.model.model_id, folder)
    activations = {pb.QUANTIZE_DTYPE_INT8: "w8a8", pb.QUANTIZE_DTYPE_INT16: "w8a16"}
    config = CONFIGS[activations[job.activations_dtype]]
    feeds = samples_of(hub.datasets[job.calibration_dataset.dataset_id])
    quantize_file(source, folder / "quantized.onnx", config, feeds)
    target = job.target_model
    target.model_type = pb.MODEL_TYPE_ONNX
    hub.files[target.model_id] = (folder / "quantized.onnx").read_bytes()
    hub.models[target.model_id] = target


def _infer(hub: Hub, identity: str, job: pb.InferenceJob, folder: Path) -> None:
    model = hub.models[job.model.model_id]
    samples = samples_of(hub.datasets[job.dataset.dataset_id])
    if hub.faults.wrong_input:
        samples = [{name: array[..., ::-1] for name, array in one.items()} for one in samples]
    times = None
    if model.model_type == pb.MODEL_TYPE_ONNX:
        path = _onnx_file(hub, job.model.model_id, folder)
        if any(node.op_type == "EPContext" for node in _nodes(path)):
            names, outputs = _run_context(path, samples)
        else:
            names, outputs, times = _run_onnx(path, samples)
    elif model.model_type == pb.MODEL_TYPE_QNN_CONTEXT_BINARY:
        names, outputs = _run_binary(hub, job.model.model_id, samples, folder)
    else:
        names, outputs = _run_file(hub, model, samples, folder)
    if hub.faults.renamed_outputs:
        names = [f"out_{index}" for index, _ in enumerate(names)]
    entries = {name: [one[f"output_{i}"] for one in outputs] for i, name in enumerate(names)}
    dataset = hub.name("d")
    hub.datasets[dataset] = _h5(entries)
    detail = _profile(times, [(n.name, n.op_type) for n in _nodes(path)] if times else [])
    result = pb.InferenceJobResult(output_dataset_id=dataset, detail=detail)
    hub.results[identity] = pb.JobResult(inference_job_result=result)


def _run_onnx(path: Path, samples: list[Any]) -> tuple[list[str], list[Any], Times]:
    loads = [_microseconds(lambda: Session(path, threads=1)) for _ in range(3)]
    session = Session(path, threads=1)
    answers = [session.run(sample) for sample in samples]
    outputs = [{f"output_{i}": a for i, a in enumerate(answer)} for answer in answers]
    runs = [_microseconds(lambda: session.run(samples[0])) for _ in range(ROUNDS)]
    return session.output_names(), outputs, Times(loads[0], loads[1:], runs)


def _microseconds(call: Callable[[], object]) -> int:
    started = time.perf_counter_ns()
    call()
    return max(1, (time.perf_counter_ns() - started) // 1000)


def _run_binary(
    hub: Hub, identity: str, samples: list[Any], folder: Path
) -> tuple[list[str], list[Any]]:
    """Runs the very bytes that were uploaded."""
    binary = hub.files[identity]
    wrapper = hub.wrappers[hashlib.sha256(binary).hexdigest()]
    (folder / "model.bin").write_bytes(binary)
    (folder / "model_ctx.onnx").write_bytes(wrapper.read_bytes())
    return _run_context(folder / "model_ctx.onnx", samples)


def _run_context(wrapper: Path, samples: list[Any]) -> tuple[list[str], list[Any]]:
    """Runs a context binary in the emulator, whose times mean nothing: none is given."""
    (named := wrapper.with_name("model_ctx.onnx")).write_bytes(wrapper.read_bytes())
    outputs = _run_compiled("qnn_context_binary", named.parent, samples)
    return [one.name for one in onnx.load(wrapper).graph.output], outputs


def _run_file(
    hub: Hub, model: pb.Model, samples: list[Any], folder: Path
) -> tuple[list[str], list[Any]]:
    """Runs a .tflite or .dlc file; the outputs have names of the phone's own."""
    runtime = {pb.MODEL_TYPE_TFLITE: "tflite", pb.MODEL_TYPE_QNN_DLC: "qnn_dlc"}[model.model_type]
    (folder / RUNTIMES[runtime].files[0]).write_bytes(hub.files[model.model_id])
    outputs = _run_compiled(runtime, folder, samples)
    return [f"{index}:0" for index, _ in enumerate(outputs[0])], outputs


def _run_compiled(runtime: str, folder: Path, samples: list[Any]) -> list[Any]:
    save_samples(folder / "inputs.npz", samples)
    phone = find_device("s24")
    return list(run_compiled(runtime, folder, folder, folder / "inputs.npz", phone, LIMITS))


def _nodes(path: Path) -> Any:
    return onnx.load(path, load_external_data=False).graph.node


def _profile(times: Times | None, layers: list[tuple[str, str]]) -> pb.ProfileDetail:
    """Returns what was timed; every other layer is said to be on an NPU, which is not so."""
    detail = pb.ProfileDetail(major_version=1, minor_version=2)
    if times:
        detail.execution_time, detail.cold_load_time = min(times.runs), times.first_load
        detail.all_execution_times.extend(times.runs)
        detail.all_cold_load_times.append(times.first_load)
        detail.all_warm_load_times.extend(times.loads)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        detail.execution_memory.peak.lower, detail.execution_memory.peak.upper = 0, peak
    for index, (name, op) in enumerate(layers):
        unit = pb.COMPUTE_UNIT_NPU if index % 2 == 0 else pb.COMPUTE_UNIT_CPU
        detail.layer_details.add(name=name, layer_type_name=op, compute_unit=unit)
    return detail


_WORK: dict[str, Callable[..., None]] = {
    "compile_job": _compile,
    "quantize_job": _quantize,
    "inference_job": _infer,
}


def samples_of(content: bytes) -> list[dict[str, np.ndarray]]:
    with h5py.File(io.BytesIO(content), "r") as file:
        entries = h5_to_dataset_entries(file)
    count = len(next(iter(entries.values())))
    return [{name: arrays[index] for name, arrays in entries.items()} for index in range(count)]


def _h5(entries: Mapping[str, list[np.ndarray]]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        dataset_entries_to_h5(dict(entries), file)
    return content.getvalue()
