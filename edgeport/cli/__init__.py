"""The `edgeport` command: parse, call, print, exit code. The only package that imports click."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import click

import edgeport
from edgeport.cli.doctor import doctor
from edgeport.cli.export import export
from edgeport.cli.listing import list_things
from edgeport.cli.passes import passes
from edgeport.cli.sensitivity import sensitivity
from edgeport.errors import EdgeportError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeport.__version__)
def cli() -> None:
    """Take PyTorch and ONNX models to phones, with proof at every step."""


cli.add_command(export)
cli.add_command(doctor)
cli.add_command(list_things)
cli.add_command(passes)
cli.add_command(sensitivity)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and exits: 0 held, 1 a gate failed, 2 bad input, 3 a stage failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = "-v" in arguments or "--verbose" in arguments
    sys.exit(_run(arguments, verbose))


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
    except (KeyboardInterrupt, click.Abort):
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
