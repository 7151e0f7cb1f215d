"""`edgeport serve` on the network, over TLS; and the command from its first line to Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_material import FILES, Client, client_of, make_export, results
from support import called, check_refusal, command, command_environment

from edgeport.errors import InputError
from edgeport.private import scratch_directory
from edgeport.serving import certificate, server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_export(tmp_path / "out")


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
    assert lan.raw(b"GET / HTTP/1.1\r\n\r\n") == b""


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
