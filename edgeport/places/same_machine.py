"""Whether a place that was reached over a transport is, after all, this machine."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path

from edgeport.types import Provenance

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Returns what the kernel drew when this machine was started; empty where it has none."""
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return ""


def provenance_of(host: str, their_boot_id: str = "") -> Provenance:
    """Returns "host" where `host` is this machine by any route that can be told, else "device".

    A loopback address, an address of one of this machine's own interfaces, or a kernel that gives
    the same boot id through a tunnel, a container or a forwarded port.
    """
    if their_boot_id and their_boot_id == boot_id():
        return "host"
    return "host" if any(_is_ours(address) for address in _addresses(host)) else "device"


def _addresses(host: str) -> set[str]:
    with suppress(OSError):
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    return set()


def _is_ours(address: str) -> bool:
    """Returns whether packets to `address` never leave: the system would bind a socket to it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.is_loopback or found.is_unspecified:
        return True
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
