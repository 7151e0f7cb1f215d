"""Serves the page of an export to a browser or a phone, and keeps what its benchmark posts."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgeport.errors import InputError
from edgeport.report import measurement_text
from edgeport.serving.certificate import lan_addresses, session_context
from edgeport.serving.posted import clean, measurements_of, parse_posted
from edgeport.serving.server import Doorkeeper, Server
from edgeport.serving.site import Site, open_site
from edgeport.types import Measurement

LOOPBACK = "127.0.0.1"


@dataclass
class Results:
    """What pages posted: kept in a file beside the export, where no later export removes it."""

    path: Path
    program_sha256: str
    tell: Callable[[str], None]
    kept: list[Measurement] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: bytes, user_agent: str, from_here: bool) -> str:
        """Keeps one post as Measurements, a JSON line each; returns what the page is told.

        Raises InputError for a post of another form, and OSError where it cannot be written.
        """
        measured = measurements_of(
            parse_posted(body),
            program_sha256=self.program_sha256,
            user_agent=user_agent,
            from_here=from_here,
        )
        lines = "".join(json.dumps(one.to_dict(), allow_nan=False) + "\n" for one in measured)
        with self.lock:
            self._append(lines.encode())
            self.kept.extend(measured)
        with suppress(OSError):  # the terminal has gone: the file has it
            self.tell(f"posted by {clean(user_agent) or 'a page without a name'}:")
            for one in measured:
                self.tell(f"  {measurement_text(one)}")
        self.arrived.set()
        return f"kept as {measured[0].origin}"

    def _append(self, lines: bytes) -> None:
        """Adds whole lines, in one call where the disk takes them; no link is followed."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags, 0o644), "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Service:
    """A site being served: at which URLs, where results go; `fingerprint` is the certificate's."""

    site: Site
    servers: tuple[Server, ...]
    results: Results
    fingerprint: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the page is, with the token."""
        return tuple(server.url for server in self.servers)

    @property
    def port(self) -> int:
        """The port, the same at every address."""
        return self.servers[0].port


@contextmanager
def serving(
    directory: Path,
    *,
    port: int = 8000,
    lan: bool = False,
    addresses: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Service]:
    """Yields the service of an export's page while it is up; 0 is any free port.

    With `lan` it is at this machine's addresses on its networks, over https, else at the loopback
    address (or at `addresses`) over plain http. `tell` is given a line for what a page posts.
    Raises InputError for a directory without a page, a port that is taken, a missing package.
    """
    site = open_site(directory)
    results = Results(results_file(directory), site.program_sha256, tell)
    keeper = Doorkeeper(site, secrets.token_urlsafe(24), results.take)
    places = lan_addresses() if lan else tuple(addresses) or (LOOPBACK,)
    tls, fingerprint = session_context(places) if lan else (None, "")
    servers: list[Server] = []
    try:
        for place in places:
            servers.append(Server(place, servers[0].port if servers else port, keeper, tls))
            threading.Thread(target=servers[-1].serve_forever, args=(0.1,), daemon=True).start()
        yield Service(site, tuple(servers), results, fingerprint)
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def results_file(directory: Path) -> Path:
    """Returns where results are kept: beside the export's directory, which holds nothing else.

    Raises InputError where a file cannot be written there.
    """
    place = directory.resolve()
    path = place.with_name(f"{place.name}.results.jsonl")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is where results are kept, and no plain file: move it away")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written, where results are kept: make it writable")
    return path
