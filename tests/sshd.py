"""A real OpenSSH server on a loopback port, with keys and settings of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_NOBODYS = "/run/sshd"  # a server that root starts wants this folder, empty

needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="needs sshd: apt install openssh-server openssh-client",
)


@dataclass(frozen=True)
class Server:
    """A running server: `folder` holds its keys, `temporary` is TMPDIR of those who log in."""

    port: int
    folder: Path
    temporary: Path

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """The client's configuration: with our key, and this server's host key as known."""
        return self.folder / "ssh_config"

    def left(self) -> list[str]:
        """Returns what is in the temporary folder now."""
        return sorted(path.name for path in self.temporary.iterdir())


@contextmanager
def running_sshd(folder: Path, *settings: str) -> Iterator[Server]:
    """Yields a server that lets the present user in; `settings` are lines of sshd_config."""
    assert SSHD is not None
    if os.getuid() == 0:
        os.makedirs(_NOBODYS, mode=0o755, exist_ok=True)
    elif not os.path.isdir(_NOBODYS):
        pytest.skip(f"needs sshd with its folder {_NOBODYS}, which only root can make")
    for name in ("host_key", "user_key"):
        _make_key(folder / name)
    temporary = folder / "tmp of the board"
    temporary.mkdir()
    server = Server(_free_port(), folder, temporary)
    _configure(server, settings)
    log = (folder / "sshd.log").open("wb")
    words = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _make_key(path: Path) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def _configure(server: Server, settings: tuple[str, ...]) -> None:
    folder = server.folder
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    sshd = (
        *settings,  # the first value of a keyword counts
        f"Port {server.port}",
        "ListenAddress 127.0.0.1",
        f'HostKey "{folder / "host_key"}"',
        f'AuthorizedKeysFile "{folder / "authorized_keys"}"',
        f'PidFile "{folder / "sshd.pid"}"',
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "StrictModes no",
        f'SetEnv "TMPDIR={server.temporary}" "HOME={folder}"',  # nobody's .bashrc
    )
    (folder / "sshd_config").write_text("\n".join(sshd) + "\n")
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    client = (
        f'IdentityFile "{folder / "user_key"}"',
        "IdentitiesOnly yes",
        f'UserKnownHostsFile "{folder / "known_hosts"}"',
        "GlobalKnownHostsFile /dev/null",
    )
    server.config.write_text("\n".join(client) + "\n")


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise AssertionError((server.folder / "sshd.log").read_text())
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
