"""The user's AI Hub account, and Qualcomm's own client: opened quietly, its errors translated.

The account is what `qai-hub configure` writes: ~/.qai_hub/client.ini, or the file that the
environment variable QAIHUB_CLIENT_INI names. The token goes to the client and nowhere else.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import io
import logging
import os
import socket
import sys
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeport.errors import EdgeportError, InputError
from edgeport.places.hub_failures import translated

INSTALL = 'pip install "edgeport[hub]"'
_INI_VARIABLE, _INI = "QAIHUB_CLIENT_INI", "~/.qai_hub/client.ini"
_CONNECT_SECONDS = 5.0  # the client itself would try a dead server for 48 s
_WITHOUT = (
    "without an account, `edgeport run DIR --on local` runs the files here, an NPU's in Qualcomm's"
    " emulator, and `edgeport doctor` says where each op lands"
)
_CONFIGURE = "`qai-hub configure --api_token TOKEN`"


@dataclass(frozen=True)
class Account:
    """Where AI Hub is, and the token that opens it; the token is in no repr."""

    api_url: str
    web_url: str
    token: str = field(repr=False)
    project: str | None
    file: Path

    @property
    def host(self) -> str:
        """The name or address of the machine that the jobs go to."""
        return urlsplit(self.api_url).hostname or ""

    @property
    def port(self) -> int:
        """The port there."""
        return urlsplit(self.api_url).port or (80 if self.api_url.startswith("http:") else 443)


def check_client() -> None:
    """Raises InputError with the install line where Qualcomm's client is missing."""
    if importlib.util.find_spec("qai_hub") is None:
        raise InputError(f"--on hub needs qai-hub: {INSTALL}")


def read_account() -> Account:
    """Returns the user's account; raises InputError where there is none or it is incomplete."""
    file = Path(os.environ.get(_INI_VARIABLE) or _INI).expanduser()
    if not file.is_file():
        raise InputError(
            f"--on hub needs an AI Hub token and {file} is not there: {_CONFIGURE} writes it, with"
            f" the token of your account page at aihub.qualcomm.com; {_WITHOUT}"
        )
    parser = configparser.ConfigParser()
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        section = dict(parser["api"]) if parser.has_section("api") else {}
    except (configparser.Error, UnicodeDecodeError, OSError):
        # Neither its message nor the error itself is passed on: both quote the line at fault.
        raise InputError(f"{file} is no readable ini file: {_CONFIGURE} writes it anew") from None
    for key in ("api_url", "web_url", "api_token"):
        if not section.get(key, "").strip():
            raise InputError(f"{file} has no {key} under [api]: {_CONFIGURE} writes it anew")
    api_url = section["api_url"].strip()
    if not _is_url(api_url):
        raise InputError(f"{file}: api_url is no http(s) URL: {_CONFIGURE} writes it")
    token, project = section["api_token"].strip(), section.get("default_project") or None
    return Account(api_url, section["web_url"].strip(), token, project, file)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # A user's name or password there would get into the journal.
        bare = bool(parts.hostname) and parts.username is None and parts.port != 0
        return parts.scheme in ("http", "https") and bare
    except ValueError:  # a port that is no number
        return False


def check_reachable(account: Account) -> None:
    """Raises InputError where nothing answers at the account's address, or at its proxy's."""
    host, port = _first_hop(account)
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(
            f"AI Hub does not answer at {host}:{port} ({reason.lower()}): check the network and"
            f" api_url in {account.file}; {_WITHOUT}"
        ) from None


def _first_hop(account: Account) -> tuple[str, int]:
    """Returns where a connection goes first: to the proxy that the environment names, if any."""
    scheme = urlsplit(account.api_url).scheme
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(account.host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        if parts.hostname:
            return parts.hostname, parts.port or 80
    return account.host, account.port


@contextlib.contextmanager
def open_client(account: Account) -> Iterator[Any]:
    """Yields a `qai_hub.Client` that prints and logs nothing.

    Raises our own errors in place of the client's, without the token in any of them.
    """
    try:
        with _quiet():
            import qai_hub

            yield qai_hub.Client(
                config=qai_hub.ClientConfig(
                    api_token=account.token,
                    api_url=account.api_url,
                    web_url=account.web_url,
                    default_project=account.project,
                )
            )
    except EdgeportError as error:
        _redact(error, account.token)
        raise
    except Exception as error:  # the client's own, requests', botocore's and urllib3's classes
        if not _from_client(error):
            raise
        told = translated(error, account.api_url, account.web_url, account.file)
        _redact(told, account.token)
        raise told from (None if account.token in _chain_text(error) else error)


def _from_client(error: BaseException) -> bool:
    """Returns whether the error was raised below the client; others are bugs of our own."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(f.f_globals.get("__name__")).partition(".")[0] == "qai_hub" for f in frames)


def _redact(error: EdgeportError, token: str) -> None:
    """Takes the token out of an error's text: a server may quote what it was sent."""
    error.args = tuple(str(part).replace(token, "***") for part in error.args)


def _chain_text(error: BaseException) -> str:
    """Returns what a traceback of the error would show, its causes included."""
    return "".join(traceback.format_exception(error))


def aloud(progress: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `progress` so that it still reaches today's stdout where `open_client` holds it."""
    stdout = sys.stdout

    def tell(step: str) -> None:
        with contextlib.redirect_stdout(stdout):
            progress(step)

    return tell


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the client prints and logs from the user."""
    loggers = [logging.getLogger(name) for name in ("urllib3", "botocore", "backoff")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # one line per retry; the last one is an exception
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
