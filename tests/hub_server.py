"""An AI Hub on this machine: it speaks the client's protobufs and really runs what it is sent.

Uploads are kept in memory. Jobs run one after another in a thread: an ONNX file is compiled to
itself or by Qualcomm's compiler, quantized by edgeport's quantizer, and run by onnxruntime; a
context binary runs in Qualcomm's emulator. `Faults` says what goes wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import queue
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h5py
import numpy as np
import onnx
from qai_hub import public_api_pb2 as pb
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries

from edgeport.devices import find_device
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits

TOKEN = "secret-of-the-test-4711"
PHONE = "Samsung Galaxy S24"
ROUNDS = 24
LIMITS = Limits(seconds=120, memory_bytes=8 << 30)
PROTOBUF = "application/x-protobuf"
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


@dataclass
class Hub:
    """What the server has and has seen; `wrappers` are the EPContext files of context binaries.

    A phone reads from a context binary which tensors it takes; here the test says it.
    """

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

    def submitted(self, kind: str) -> int:
        """Returns how many jobs of a kind ("compile", "quantize", "inference") were submitted."""
        return sum(job.WhichOneof("job") == f"{kind}_job" for job in self.jobs.values())


# The phone


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
    binary = (out / "model.bin").read_bytes()
    hub.files[identity] = binary
    kept = Path(tempfile.mkdtemp(dir=hub.wrappers["folder"])) / "model_ctx.onnx"
    kept.write_bytes((out / "model_ctx.onnx").read_bytes())
    hub.wrappers[hashlib.sha256(binary).hexdigest()] = kept


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
    feeds = _samples(hub.datasets[job.calibration_dataset.dataset_id])
    quantize_file(source, folder / "quantized.onnx", config, feeds)
    target = job.target_model
    target.model_type = pb.MODEL_TYPE_ONNX
    hub.files[target.model_id] = (folder / "quantized.onnx").read_bytes()
    hub.models[target.model_id] = target


def _infer(hub: Hub, identity: str, job: pb.InferenceJob, folder: Path) -> None:
    model = hub.models[job.model.model_id]
    samples = _samples(hub.datasets[job.dataset.dataset_id])
    if hub.faults.wrong_input:
        samples = [{name: array[..., ::-1] for name, array in one.items()} for one in samples]
    times: list[int] = []
    if model.model_type == pb.MODEL_TYPE_ONNX:
        path = _onnx_file(hub, job.model.model_id, folder)
        names, outputs, times = _run_onnx(path, samples)
    else:
        names, outputs = _run_binary(hub, job.model.model_id, samples, folder)
    if hub.faults.renamed_outputs:
        names = [f"out_{index}" for index, _ in enumerate(names)]
    entries = {name: [one[f"output_{i}"] for one in outputs] for i, name in enumerate(names)}
    dataset = hub.name("d")
    hub.datasets[dataset] = _h5(entries)
    graph = onnx.load_from_string(hub.files[job.model.model_id]).graph if times else None
    detail = _profile(times, [(n.name, n.op_type) for n in graph.node] if graph else [])
    result = pb.InferenceJobResult(output_dataset_id=dataset, detail=detail)
    hub.results[identity] = pb.JobResult(inference_job_result=result)


def _run_onnx(path: Path, samples: list[Any]) -> tuple[list[str], list[Any], list[int]]:
    session = Session(path, threads=1)
    outputs, times = [], []
    for sample in samples:
        answer = session.run(sample)
        outputs.append({f"output_{i}": array for i, array in enumerate(answer)})
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        session.run(samples[0])
        times.append(max(1, (time.perf_counter_ns() - started) // 1000))
    return session.output_names(), outputs, times


def _run_binary(
    hub: Hub, identity: str, samples: list[Any], folder: Path
) -> tuple[list[str], list[Any]]:
    """Runs the very bytes that were uploaded; the emulator's times mean nothing: none is given."""
    binary = hub.files[identity]
    wrapper = hub.wrappers[hashlib.sha256(binary).hexdigest()]
    (folder / "model.bin").write_bytes(binary)
    (folder / "model_ctx.onnx").write_bytes(wrapper.read_bytes())
    save_samples(folder / "inputs.npz", samples)
    outputs = run_compiled(
        "qnn_context_binary", folder, folder, folder / "inputs.npz", find_device("s24"), LIMITS
    )
    return [one.name for one in onnx.load(wrapper).graph.output], list(outputs)


def _profile(times: list[int], layers: list[tuple[str, str]]) -> pb.ProfileDetail:
    """Returns what was timed, in microseconds; half of the layers are said to be on the NPU."""
    detail = pb.ProfileDetail(major_version=1, minor_version=2, all_execution_times=times)
    if times:
        detail.execution_time = min(times)
        detail.cold_load_time, detail.warm_load_time = 9000, 4000
        detail.all_cold_load_times.extend([9000])
        detail.all_warm_load_times.extend([4000, 4200, 3900])
        detail.execution_memory.peak.lower, detail.execution_memory.peak.upper = 1000, 5 << 20
    for index, (name, op) in enumerate(layers):
        unit = pb.COMPUTE_UNIT_NPU if index % 2 == 0 else pb.COMPUTE_UNIT_CPU
        detail.layer_details.add(name=name, layer_type_name=op, compute_unit=unit)
    return detail


_WORK: dict[str, Callable[..., None]] = {
    "compile_job": _compile,
    "quantize_job": _quantize,
    "inference_job": _infer,
}


def _samples(content: bytes) -> list[dict[str, np.ndarray]]:
    with h5py.File(io.BytesIO(content), "r") as file:
        entries = h5_to_dataset_entries(file)
    count = len(next(iter(entries.values())))
    return [{name: arrays[index] for name, arrays in entries.items()} for index in range(count)]


def _h5(entries: Mapping[str, list[np.ndarray]]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        dataset_entries_to_h5(dict(entries), file)
    return content.getvalue()


# The web


class Handler(BaseHTTPRequestHandler):
    """Routes as qai_hub 0.56 calls them: see its public_rest_api."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        words = [word for word in parts.path.split("/") if word]
        if words[0] == "files":
            return self._file(method, words[1:])
        words = words[2:]  # after api/v1
        body = self._body()
        self.hub.seen[f"{method} {words[0]}"] += 1
        if self.headers.get("Authorization") != f"token {TOKEN}":
            return self._send(401, b"no such token")
        if fault := self.hub.faults.status.get(f"{method} {words[0]}"):
            return self._send(fault[0], fault[1].encode(), "text/plain")
        route = getattr(self, f"_{method.lower()}_{words[0]}")
        message = route(words[1:], body)
        if message is None:
            return self._send(404, b"not found")
        return self._send(200, message.SerializeToString(), PROTOBUF)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: bytes, kind: str = "text/plain", **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    # Uploads and downloads, at addresses that carry no token

    def _file(self, method: str, words: list[str]) -> None:
        kind, identity = words
        if method == "GET":
            kept = self.hub.files if kind == "models" else self.hub.datasets
            return self._send(200, kept[identity], "application/octet-stream")
        self.hub.seen[f"{method} files/{kind}"] += 1
        if kind == "models" and self.hub.faults.cut_uploads:
            self.hub.faults.cut_uploads -= 1
            self.rfile.read(max(1, int(self.headers["Content-Length"]) // 2))
            self.connection.close()
            self.close_connection = True
            return None
        body = self._body()
        if kind == "models":
            self.hub.files[identity] = body
        else:
            self.hub.datasets[identity] = _form_file(self.headers, body)
        return self._send(200, b"", ETag=f'"{identity}"')

    def _get_frameworks(self, words: list[str], body: bytes) -> Any:
        return pb.FrameworkList()

    def _get_devices(self, words: list[str], body: bytes) -> Any:
        known = [
            pb.Device(
                name=name,
                os="14",
                attributes=["os:android", f"chipset:{chip}", "framework:onnx", "framework:qnn"],
            )
            for name, chip in (
                (PHONE, "qualcomm-snapdragon-8gen3"),
                ("Samsung Galaxy S24 Ultra", "qualcomm-snapdragon-8gen3"),
            )
        ]
        wanted = self.query.get("name", "")
        return pb.DeviceList(devices=[one for one in known if wanted in ("", one.name)])

    def _post_models(self, words: list[str], body: bytes) -> Any:
        if words:  # all parts of ID are there
            return pb.CreateUpdateResponse(id=words[0])
        model = pb.Model.FromString(body)
        model.model_id = self.hub.name("m")
        self.hub.models[model.model_id] = model
        return pb.CreateUpdateResponse(id=model.model_id)

    def _get_models(self, words: list[str], body: bytes) -> Any:
        identity = words[0]
        if identity not in self.hub.models:
            return None
        if len(words) == 1:
            return self.hub.models[identity]
        url = f"{self.hub.url}/files/models/{identity}"
        if words[1] == "download":
            known = self.hub.models[identity].model_type == pb.MODEL_TYPE_ONNX
            filename = "model.onnx" if known else "model.bin"
            download = pb.FileDownloadURL(url=url, filename=filename)
            return pb.FileDownloadResponse(url=download)
        parts = pb.FileMultipartUploadURL(urls=[url], upload_id="u", max_part_size=1 << 30)
        return pb.FileUploadResponse(multipart_url=parts)

    def _post_datasets(self, words: list[str], body: bytes) -> Any:
        made = pb.CreateUpdateResponse(id=self.hub.name("d"))
        made.expiration_time.FromSeconds(int(time.time()) + self.hub.faults.dataset_seconds)
        return made

    def _patch_datasets(self, words: list[str], body: bytes) -> Any:
        return pb.CreateUpdateResponse(id=words[0])

    def _get_datasets(self, words: list[str], body: bytes) -> Any:
        url = f"{self.hub.url}/files/datasets/{words[0]}"
        if words[1:] == ["upload_url"]:
            upload = pb.FileUploadURL(url=url, file_field_name="file", fields={"key": "value"})
            return pb.FileUploadResponse(url=upload)
        if words[0] not in self.hub.datasets:
            return None
        if words[1:] == ["download_data"]:
            return pb.FileDownloadResponse(url=pb.FileDownloadURL(url=url, filename="dataset.h5"))
        dataset = pb.Dataset(dataset_id=words[0], name="dataset")
        dataset.expiration_time.FromSeconds(int(time.time()) + self.hub.faults.dataset_seconds)
        return dataset

    def _post_jobs(self, words: list[str], body: bytes) -> Any:
        job = pb.Job.FromString(body)
        kind = job.WhichOneof("job")
        detail, identity = getattr(job, kind), self.hub.name("j")
        setattr(detail, f"{kind}_id", identity)
        detail.job_state = pb.JOB_STATE_CREATED
        detail.creation_time.GetCurrentTime()
        if kind != "inference_job":
            detail.target_model.model_id = self.hub.name("m")
            detail.target_model.producer_id = identity
        if kind == "compile_job":
            detail.device.CopyFrom(detail.devices.devices[0])
        self.hub.jobs[identity] = job
        self.hub.waiting.put(identity)
        return pb.CreateUpdateResponse(id=identity, creation_time=detail.creation_time)

    def _get_jobs(self, words: list[str], body: bytes) -> Any:
        kept = self.hub.results if words[1:] == ["result"] else self.hub.jobs
        return kept.get(words[0])


def _form_file(headers: Message, body: bytes) -> bytes:
    """Returns the part named "file" of a multipart form."""
    boundary = headers.get_param("boundary")
    assert isinstance(boundary, str)
    for part in body.split(f"--{boundary}".encode()):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise AssertionError("the form has no file")


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Yields an AI Hub on a free port of the loopback address; `folder` keeps its files."""
    hub = Hub(wrappers={"folder": folder})
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True),
        threading.Thread(target=work, args=(hub,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for event in hub.faults.hold.values():
            event.set()
        hub.waiting.put("")
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(timeout=30)


def write_ini(file: Path, url: str, token: str = TOKEN) -> Path:
    """Writes what `qai-hub configure` writes."""
    lines = ["[api]", f"api_token = {token}", f"api_url = {url}", f"web_url = {url}", ""]
    file.write_text("\n".join(lines))
    return file


def journal_of(directory: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of the journal; none where there is no journal yet."""
    path = directory / "jobs.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
