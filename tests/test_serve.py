"""`edgeport serve`: what it gives, to whom, and what it refuses; without a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_material import FILES, Client, client_of, make_export, results, write_manifest
from support import called, check_refusal

from edgeport.errors import InputError
from edgeport.serve import serving
from edgeport.serving import server


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
    answer = client.raw(content)
    assert b" 200 " not in answer
    assert client.token.encode() not in answer
    assert client.ask("/")[0].status == 200


def test_a_request_that_never_ends_is_cut_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    assert client.raw(b"GET / HTTP/1.1\r\nHost: ") == b""
    half = f"POST /results?token={client.token} HTTP/1.1\r\nHost: {client.host}\r\n"
    client.raw(f"{half}Content-Length: 1000\r\n\r\n{{".encode())
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
