"""The HTTP server of one export: read-only, behind a token, with limits on whatever comes in."""

from __future__ import annotations

import hmac
import shutil
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edgeport.errors import InputError
from edgeport.places.same_machine import provenance_of
from edgeport.serving.posted import MAX_BYTES
from edgeport.serving.site import Site

MAX_CONNECTIONS = 32
REQUEST_SECONDS = 20.0  # for the whole of a request to come in, the TLS handshake included
SEND_SECONDS = 60.0  # without the client taking a byte
POSTS_A_MINUTE = 10

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass
class Doorkeeper:
    """What a server lets in: whose token, which hosts, how many posts a minute.

    `take(body, user_agent, from_here)` keeps what was posted and returns a line for the page.
    """

    site: Site
    token: str
    take: Callable[[bytes, str, bool], str]
    posts_a_minute: int = POSTS_A_MINUTE
    posted: deque[float] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def knows(self, token: str) -> bool:
        """Returns whether it is the session's token, in a time that tells nothing of it."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def may_post(self) -> bool:
        """Returns whether one more post is within the limit, and counts it."""
        now = time.monotonic()
        with self.lock:
            while self.posted and now - self.posted[0] > 60.0:
                self.posted.popleft()
            if len(self.posted) >= self.posts_a_minute:
                return False
            self.posted.append(now)
            return True


class Server(ThreadingHTTPServer):
    """Serves one site at one address; raises InputError where the port is not to be had."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self, address: str, port: int, keeper: Doorkeeper, tls: ssl.SSLContext | None = None
    ) -> None:
        self.keeper, self.tls = keeper, tls
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((address, port), BaseHTTPRequestHandler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} at {address} is not to be had ({error}); choose another: --port N, or"
                " --port 0 for any that is free"
            ) from None

    @property
    def port(self) -> int:
        """The port that it listens on, where 0 was asked for too."""
        return int(self.server_address[1])

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser may put into the header Host; another name that leads here is refused."""
        names = [str(self.server_address[0])]
        if names[0] == "127.0.0.1":
            names.append("localhost")
        bare = names if self.port == (443 if self.tls else 80) else []  # browsers leave it out
        return (*(f"{name}:{self.port}" for name in names), *bare)

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.hosts[0]}/?token={self.keeper.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hands a connection to a thread of its own, or closes it where too many are open."""
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one request within the time limits; nobody waits for another handshake."""
        connection: list[socket.socket] = [request]  # what is cut: TLS takes the first one's place
        clock = threading.Timer(REQUEST_SECONDS, _cut, (connection,))
        clock.daemon = True
        clock.start()
        try:
            request.settimeout(SEND_SECONDS)
            if self.tls is not None:
                request = self.tls.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                connection[0] = request
                request.do_handshake()
            Handler(request, client_address, self, clock)
        except (OSError, ValueError):
            pass  # the client went, or spoke no TLS: nobody is left to be told
        except Exception:  # our own bug
            self.handle_error(request, client_address)
        finally:
            clock.cancel()
            self.shutdown_request(request)
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells which error it was, without what the client sent."""
        kind = sys.exc_info()[0]
        print(f"internal error while answering: {kind.__name__ if kind else ''}", file=sys.stderr)


def _cut(connection: list[socket.socket]) -> None:
    """Ends a connection whose request takes too long; its thread sees the end of the stream."""
    try:
        # The socket's own: that of TLS would also drop the keys, which the thread is using.
        socket.socket.shutdown(connection[0], socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself


class Handler(BaseHTTPRequestHandler):
    """One request: the host, then the token, then the file or the post; then the end."""

    server: Server
    protocol_version = "HTTP/1.0"
    server_version = "edgeport"
    sys_version = ""

    def __init__(
        self, request: Any, client_address: Any, server: Server, clock: threading.Timer
    ) -> None:
        self.clock, self.cookie = clock, ""
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        """Sends a file of the site."""
        self.clock.cancel()
        path = self._admitted_path()
        if path is None:
            return
        entry = self.server.keeper.site.find(unquote(path))
        file = None if entry is None else entry.open()
        if entry is None:
            self._say(HTTPStatus.NOT_FOUND, "no such file in this export")
        elif file is None:
            self._say(HTTPStatus.CONFLICT, "the export was made anew: start edgeport serve again")
        else:
            with file:
                self._head(HTTPStatus.OK, entry.content_type, entry.identity[2])
                if self.command != "HEAD":
                    shutil.copyfileobj(file, self.wfile)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Takes results."""
        path = self._admitted_path()
        if path is not None:
            refused = self._refusal(path)
            if refused is None:
                return self._take(int(self.headers["Content-Length"]))
            self._say(*refused)
        return self._drain()

    def _refusal(self, path: str) -> tuple[HTTPStatus, str] | None:
        """Returns why a post is not even read; None where it is."""
        if path != "/results":
            return HTTPStatus.NOT_FOUND, "results are posted to /results"
        origin = self.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] not in self.server.hosts:
            return HTTPStatus.FORBIDDEN, "another page's results are not taken"
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing"
        if len(length) > 9 or int(length) > MAX_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"results take at most {MAX_BYTES} bytes"
        if not self.server.keeper.may_post():
            return HTTPStatus.TOO_MANY_REQUESTS, "too many results: wait a minute"
        return None

    def _drain(self) -> None:
        """Reads what a refused client is still sending: it looks for the answer after that only."""
        self.connection.settimeout(1.0)
        left = 4 * MAX_BYTES
        while left > 0 and (piece := self.rfile.read1(1 << 16)):
            left -= len(piece)

    def _take(self, length: int) -> None:
        body = self.rfile.read(length)
        self.clock.cancel()
        if len(body) < length:
            return self._say(HTTPStatus.BAD_REQUEST, "the results were cut off")
        from_here = provenance_of(str(self.client_address[0])) == "host"
        try:
            told = self.server.keeper.take(body, self.headers.get("User-Agent", ""), from_here)
        except InputError as error:
            return self._say(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return self._say(HTTPStatus.INSUFFICIENT_STORAGE, f"not kept: {error.strerror}")
        return self._say(HTTPStatus.OK, told)

    def _admitted_path(self) -> str | None:
        """Returns the path asked for; where host or token are wrong, answers with one line."""
        try:
            target = urlsplit(self.path)
            asked = parse_qs(target.query).get("token", [""])[0]
        except ValueError:
            self._say(HTTPStatus.BAD_REQUEST, "the address cannot be read")
            return None
        if self.headers.get("Host", "") not in self.server.hosts:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
            return None
        if self.server.keeper.knows(asked):
            self.cookie = asked
        elif not self.server.keeper.knows(self._cookie()):
            self._say(HTTPStatus.FORBIDDEN, "open the whole address that edgeport serve printed")
            return None
        return target.path

    @property
    def _cookie_name(self) -> str:
        """A name with the port in it: cookies are shared by all servers of one host."""
        return f"edgeport_{self.server.port}"

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie_name)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _say(self, status: HTTPStatus, line: str) -> None:
        content = f"{line}\n".encode()
        self._head(status, "text/plain; charset=utf-8", len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, content_type: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self.cookie:
            secure = "; Secure" if self.server.tls else ""
            self.send_header(
                "Set-Cookie",
                f"{self._cookie_name}={self.cookie}; Path=/; HttpOnly; SameSite=Strict{secure}",
            )
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the line of a request has the token in it."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what is no request that we take with one line, and none of what was sent."""
        status = HTTPStatus(code)
        self.command = self.command or ""
        self._say(status, status.phrase.lower())
