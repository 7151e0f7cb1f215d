"""`edgeport serve`: what it gives, to whom, and what it refuses; without a browser."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_material import FILES, Client, client_of, make_export, results, write_manifest
from support import called, check_refusal, command, command_environment

from edgeport.errors import InputError
from edgeport.private import scratch_directory
from edgeport.serve import serving
from edgeport.serving import certificate, server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_export(tmp_path / "out")


@pytest.fixture
def client(directory: Path) -> Iterator[Client]:
    with client_of(directory) as found:
        yield found


# What is served


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("viewer.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("program.json", "application/json"),
        ("shaders/show.wgsl", "text/plain; charset=utf-8"),
        ("splat.frag.glsl", "text/plain; charset=utf-8"),
        ("scene/lc_geometry.bin", "application/octet-stream"),
    ],
)
def test_the_manifests_files_are_served_with_their_types(
    client: Client, name: str, content_type: str
) -> None:
    answer, body = client.ask(f"/{name}")
    assert (answer.status, body) == (200, FILES[name])
    assert answer.headers["Content-Type"] == content_type
    head, nothing = client.ask(f"/{name}", "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert head.headers["Content-Length"] == str(len(FILES[name]))


def test_the_page_is_at_the_root_and_isolated(client: Client) -> None:
    answer, body = client.ask("/")
    assert body == FILES["index.html"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert client.ask("/manifest.json")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%252e%252e%252fsecret.txt",
        "/scene/../../secret.txt",
        "//../secret.txt",
        "/scene",
        "/scene/",
        "/shaders/..",
        "/unlisted.txt",
        "/index.html/",
        "/viewer.js%00.html",
        "/C:\\secret.txt",
    ],
)
def test_nothing_else_is(directory: Path, path: str) -> None:
    (directory.parent / "secret.txt").write_text("secret")
    (directory / "unlisted.txt").write_text("secret")
    with client_of(directory) as client:
        answer, body = client.ask(path)
        assert answer.status == 404
        assert body == b"no such file in this export\n"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_refused(client: Client, method: str) -> None:
    answer, body = client.ask("/index.html", method)
    assert answer.status == 501
    assert body.count(b"\n") == 1


def test_a_link_out_is_refused(directory: Path) -> None:
    secret = directory.parent / "secret.txt"
    secret.write_text("secret")
    (directory / "viewer.js").unlink()
    (directory / "viewer.js").symlink_to(secret)
    write_manifest(directory)
    with pytest.raises(InputError, match="symbolic link"), serving(directory, port=0):
        pass


def test_a_linked_folder_is_refused(directory: Path) -> None:
    os.rename(directory / "scene", directory.parent / "scene")
    (directory / "scene").symlink_to(directory.parent / "scene")
    with pytest.raises(InputError, match="symbolic link"), serving(directory, port=0):
        pass


def test_a_file_that_is_replaced_while_it_is_served_is_not_given(
    directory: Path, client: Client
) -> None:
    secret = directory.parent / "secret.txt"
    secret.write_text("secret")
    (directory / "viewer.js").unlink()
    assert client.ask("/viewer.js")[0].status == 409
    (directory / "viewer.js").symlink_to(secret)
    assert client.ask("/viewer.js")[0].status == 409
    (directory / "viewer.js").unlink()
    shutil.copy(secret, directory / "viewer.js")
    answer, body = client.ask("/viewer.js")
    assert answer.status == 409
    assert b"start edgeport serve again" in body


# To whom


def test_every_request_needs_the_token(client: Client) -> None:
    for path, method in (("/", "GET"), ("/viewer.js", "HEAD"), ("/results", "POST")):
        answer, body = client.ask(
            path, method, token=False, body=b"{}" if method == "POST" else None
        )
        assert answer.status == 403
        assert body.count(b"\n") <= 1
        assert "Set-Cookie" not in answer.headers
    assert client.ask("/?token=wrong", token=False)[0].status == 403
    assert client.ask("/?token=", token=False)[0].status == 403
    assert client.ask(f"/?token={client.token}x", token=False)[0].status == 403
    almost = {"Cookie": f"edgeport_{client.service.port}={client.token[:-1]}"}
    assert client.ask("/", token=False, headers=almost)[0].status == 403
    assert client.ask("/", token=False, headers={"Cookie": "\x7f=;;=="})[0].status == 403


def test_the_address_gives_a_cookie_that_no_script_reads(client: Client) -> None:
    answer, _ = client.ask(f"/?token={client.token}", token=False)
    assert answer.status == 200
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"edgeport_{client.service.port}={client.token};")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie


def test_tokens_differ(directory: Path) -> None:
    with client_of(directory) as one, client_of(directory) as other:
        assert one.token != other.token
        assert len(one.token) >= 32


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", ""])
def test_another_name_for_this_machine_is_refused(client: Client, host: str) -> None:
    """A page of another site can point its own name at 127.0.0.1: DNS rebinding."""
    headers = {"Host": host.format(port=client.service.port)}
    answer, body = client.ask(f"/?token={client.token}", headers=headers)
    assert answer.status == 421
    assert body == b"this server has another name\n"


def test_localhost_is_its_name_too(client: Client) -> None:
    headers = {"Host": f"localhost:{client.service.port}"}
    assert client.ask("/", headers=headers)[0].status == 200


def test_another_pages_post_is_refused(client: Client) -> None:
    assert client.post(results(), Origin="https://evil.example")[0] == 403
    assert client.post(results(), Origin=f"http://{client.host}")[0] == 200


def test_many_at_once_are_answered(client: Client) -> None:
    failed = []

    def ask(name: str) -> None:
        answer, body = client.ask(f"/{name}")
        if (answer.status, body) != (200, FILES[name]):
            failed.append((name, answer.status))

    threads = [threading.Thread(target=ask, args=(name,)) for name in (*FILES, *FILES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert failed == []


def raw(client: Client, content: bytes, timeout: float = 10) -> bytes:
    """Returns all that the server answers to bytes that may be no request."""
    address = ("127.0.0.1", client.service.port)
    with socket.create_connection(address, timeout=timeout) as connection:
        connection.sendall(content)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


@pytest.mark.parametrize(
    "content",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_one_line(client: Client, content: bytes) -> None:
    answer = raw(client, content)
    assert b" 200 " not in answer
    assert client.token.encode() not in answer
    assert client.ask("/")[0].status == 200


def test_a_request_that_never_ends_is_cut_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    assert raw(client, b"GET / HTTP/1.1\r\nHost: ") == b""
    half = f"POST /results?token={client.token} HTTP/1.1\r\nHost: {client.host}\r\n"
    raw(client, f"{half}Content-Length: 1000\r\n\r\n{{".encode())
    assert client.kept == []


def test_too_many_connections_are_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait say nothing; the next is closed at once, and later ones are answered."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 2.0)
    address = ("127.0.0.1", client.service.port)
    waiting = [socket.create_connection(address) for _ in range(server.MAX_CONNECTIONS)]
    try:
        with socket.create_connection(address, timeout=5) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for one in waiting:
            one.close()
    assert wait_for_answer(client) == 200


def wait_for_answer(client: Client) -> int:
    for _ in range(50):
        try:
            return client.ask("/")[0].status
        except OSError:
            threading.Event().wait(0.1)
    raise AssertionError("no answer")


# Bad input


def test_what_cannot_be_served_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    check_refusal(*called(capfd, "serve", nothing), "is no export")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"x")
    artifact = {"stage": "lower", "runtime": "onnx"}
    write_manifest(other, artifacts=[artifact])
    check_refusal(*called(capfd, "serve", other), "exported for onnx; only the runtime webgpu")
    changed = make_export(tmp_path / "changed")
    (changed / "viewer.js").write_text("alert(1)")
    check_refusal(*called(capfd, "serve", changed), r"viewer\.js was changed after")


@pytest.mark.parametrize("name", ["../secret.txt", "scene/../../secret.txt", "/etc/passwd"])
def test_a_manifest_that_lists_what_is_outside_is_refused(directory: Path, name: str) -> None:
    (directory.parent / "secret.txt").write_text("secret")
    manifest = json.loads((directory / "manifest.json").read_text())
    write_manifest(directory, files={**manifest["files"], name: {"sha256": "0" * 64}})
    with pytest.raises(InputError, match="which is outside"), serving(directory, port=0):
        pass


def test_a_port_in_use_is_told(
    directory: Path, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    port = client.service.port
    check_refusal(*called(capfd, "serve", directory, "--port", port), f"port {port} .*--port 0")


def test_where_results_cannot_go_is_told(directory: Path) -> None:
    place = directory.with_name("out.results.jsonl")
    place.mkdir()
    with pytest.raises(InputError, match="results are kept"), serving(directory, port=0):
        pass


# On the network


@pytest.fixture
def lan(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A server with TLS; at a loopback address, which every machine has."""
    pytest.importorskip("cryptography", reason='needs cryptography: pip install "edgeport[serve]"')
    monkeypatch.setattr("edgeport.serve.lan_addresses", lambda: ("127.0.0.1",))
    with client_of(directory, lan=True) as found:
        yield found


def fetched(client: Client, context: ssl.SSLContext) -> tuple[bytes, str, str]:
    """Returns the page over TLS, the protocol's version and the certificate's fingerprint."""
    port = client.service.port
    request = f"GET /?token={client.token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        version = str(connection.version())
        shown = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
        connection.sendall(request.encode())
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer, version, shown.upper()


def test_the_sessions_certificate_is_for_its_addresses(lan: Client) -> None:
    port = lan.service.port
    trusted = ssl.create_default_context(cadata=ssl.get_server_certificate(("127.0.0.1", port)))
    answer, version, fingerprint = fetched(lan, trusted)
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(FILES["index.html"])
    assert b"; Secure" in answer
    assert version in ("TLSv1.2", "TLSv1.3")
    assert fingerprint == lan.service.fingerprint.replace(":", "")
    assert lan.service.urls[0].startswith(f"https://127.0.0.1:{port}/?token=")


def test_nobody_else_trusts_it_and_plain_http_gets_nothing(lan: Client) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        fetched(lan, ssl.create_default_context())
    assert raw(lan, b"GET / HTTP/1.1\r\n\r\n") == b""


def test_a_handshake_that_waits_holds_up_nobody(lan: Client) -> None:
    with socket.create_connection(("127.0.0.1", lan.service.port)):
        port = lan.service.port
        trusted = ssl.create_default_context(cadata=ssl.get_server_certificate(("127.0.0.1", port)))
        assert fetched(lan, trusted)[0].startswith(b"HTTP/1.0 200")


def test_a_handshake_that_never_ends_is_cut_off(
    lan: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", lan.service.port), timeout=5) as connection:
        assert connection.recv(1) == b""


def test_the_key_is_in_no_file_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason='needs cryptography: pip install "edgeport[serve]"')
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    modes = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, path: Path) -> None:
        modes.append((path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777))
        load(self, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    certificate.session_context(["127.0.0.1"])
    assert modes == [(0o600, 0o700)]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with scratch_directory() as folder:
        assert folder.is_relative_to(tmp_path)


def test_a_missing_package_names_the_install_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = r'pip install "edgeport\[serve\]"'
    monkeypatch.setitem(sys.modules, "segno", None)
    check_refusal(*called(capfd, "serve", directory, "--lan"), f"segno: {line}")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    check_refusal(*called(capfd, "serve", directory, "--lan"), f"cryptography: {line}")


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_ELSEWHERE", ("127.0.0.1",))
    with pytest.raises(InputError, match=r"no address on a network.*adb reverse"):
        certificate.lan_addresses()


# The command


class Served:
    """`edgeport serve` in a process of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            command("serve", directory, "--port", "0", *options),
            env=command_environment(PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                break

    @property
    def port(self) -> int:
        return int(re.findall(r":(\d+)/", "\n".join(self.lines))[0])

    def ended(self, number: int | None = None) -> tuple[int, str, str]:
        """Returns the exit code and all of stdout and stderr, after a signal if one is named."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, "\n".join([*self.lines, out]), err


def test_ctrl_c_ends_it_and_tells_what_came(directory: Path) -> None:
    served = Served(directory)
    assert f"  adb reverse tcp:{served.port} tcp:{served.port}" in served.lines
    token = re.findall(r"token=(\S+)", "\n".join(served.lines))[0]
    post(served.port, token)
    code, out, err = served.ended(signal.SIGINT)
    assert code == 0, err
    assert "speedup:sort_free 1.5 ratio" in out
    kept = directory.with_name("out.results.jsonl")
    assert f"3 measurements were added to {kept}" in out
    assert out.count(token) == 1, "the address alone has the token"
    assert err == ""


def test_sigterm_keeps_its_exit_code(directory: Path) -> None:
    code, _, err = Served(directory).ended(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert err.strip() == "error: ended by SIGTERM"


def test_once_ends_after_the_first_results(directory: Path) -> None:
    served = Served(directory, "--once")
    post(served.port, re.findall(r"token=(\S+)", "\n".join(served.lines))[0])
    code, out, err = served.ended()
    assert code == 0, err
    assert "3 measurements were added" in out


def test_lan_prints_a_code_and_the_fingerprint(directory: Path) -> None:
    pytest.importorskip("cryptography", reason='needs cryptography: pip install "edgeport[serve]"')
    pytest.importorskip("segno", reason='needs segno: pip install "edgeport[serve]"')
    try:
        addresses = certificate.lan_addresses()
    except InputError:
        pytest.skip("this machine is on no network")
    code, out, err = Served(directory, "--lan").ended(signal.SIGINT)
    assert code == 0, err
    for address in addresses:
        assert f"https://{address}:" in out
    assert "▄" in out
    assert "The browser warns" in out
    assert re.search(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", out)
    assert "adb reverse" not in out
    assert "no results were posted" in out


def post(port: int, token: str) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/results?token={token}",
        data=json.dumps(results()).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
