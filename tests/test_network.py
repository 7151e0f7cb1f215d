"""Nothing is downloaded unless the user asks: sockets refuse while a model is built."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from support import FACTORY, INPUT

from edgeport.catalog import Source, find_source
from edgeport.errors import InputError
from edgeport.sources import build_module
from edgeport.sources.network import guarded, is_local

TIMM = Source("timm", "timm:resnet18", attribute="resnet18")
FAR = ("192.0.2.1", 9)  # an address that is kept for documentation


def reach(how: str) -> None:
    """Reaches for a host that is not this machine."""
    if how == "name":
        socket.getaddrinfo("example.invalid", 443)
        return
    kind = socket.SOCK_DGRAM if how == "sendto" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as one:
        one.settimeout(0.2)
        if how == "sendto":
            one.sendto(b"x", FAR)
        else:
            (one.connect_ex if how == "connect_ex" else one.connect)(FAR)


@pytest.mark.parametrize("how", ["connect", "connect_ex", "sendto", "name"])
def test_the_network_is_refused(how: str) -> None:
    with guarded(TIMM), pytest.raises(InputError, match="timm:resnet18 reaches for the network"):
        reach(how)


def test_a_thread_is_refused_too() -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            reach("connect")
        except InputError as error:
            raised.append(error)

    with guarded(TIMM):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(raised) == 1


def test_this_machine_is_not_the_network() -> None:
    with guarded(TIMM), socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()


def test_after_it_the_network_is_free_and_the_environment_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    with guarded(TIMM):
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert "TRANSFORMERS_OFFLINE" not in os.environ
    with pytest.raises(OSError):  # noqa: PT011 (refused by the network, or by its absence)
        socket.getaddrinfo("example.invalid", 443)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        (b"localhost", True),
        (None, True),
        ("", True),
        ("192.0.2.1", False),
        ("huggingface.co", False),
        (b"huggingface.co", False),
        ("fe80::1%eth0", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_what_is_local(host: object, local: bool) -> None:
    assert is_local(host) is local


DOWNLOADING = FACTORY.replace("def build():", "import socket\n\n\ndef build():").replace(
    "    return", "    socket.create_connection(('192.0.2.1', 9), timeout=0.2)\n    return"
)


@pytest.mark.parametrize("offline", [True, False])
def test_offline_holds_for_a_users_factory(tmp_path: Path, offline: bool) -> None:
    (tmp_path / "net.py").write_text(DOWNLOADING)
    source = find_source(f"{tmp_path}/net.py:build", inputs=[INPUT], offline=offline)
    with pytest.raises(InputError) as caught:
        build_module(source, 0)
    assert ("reaches for the network (192.0.2.1)" in str(caught.value)) is offline
