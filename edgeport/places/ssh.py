"""The place `ssh://user@host[:port]`: a board with Python and one of the runtimes.

    ssh://pi@raspberrypi.local
    ssh://user@10.0.0.7:8022?python=/opt/venv/bin/python&threads=4&tmp=/data

It is reached by the system's OpenSSH client with the user's own ~/.ssh/config, or with the file
that EDGEPORT_SSH_CONFIG names. Nobody is asked for a password, and the host key has to be known.

One connection carries all. Its own command on the board, the **keeper**, makes the directory and
removes it when its stdin ends - because we close it, or die, or the network does.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgeport.errors import InputError, StageFailed
from edgeport.places import Job, Ran, runner
from edgeport.places.board import (
    Settings,
    check_board,
    check_runtimes,
    parse_settings,
    run_on_board,
)
from edgeport.places.keeper import (
    KEEPER,
    Ended,
    kept_directory,
    last_line,
    run_held,
)
from edgeport.private import private_directory

CONFIG_VARIABLE = "EDGEPORT_SSH_CONFIG"
CONNECT_SECONDS = 15
_USER = re.compile(r"[A-Za-z0-9_][\w.@+-]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_:][\w.:%-]*", re.ASCII)
# The user's configuration stands, but for what would open more than is needed.
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
# What the client says -> what that means; the first that is found.
_REFUSALS = (
    (
        "HOST IDENTIFICATION HAS CHANGED|[Hh]ost key for .* has changed",
        "its host key is not the one in known_hosts, so another machine may be answering; if the"
        " board was set up anew: ssh-keygen -R '{known}', then connect once with {command}",
    ),
    (
        "host key is known|Host key verification failed",
        "its host key is not known here: connect once with {command} and compare the fingerprint"
        " with the board's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)",
    ),
    ("Permission denied", "it refused the login: put your key there with ssh-copy-id {login}"),
    ("Could not resolve hostname", "no such host: name it by its address, or in ~/.ssh/config"),
    ("Connection refused", "no ssh server listens on port {port}: is it on, and is sshd running?"),
    ("timed out|No route to host|unreachable", "it cannot be reached: is it on, and on this net?"),
    ("mktemp", "no directory could be made there: {last}; name another one with ?tmp=/path"),
)


@dataclass(frozen=True)
class Address:
    """A board's login, checked: no part of it can be an option or a second command."""

    host: str
    user: str = ""
    port: int = 0

    def __str__(self) -> str:
        at = f"{self.user}@{self.host}" if self.user else self.host
        return f"{at}:{self.port}" if self.port else at

    @property
    def login(self) -> str:
        """What stands behind `ssh` on the command line."""
        at = f"{self.user}@{self.host}" if self.user else self.host
        return f"-p {self.port} {at}" if self.port else at

    def ssh(self, *options: str) -> list[str]:
        """Returns the client's command up to the host."""
        words = ["ssh"]
        if config := os.environ.get(CONFIG_VARIABLE):
            words += ["-F", config]
        for name, value in _OPTIONS.items():
            words += ["-o", f"{name}={value}"]
        words += options
        words += ["-l", self.user] if self.user else []
        words += ["-p", str(self.port)] if self.port else []
        return [*words, "--", self.host]


@dataclass(frozen=True)
class Connection:
    """An open connection: a `Board`, whose directory goes with it."""

    name: str
    directory: str
    address: Address
    socket: Path
    seconds: float

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the directory."""
        with source.open("rb") as file:
            done = self._do('cat > "$1"', f"{self.directory}/{name}", stdin=file.fileno())
        if done.returncode != 0:
            raise StageFailed(
                "run",
                f"{name} could not be copied to {self.name}: {last_line(done.stderr)};"
                " ?tmp=/path names another directory there",
            )

    def get(self, name: str, target: Path) -> None:
        """Copies a file of the directory here; what the login prints before it is left out."""
        marker = f"edgeport-{secrets.token_hex(8)}"
        raw = target.with_name(f"{target.name}.raw")
        with raw.open("w+b") as file:
            path = f"{self.directory}/{name}"
            done = self._do('echo "$2"; exec cat "$1"', path, marker, stdout=file.fileno())
            file.seek(0)
            found = any(line.rstrip().endswith(marker.encode()) for line in file)
            if done.returncode != 0 or not found:
                said = last_line(done.stderr)
                raise StageFailed("run", f"{name} did not come back from {self.name}: {said}")
            with target.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        raw.unlink()

    def run(self, words: Sequence[str], seconds: float) -> Ended:
        """Runs a command with its stdin held open."""
        return run_held([*self._client(), shlex.join(words)], seconds, self.name)

    def _client(self) -> list[str]:
        return self.address.ssh("-o", "ControlMaster=no", "-o", f"ControlPath={self.socket}")

    def _do(
        self,
        script: str,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._client(), shlex.join(["sh", "-c", script, "sh", *arguments])],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=self.seconds,
                start_new_session=True,  # the terminal's Ctrl-C is for us
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"a copy to or from {self.name} took over {self.seconds:g} s (--timeout)"
            raise StageFailed("run", said) from None


class Ssh:
    """A board, reached by ssh."""

    def __init__(self, text: str, address: Address, settings: Settings) -> None:
        self.text, self._address, self._settings = text, address, settings

    def check(self, runtimes: Sequence[str]) -> None:
        """Raises InputError where the board cannot be reached, or has not what is needed."""
        check_runtimes("a board over ssh", runtimes, tuple(runner.PACKAGES))
        with connect(self._address, self._settings.tmp, 60.0) as board:
            check_board(board, self._settings, runtimes)

    def run(self, job: Job) -> Ran:
        """Copies the job to the board, runs it there, and leaves nothing unless `keep`."""
        host = _real_host(self._address)
        with connect(self._address, self._settings.tmp, job.limits.seconds, job.keep) as board:
            ran = run_on_board(board, host, self._settings, job)
            kept = (f"left on {board.name}: {board.directory}",) if job.keep else ()
            return Ran(ran.outputs, ran.provenance, ran.measurements, (*ran.notes, *kept))


def open_place(text: str) -> Ssh:
    """Returns the board that `ssh://[user@]host[:port][?settings]` names; raises InputError."""
    form = "ssh://user@host[:port]"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"--on {text}: {error}; write {form}") from None
    user = parts.username or ""
    if parts.password is not None:
        raise InputError("--on ssh://: no password in an address; log in with a key")
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.fragment or port == 0:
        raise InputError(f"--on {text}: write {form}, and settings behind a ?: ?python=/path")
    if not _HOST.fullmatch(host) or not _USER.fullmatch(user or "user"):
        raise InputError(f"--on {text}: write {form}, of letters, digits, dots and dashes")
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise InputError(f"{CONFIG_VARIABLE}: {config} is no file")
    if shutil.which("ssh") is None:
        raise InputError("ssh is not installed: apt install openssh-client")
    settings = parse_settings(text, parts.query, ("python", "threads", "tmp"))
    return Ssh(text, Address(host, user, port or 0), settings)


@contextmanager
def connect(address: Address, tmp: str, seconds: float, keep: bool = False) -> Iterator[Connection]:
    """Yields a connection with a new directory on the board, which is removed in every case.

    With `keep` it stays. Raises InputError with the cause where there is no connection.
    """
    marker = f"edgeport-{secrets.token_hex(8)} "
    with private_directory(_short_parent(), "edgeport", mode=0o700) as scratch:
        socket, log = scratch / "s", scratch / "log"
        options = ("ControlMaster=yes", f"ControlPath={socket}", "ControlPersist=no")
        client = address.ssh(*(word for option in options for word in ("-o", option)))
        keeping = [*client, shlex.join(["sh", "-c", KEEPER, "sh", tmp, marker])]
        wait = 2.0 * CONNECT_SECONDS
        with kept_directory(keeping, log, marker, wait, keep, str(address)) as directory:
            if not directory:
                raise _refusal(address, log.read_text(errors="replace"))
            yield Connection(str(address), directory, address, socket, seconds)


def _refusal(address: Address, log: str) -> InputError:
    """Returns why there is no connection, and what to do, in one sentence."""
    port, last = address.port or 22, last_line(log)
    said = {
        "known": f"[{address.host}]:{port}" if port != 22 else address.host,
        "command": f"ssh {address.login}",
        "login": address.login,
        "port": port,
        "last": last,
    }
    for pattern, sentence in _REFUSALS:
        if re.search(pattern, log):
            return InputError(f"{address}: {sentence.format(**said)}")
    if not log.strip():
        return InputError(f"{address} did not answer in {2 * CONNECT_SECONDS} s")
    return InputError(f"{address}: no connection: {last}")


def _real_host(address: Address) -> str:
    """Returns the host's name or address after the user's configuration, which may rename it."""
    words = address.ssh("-G")
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    named = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
    return named[1] if named else address.host


def _short_parent() -> Path:
    """Returns where the control socket's directory is made: a socket's path holds 104 bytes."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual)) < 40 else Path("/tmp")  # noqa: S108
