"""A TLS certificate for one session, and the addresses at which other devices find this machine."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeport.errors import InputError
from edgeport.private import scratch_directory

# One address in each private range and one outside: a connected datagram socket sends nothing, and
# tells from which of its addresses the system would.
_ELSEWHERE = ("10.255.255.254", "172.31.255.254", "192.168.255.254", "8.8.8.8")
_INSTALL = 'pip install "edgeport[serve]"'


def lan_addresses() -> tuple[str, ...]:
    """Returns this machine's IPv4 addresses that another device on its network can reach.

    Raises InputError where there is none.
    """
    found: dict[str, None] = {}
    for target in _ELSEWHERE:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found[str(probe.getsockname()[0])] = None
    usable = tuple(one for one in found if _is_reachable(one))
    if not usable:
        raise InputError(
            "--lan: this machine has no address on a network; join one, or leave out --lan and use"
            " a USB cable with adb reverse"
        )
    return usable


def _is_reachable(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_unspecified or found.is_link_local)


def session_context(addresses: Sequence[str]) -> tuple[ssl.SSLContext, str]:
    """Returns a server's TLS settings with a new certificate, and its SHA-256 fingerprint.

    The certificate is for `addresses`, lasts a day, and its key (EC P-256) is in no file once this
    returns: the standard library loads keys from files only, so it is in one that only this user
    can read meanwhile. Raises InputError without the package cryptography.
    """
    certificate, key = _make(addresses)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with scratch_directory() as folder:
        path = folder / "session.pem"
        _write_private(path, key + certificate)
        context.load_cert_chain(path)
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest().upper()
    return context, ":".join(shown[i : i + 2] for i in range(0, len(shown), 2))


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _make(addresses: Sequence[str]) -> tuple[bytes, bytes]:
    """Returns a self-signed certificate and its key, both PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError:
        raise InputError(f"--lan needs the package cryptography: {_INSTALL}") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edgeport serve")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def qr_code(text: str) -> Any:
    """Returns `text` as a QR code that can write itself to a terminal.

    Raises InputError without the package segno.
    """
    try:
        import segno
    except ImportError:
        raise InputError(f"--lan needs the package segno: {_INSTALL}") from None
    return segno.make(text, error="m", micro=False)
