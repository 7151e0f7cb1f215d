"""A server that speaks adb's protocol to the real adb client; its phone is a shell of this machine.

Source of the protocol: the Android Open Source Project, packages/modules/adb (SERVICES.TXT,
SYNC.TXT, shell_protocol.h). Only what `devices`, `shell`, `push` and `pull` need.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_BLOCK = 60_000


class AdbServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of loopback; `listed` are the lines of `adb devices`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, listed: str, path: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.listed = listed
        self.path = path  # PATH of the phone's shell


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: AdbServer

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client goes when it has what it wants
            while self._serve(self._read(int(self._read(4), 16)).decode()):
                pass

    def _serve(self, service: str) -> bool:
        """Answers one request; returns whether another one follows on this connection."""
        if service == "host:version":
            self._tell("0029")
        elif service == "host:devices":
            self._tell(self.server.listed)
        elif service.endswith(":features"):
            self._tell("shell_v2,cmd")
        elif service.startswith("host:tport:"):
            self.request.sendall(b"OKAY" + struct.pack("<Q", 1))
            return True
        elif service.startswith("host:transport"):
            self.request.sendall(b"OKAY")
            return True
        elif service.startswith("shell,v2"):
            self.request.sendall(b"OKAY")
            self._shell(service.partition(":")[2])
        elif service == "sync:":
            self.request.sendall(b"OKAY")
            self._sync()
        else:
            text = f"unknown {service}"
            self.request.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())
        return False

    def _tell(self, text: str) -> None:
        self.request.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            block = self.request.recv(count - len(content))
            if not block:
                raise ConnectionError
            content += block
        return content

    def _shell(self, command: str) -> None:
        """Runs a command; its stdin ends with the client's, or with the connection."""
        with subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": self.server.path},
        ) as process:
            sending = threading.Lock()
            pipes = ((process.stdout, _STDOUT), (process.stderr, _STDERR))
            threads = [
                threading.Thread(target=self._forward, args=(pipe, kind, sending))
                for pipe, kind in pipes
            ]
            listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
            for thread in (*threads, listener):
                thread.start()
            status = process.wait()
            for thread in threads:
                thread.join()
            self._send(_EXIT, bytes([status & 0xFF]), sending)
            with suppress(OSError):  # the client is gone already
                self.request.shutdown(socket.SHUT_RDWR)
            listener.join()

    def _forward(self, pipe, kind: int, sending: threading.Lock) -> None:
        while block := os.read(pipe.fileno(), _BLOCK):
            self._send(kind, block, sending)

    def _send(self, kind: int, block: bytes, sending: threading.Lock) -> None:
        with suppress(OSError), sending:  # nobody may listen any more
            self.request.sendall(struct.pack("<BI", kind, len(block)) + block)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(OSError):
            while True:
                kind, count = struct.unpack("<BI", self._read(5))
                block = self._read(count)
                if kind == _STDIN:
                    process.stdin.write(block)
                    process.stdin.flush()
                elif kind == _CLOSE_STDIN:
                    break
        with suppress(OSError):
            process.stdin.close()

    def _sync(self) -> None:
        while True:
            kind, count = struct.unpack("<4sI", self._read(8))
            if kind == b"QUIT":
                return
            path = self._read(count).decode()
            if kind == b"STAT":
                self._stat(b"STAT", Path(path))
            elif kind == b"SEND":
                self._receive_file(Path(path.rpartition(",")[0]))
            elif kind == b"RECV":
                self._send_file(Path(path))
            elif kind == b"LIST":
                for entry in Path(path).iterdir():
                    self._stat(b"DENT", entry, os.fsencode(entry.name))
                self.request.sendall(b"DONE" + bytes(16))

    def _stat(self, kind: bytes, path: Path, name: bytes | None = None) -> None:
        found = path.stat() if path.exists() else None
        numbers = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        packed = kind + struct.pack("<3I", *numbers)
        self.request.sendall(packed + (struct.pack("<I", len(name)) + name if name else b""))

    def _receive_file(self, path: Path) -> None:
        content = b""
        while (header := struct.unpack("<4sI", self._read(8)))[0] == b"DATA":
            content += self._read(header[1])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.request.sendall(b"OKAY" + bytes(4))
        except OSError as error:
            self._fail(str(error))

    def _fail(self, text: str) -> None:
        self.request.sendall(b"FAIL" + struct.pack("<I", len(text)) + text.encode())

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._fail(f"{path} is no file")
            return
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                self.request.sendall(b"DATA" + struct.pack("<I", len(block)) + block)
        self.request.sendall(b"DONE" + bytes(4))


@contextmanager
def running_adb_server(listed: str, path: str) -> Iterator[AdbServer]:
    """Yields a server to which ANDROID_ADB_SERVER_PORT may lead the client."""
    with AdbServer(listed, path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
