"""`edgeport evaluate DIR --data D --metric M`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import limit_options, limits_of
from edgeport.descriptors import redirected

if TYPE_CHECKING:
    from rich.table import Table

    from edgeport.evaluate import Evaluation, StageScore


@click.command("evaluate")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="An .npz with an array for each input, samples on the first axis, and targets beside them;"
    " or a folder with one sub-folder of images per class (target: label).",
)
@click.option(
    "--metric",
    required=True,
    help="top1 | top5 | file.py:function | package.module:function, called as"
    " metric(outputs, targets).",
)
@click.option(
    "--stages",
    help="Comma-separated: capture, passes, passes-gpu, quantize, a runtime's name. Default: all.",
)
@click.option("--limit", type=int, help="Most samples, spread evenly over the data.")
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    directory: Path,
    data: Path,
    metric: str,
    stages: str | None,
    limit: int | None,
    timeout: float,
    memory: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what each stage of the export in DIRECTORY scores on your own data and metric.

    A metric takes two dicts of arrays, outputs and targets of all samples, and gives a number, an
    array of one score per sample (then the value has a 95 % interval), or a dict of such. Images
    are resized as calibration images are, and in 0..1. The emulator of an NPU is slow: see --stages
    and --limit. Exit code 3 where something could not run.
    """
    from edgeport.evaluate import evaluate as run

    names = [name.strip() for name in stages.split(",")] if stages else []
    limits = limits_of(timeout, memory)
    with show_progress() as progress, redirected(1, 2):
        found = run(
            directory,
            data=data,
            metric=metric,
            stages=names,
            limit=limit,
            limits=limits,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        _show(found)
    ctx.exit(0 if found.complete else 3)


def _show(found: Evaluation) -> None:
    from rich.console import Console

    batch = f" in batches of {found.batch}" if found.batch > 1 else ""
    click.echo(f"{found.metric} on {found.samples} samples of {found.data}{batch}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(_table(found))
    if found.reference:
        click.echo(f"drop is against {found.reference}; intervals are of 95 % (bootstrap)")
    for row in found.rows:
        if row.problem:
            click.echo(f"{row.stage} was not run: {row.problem}")
    for line in (*found.notes, *_warnings(found)):
        click.echo(f"note: {line}")


def _warnings(found: Evaluation) -> list[str]:
    """Returns what the measurements say about themselves, each sentence once."""
    said: dict[str, list[str]] = {}
    for one in found.measurements:
        for text in one.warnings:
            said.setdefault(text, []).append(one.metric)
    return [f"{', '.join(metrics)}: {text}" for text, metrics in said.items()]


def _table(found: Evaluation) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "file", "where", "metric"):
        table.add_column(title, no_wrap=True)
    for title in ("value", "interval", "drop", "interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows:
        one = row.measurement
        where = one.provenance if one is not None else "not run"
        table.add_row(row.stage, row.file, where, row.metric or "-", *_numbers(row))
    return table


def _numbers(row: StageScore) -> tuple[str, str, str, str]:
    one = row.measurement
    if one is None:
        return "-", "-", "-", "-"
    unit = one.unit
    return (
        _number(one.value, unit),
        _interval(one.interval, unit),
        "-" if row.drop is None else _number(row.drop, unit),
        _interval(row.drop_interval, unit),
    )


def _number(value: float, unit: str) -> str:
    return f"{value * 100:.2f} %" if unit == "fraction" else f"{value:.4g}"


def _interval(ends: tuple[float, float] | None, unit: str) -> str:
    if ends is None:
        return "-"
    return " to ".join(_number(end, unit) for end in ends)
