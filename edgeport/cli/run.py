"""`edgeport run DIR --on PLACE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import limit_options, limits_of
from edgeport.descriptors import redirected


@click.command("run")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--on",
    default="local",
    show_default=True,
    help="Where: local | hub (Qualcomm AI Hub; hub:quantize lets it quantize) | ssh://user@host |"
    " adb:SERIAL.",
)
@click.option("--target-runtime", help="Runtimes, comma-separated; default: all the export has.")
@click.option("--keep", is_flag=True, help="Leave the files on the board or phone.")
@click.option(
    "--calib-data",
    type=click.Path(path_type=Path),
    help="hub:quantize: what the export was calibrated on, where it was given any.",
)
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
def run(
    directory: Path,
    on: str,
    target_runtime: str | None,
    keep: bool,
    calib_data: Path | None,
    timeout: float,
    memory: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run the files of an export in DIRECTORY at a place, and compare them with the reference.

    What comes of it, latency included where a device was timed, is added to its manifest.

    ssh and adb take settings behind a ?, separated by &: python=PATH is the interpreter on the
    board, threads=N, tmp=PATH where its directory is made; with adb benchmark_model=PATH or
    qnn_net_run=PATH is a tool that runs the files in place of Python. ssh uses ~/.ssh/config, or
    the file that EDGEPORT_SSH_CONFIG names.
    """
    from edgeport.places import find_place
    from edgeport.running import run_at

    names = [name.strip() for name in target_runtime.split(",")] if target_runtime else []
    limits = limits_of(timeout, memory)
    with show_progress() as progress, redirected(1, 2):
        place = find_place(on)
        runs = run_at(
            directory,
            place,
            names,
            limits=limits,
            keep=keep,
            calib_data=calib_data,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in runs], indent=2, allow_nan=False))
        return
    from rich.console import Console

    from edgeport.report import place_lines, stage_table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(stage_table([one.artifact for one in runs]))
    for one in runs:
        for line in place_lines(one.to_dict()):
            click.echo(line)
