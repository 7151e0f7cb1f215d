"""The `edgeport` command: parse, call, print, exit code. The only package that imports click."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

import edgeport
from edgeport.cli.bench import bench
from edgeport.cli.bisect import bisect
from edgeport.cli.check import check
from edgeport.cli.compare import compare
from edgeport.cli.doctor import doctor
from edgeport.cli.evaluate import evaluate
from edgeport.cli.export import export
from edgeport.cli.listing import list_things
from edgeport.cli.passes import passes
from edgeport.cli.report import write_report
from edgeport.cli.reproduce import reproduce
from edgeport.cli.run import run
from edgeport.cli.sensitivity import sensitivity
from edgeport.cli.serve import serve
from edgeport.errors import EdgeportError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeport.__version__)
def cli() -> None:
    """Take PyTorch and ONNX models to phones, with proof at every step."""


cli.add_command(export)
cli.add_command(doctor)
cli.add_command(list_things)
cli.add_command(passes)
cli.add_command(reproduce)
cli.add_command(compare)
cli.add_command(bisect)
cli.add_command(run)
cli.add_command(bench)
cli.add_command(check)
cli.add_command(sensitivity)
cli.add_command(evaluate)
cli.add_command(write_report)
cli.add_command(serve)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and exits: 0 held, 1 a gate failed, 2 bad input, 3 a stage failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = "-v" in arguments or "--verbose" in arguments
    with _unwound():
        code = _run(arguments, verbose)
    sys.exit(code)


class _Terminated(KeyboardInterrupt):
    """Raised where a signal asks the command to end; nothing else catches this either."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def _unwound() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP exceptions: child processes and temporary files go first."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one must not break the cleaning up
        raise _Terminated(number)

    changed = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL  # nohup ignores one: leave it so
        and threading.current_thread() is threading.main_thread()  # others may set no handler
    ]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: list[str], verbose: bool) -> int:
    try:
        # click gives the code of its Exit, with which a gate ends, or what the command returned.
        code = cli.main(arguments, prog_name="edgeport", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2, verbose)
    except EdgeportError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return _fail(f"{error}{notes}", error.exit_code, verbose)
    except (KeyboardInterrupt, click.Abort) as error:
        ended = error.__cause__ or error  # click makes an Abort of every KeyboardInterrupt
        if isinstance(ended, _Terminated):
            return _fail(str(ended), ended.exit_code, False)
        return _fail("interrupted", 130, False)
    except SystemExit:  # click's end of `edgeport list | head`: the reader has what it wanted
        return 0
    except MemoryError:
        return _fail("out of memory: smaller inputs or fewer --parity-samples", 3, verbose)
    except Exception as error:  # our own bug: still one line, and how to see more
        kind = type(error).__name__
        return _fail(
            f"internal error, {kind}: {error}; run again with -v and report it", 3, verbose
        )


def _fail(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
