"""`edgeport bench A [B ...]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import limit_options, limits_of
from edgeport.descriptors import redirected
from edgeport.errors import InputError

if TYPE_CHECKING:
    from edgeport.benchmarking import Benchmark


@click.command("bench")
@click.argument("subjects", nargs=-1, required=True)
@click.option(
    "--on", default="local", show_default=True, help="local | ssh://user@host | adb:SERIAL."
)
@click.option(
    "--target-runtime",
    "runtime",
    help="Which runtime's files; default: onnx, or the export's first.",
)
@click.option("--device", help="What recipes and models are exported for.")
@click.option("--precision", help="Of what has to be exported; default: float.")
@click.option(
    "--input", "inputs", multiple=True, help="name:float32[1,3,32,32], of what has to be exported."
)
@click.option(
    "--calib-data", type=click.Path(path_type=Path), help="Calibrates what has to be exported."
)
@click.option("--threads", type=int, default=0, help="Of each runtime; default: one a core.")
@click.option("--cores", help="Logical cores to run on, as 4-7 or 0,1; default: all.")
@click.option("--seconds", default=60.0, show_default=True, help="Time to stop at, at the latest.")
@click.option(
    "--blocks", default=8, show_default=True, help="Starts of every process, at the least."
)
@click.option(
    "--cool-down", type=float, help="Seconds of rest between blocks; default: 0, on a device 10."
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights and inputs.")
@click.option(
    "--samples-out",
    type=click.Path(path_type=Path),
    help="Every call's time as CSV: arm,block,turn,ms.",
)
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
def bench(
    subjects: tuple[str, ...],
    on: str,
    cores: str | None,
    threads: int,
    seconds: float,
    blocks: int,
    cool_down: float | None,
    samples_out: Path | None,
    timeout: float,
    memory: float,
    as_json: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Time SUBJECTS against the first of them, interleaved, with the noise floor of this machine.

    A subject is a directory of `edgeport export`, a .onnx or .tflite file as it is, a recipe or
    one of its variants (padre:attention), or any other model that `edgeport export` takes.

    The first runs twice: what it differs from itself is the noise floor. A difference inside it is
    inconclusive, which is a verdict of its own.
    """
    from edgeport.benchmarking import run_benchmark

    options = {name: value for name, value in flags.items() if value}
    with show_progress() as progress, redirected(1, 2):
        found = run_benchmark(
            subjects,
            on=on,
            threads=threads,
            cores=parse_cores(cores),
            seconds=seconds,
            blocks=blocks,
            cool_down=cool_down,
            samples_out=samples_out,
            limits=limits_of(timeout, memory),
            progress=progress,
            **options,
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        _show(found)


def parse_cores(text: str | None) -> tuple[int, ...]:
    """Returns the cores that "0,2,4-7" means, () for none; raises InputError for another text."""
    cores: list[int] = []
    for part in (text or "").split(",") if text else ():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"--cores {text}: give numbers and ranges, as 4-7 or 0,1")
        cores.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(cores))


def _show(found: Benchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for line in found.conditions():
        click.echo(line)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", overflow="fold")
    for title in ("runtime", "computed"):
        table.add_column(title, no_wrap=True)
    for title in ("cold ms", "load", "first", "p50", "p90", "p99", "peak MB", "size MB", "where"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    for line in found.verdicts():
        click.echo(line)
