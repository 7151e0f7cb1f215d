"""The options of a command that ends in verdicts, and what they write.

@click.command("check")
@output_options
def check(strict, **outputs):
    verdicts = ...
    raise click.exceptions.Exit(show_verdicts(verdicts, strict=strict, **outputs))
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from edgeport.cli.options import Function
from edgeport.types import Verdict

_FILE = click.Path(dir_okay=False, path_type=Path)


_OPTIONS = (
    click.option(
        "--strict", is_flag=True, help="Missing and inconclusive verdicts fail the gate too."
    ),
    click.option("--junit", type=_FILE, help="Write the verdicts as JUnit XML."),
    click.option("--sarif", type=_FILE, help="Write what did not hold as SARIF 2.1.0."),
    click.option("--markdown", type=_FILE, help="Write the verdicts as a markdown table."),
    click.option(
        "--github",
        is_flag=True,
        help="Print GitHub annotations, and append the markdown to $GITHUB_STEP_SUMMARY.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
)


def output_options(command: Function) -> Function:
    """Adds --strict and the formats; `show_verdicts` takes what they give."""
    for option in reversed(_OPTIONS):  # the first is shown first
        command = option(command)
    return command


def show_verdicts(
    verdicts: Sequence[Verdict],
    *,
    strict: bool,
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    github: bool,
    as_json: bool,
    places: Mapping[str, Path | str] | None = None,
) -> int:
    """Prints the verdicts, writes the files that were asked for, and returns the exit code.

    `places` maps a subject to the file that declares it. With `as_json` the annotations go to
    stderr, which a GitHub runner reads as well.
    """
    from edgeport.verdicts import exit_code, to_json, write_outputs

    if as_json:
        click.echo(to_json(verdicts, strict=strict))
    else:
        _print(verdicts, strict)
    write_outputs(
        verdicts,
        junit=junit,
        sarif=sarif,
        markdown=markdown,
        github=github,
        strict=strict,
        places=places,
        stream=sys.stderr if as_json else sys.stdout,
    )
    return exit_code(verdicts, strict)


def _print(verdicts: Sequence[Verdict], strict: bool) -> None:
    from rich.console import Console

    from edgeport.verdicts import reason_lines, table

    # Wide enough that a table in a pipe or a log file is never cut.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if verdicts:
        console.print(table(verdicts))
    for line in reason_lines(verdicts, strict):
        click.echo(line)
