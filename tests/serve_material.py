"""A small export with a page, made without an exporter; requests to its server; what pages post."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgeport.report import SCHEMA_VERSION
from edgeport.serve import Service, serving

FILES = {
    "index.html": b"<!doctype html><title>page</title><script type=module src=viewer.js></script>",
    "viewer.js": b"export const here = true;\n",
    "style.css": b"body {}\n",
    "program.json": b'{"format": "edgeport.webgpu/1"}\n',
    "shaders/show.wgsl": b"// nothing\n",
    "splat.frag.glsl": b"// nothing\n",
    "scene/lc_geometry.bin": bytes(range(256)),
}
PHONE = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/150.0.0.0 Mobile Safari/537.36"
)
DESKTOP = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/150.0.0.0 Safari/537.36"
ADRENO = {"vendor": "qualcomm", "architecture": "adreno-7xx", "device": "", "description": ""}
SWIFTSHADER = {"vendor": "google", "architecture": "swiftshader"}


def write_manifest(directory: Path, **more: Any) -> None:
    """Writes the manifest of the files that are there."""
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    manifest = {
        "generator": "edgeport",
        "schema_version": SCHEMA_VERSION,
        "source": {"name": "wsr_splatting"},
        "artifacts": [],
        "files": files,
        **more,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def make_export(directory: Path) -> Path:
    for name, content in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(directory)
    return directory


def results(**changes: Any) -> dict[str, Any]:
    """Returns what the page posts: sorted takes 1.5 times as long as sort-free."""
    sort_free = [10.0 + 0.1 * (i % 5) for i in range(24)]
    return {
        "format": "edgeport.results/1",
        "renderer": "webgpu",
        "adapter": ADRENO,
        "fallback": False,
        "frame": [512, 512],
        "splats": {"sort_free": 1000, "sorted": 1200},
        "frames_per_sample": 4,
        "samples_ms": {"sort_free": sort_free, "sorted": [1.5 * one for one in sort_free]},
        "warnings": [],
        **changes,
    }


@dataclass
class Client:
    """Asks one server; `told` are the lines that it printed."""

    service: Service
    told: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.service.urls[0]).query)["token"][0]

    @property
    def host(self) -> str:
        return urlsplit(self.service.urls[0]).netloc

    def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        token: bool = True,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Returns the answer and its body; the token goes along as the cookie does."""
        address, _, port = self.host.partition(":")
        connection = http.client.HTTPConnection(address, int(port), timeout=10)
        cookie = {"Cookie": f"edgeport_{port}={self.token}"} if token else {}
        try:
            connection.request(method, path, body=body, headers={**cookie, **(headers or {})})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def post(self, document: Any, user_agent: str = PHONE, **headers: str) -> tuple[int, str]:
        """Returns the status and the line with which results were answered."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        answer, told = self.ask(
            "/results", "POST", headers={"User-Agent": user_agent, **headers}, body=body
        )
        return answer.status, told.decode()

    def raw(self, content: bytes) -> bytes:
        """Returns all that the server answers to bytes that may be no request."""
        address = ("127.0.0.1", self.service.port)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(content)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
            return answer

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The measurements in the file."""
        path = self.service.results.path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def client_of(directory: Path, **options: Any) -> Iterator[Client]:
    told: list[str] = []
    with serving(directory, port=0, tell=told.append, **options) as service:
        yield Client(service, told)
