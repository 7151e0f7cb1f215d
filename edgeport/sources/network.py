"""Keeps a model's construction off the network: Python's sockets refuse, and the hub is told so."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from edgeport.catalog import Source
from edgeport.errors import InputError

_EVENTS = (
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname",
)  # fmt: skip
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_refusing: list[str] = []
_hooked: list[bool] = []


@contextlib.contextmanager
def guarded(source: Source) -> Iterator[None]:
    """Refuses the network to what is built within, where nothing may be downloaded.

    That is every source with --offline, and timm and hf models without --pretrained: a backbone
    of theirs may ask for weights by itself. A user's own factory without --offline is free. Python
    code that opens a socket gets an InputError; what native code or a child process does on its
    own is not seen.
    """
    if source.pretrained or not (source.offline or source.kind in ("timm", "hf")):
        yield
        return
    _install_hook()
    before = {name: os.environ.get(name) for name in _OFFLINE}
    _set(dict.fromkeys(_OFFLINE, "1"))
    _refusing.append(source.text)
    try:
        yield
    finally:
        _refusing.pop()
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    """Sets or removes environment variables, and tells huggingface_hub, which reads them once."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = any(  # type: ignore[attr-defined]
            str(values.get(name)).upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE[:2]
        )


def _install_hook() -> None:
    """Installs the audit hook, once: Python has no way to remove one."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refusing or event not in _EVENTS:
        return
    host = arguments[0] if event.startswith("socket.get") else _host(arguments[1:])
    if not is_local(host):
        raise InputError(
            f"{_refusing[-1]} reaches for the network ({host}); nothing is downloaded without"
            " --pretrained, or with --offline"
        )


def _host(arguments: tuple[Any, ...]) -> Any:
    """Returns the host of an address, None for a socket that has none, as AF_UNIX."""
    address = arguments[0] if arguments else None
    return address[0] if isinstance(address, tuple) and address else None


def is_local(host: Any) -> bool:
    """Returns whether a host, or no host, is this machine."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
