"""`edgeport compare DIR`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import limit_options, limits_of
from edgeport.descriptors import redirected

if TYPE_CHECKING:
    from rich.table import Table

    from edgeport.parities import Distance, Parity


@click.command("compare")
@click.argument("directory", type=click.Path(path_type=Path))
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
@click.pass_context
def compare(
    ctx: click.Context,
    directory: Path,
    timeout: float,
    memory: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run every stage of the export in DIRECTORY again, and show how far each is from torch.

    The second reference is the stage's own ONNX graph, node by node on this machine. A file that
    was replaced since the export is run as it is now. Exit code 3 where something could not run.
    """
    from edgeport.parities import compare_stages

    limits = limits_of(timeout, memory)
    with show_progress() as progress, redirected(1, 2):
        found = compare_stages(directory, limits=limits, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        from rich.console import Console

        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        console.print(_table(found.rows))
        for row in found.rows:
            if row.problem:
                click.echo(f"{row.stage} was not run: {row.problem}")
        for note in found.notes:
            click.echo(f"note: {note}")
    ctx.exit(0 if found.complete else 3)


def _table(rows: Sequence[Parity]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "file", "where", "output"):
        table.add_column(title, no_wrap=True)
    for whose in ("torch", "graph"):
        for title in (f"{whose}: SQNR dB", "max-abs", "cosine"):
            table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        numbers = (*_numbers(row.torch), *_numbers(row.graph))
        where = row.provenance or "not run"
        table.add_row(row.stage, row.file, where, row.output or "-", *numbers)
    return table


def _numbers(one: Distance | None) -> tuple[str, str, str]:
    if one is None:
        return "-", "-", "-"
    sqnr = "exact" if one.sqnr_db == float("inf") else f"{one.sqnr_db:.1f}"
    return sqnr, f"{one.max_abs:.3g}", f"{one.cosine:.6f}"
