"""An AI Hub on this machine: it speaks the client's protobufs, and `hub_phone` does the work.

Uploads are kept in memory; the routes are those that qai_hub 0.56 calls.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_phone import LIMITS, Hub, work
from qai_hub import public_api_pb2 as pb

from edgeport.places import find_place
from edgeport.running import PlaceRun, read_manifest, run_at
from edgeport.runtimes.worker import Limits

TOKEN = "secret-of-the-test-4711"
PHONE = "Samsung Galaxy S24"
FRAMEWORKS = ("framework:onnx", "framework:qnn", "framework:tflite")
PROTOBUF = "application/x-protobuf"


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
                attributes=["os:android", f"chipset:{chip}", *FRAMEWORKS],
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
    hub = Hub(folder)
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


def run_on_hub(
    export: Path, text: str = "hub", *names: str, seconds: float = 120
) -> list[PlaceRun]:
    limits = Limits(seconds, LIMITS.memory_bytes)
    return run_at(export, find_place(text), names, limits=limits)


def parity_here(export: Path, runtime: str) -> list[float]:
    """Returns the SQNR per sample that the export itself measured with the runtime's files."""
    artifacts = read_manifest(export)["artifacts"]
    (run,) = (a for a in artifacts if a["stage"] == "run" and a["runtime"] == runtime)
    return run["parity"][0]["samples"]


def journal_of(directory: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of the journal; none where there is no journal yet."""
    path = directory / "jobs.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
