"""`edgeport export SOURCE`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgeport.cli.options import (
    SourceCommand,
    make_request,
    quantization_options,
    source_options,
    target_options,
)
from edgeport.descriptors import redirected


@click.command("export", cls=SourceCommand)
@source_options
@target_options
@quantization_options
@click.option(
    "--min-sqnr",
    type=float,
    help="dB that the outputs must hold: layers get more bits until they do. auto: 35.",
)
@click.option("--target-runtime", help="Runtimes, comma-separated; default: all the device takes.")
@click.option(
    "--parity-samples", default=1, show_default=True, help="Inputs compared at each stage."
)
@click.option(
    "--channel-last-input",
    multiple=True,
    help="Name of an input that the app gives with channels last; the graph turns it.",
)
@click.option(
    "--normalize",
    help="MEAN,STD of images, or all means and then all stds; the app gives 0..1.",
)
@click.option(
    "--on",
    default="",
    help="Run what was made there too: hub | ssh://user@host | adb:SERIAL (edgeport run --help).",
)
@click.option(
    "--quantize-io", is_flag=True, help="Integer inputs and outputs; scales are in DEPLOY.md."
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory to write; replaced whole when it is an earlier export.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything that can be, and say what would run."
)
@click.option("-v", "--verbose", is_flag=True, help="Placement of each node; traceback on failure.")
def export(
    source: str,
    target_runtime: str | None,
    as_json: bool,
    dry_run: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Export SOURCE for a device and compare every stage with the reference.

    SOURCE is a recipe's name, model.onnx, model.pt2, path/to/file.py:factory,
    package.module:factory, timm:NAME, hf:TYPE[,key=value...] or hf:DIRECTORY. A factory is a
    function or class that gives a torch.nn.Module.
    """
    request = make_request(source, flags)
    names = target_runtime.split(",") if target_runtime else ()
    request["target_runtimes"] = [name.strip() for name in names]
    if dry_run:
        _show_plan(request, as_json)
    else:
        _run(request, as_json, verbose)


def _show_plan(request: Mapping[str, Any], as_json: bool) -> None:
    """Prints what would run; the place too is asked whether it could."""
    from edgeport.places import find_place
    from edgeport.plan import make_plan

    plan = make_plan(**{name: value for name, value in request.items() if name != "on"})
    place = find_place(request["on"]) if request["on"] else None
    if place is not None:
        place.check(plan.runtimes)
    if as_json:
        click.echo(json.dumps(plan.describe(), indent=2))
        return
    stages = ["capture", "passes", *(["quantize"] if plan.quantization else []), "lower", "run"]
    if plan.written:
        stages = ["write", "run"]
    what = _source_text(plan.source.describe())
    click.echo(f"{what} -> {plan.device.name} ({plan.device.chipset}), {plan.precision}")
    click.echo(f"runtimes: {', '.join(plan.runtimes)}; stages: {', '.join(stages)}")
    there = f" and run it on {place.text}" if place is not None else ""
    click.echo(f"would write {plan.output_dir}{there}; nothing was run")


def _source_text(source: Mapping[str, Any]) -> str:
    """Returns the source in words: its name, its variant, its inputs."""
    variant = f" {source['variant']}" if source["variant"] else ""
    inputs = f" {', '.join(source['inputs'])}" if source["inputs"] else ""
    return f"{source['name']}{variant}{inputs}"


def _run(request: Mapping[str, Any], as_json: bool, verbose: bool) -> None:
    from edgeport import pipeline, report

    started = time.monotonic()
    # stdout is for the result alone, whatever a model's code or a library prints.
    with show_progress() as progress, redirected(1, 2):
        result = pipeline.export(**request, progress=progress)
    seconds = time.monotonic() - started
    if as_json:
        click.echo(json.dumps(dict(result.manifest), indent=2, allow_nan=False))
        return
    from rich.console import Console

    # Wide enough that a table in a pipe or a log file is never cut.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(report.stage_table(result.artifacts))
    for line in report.summary_lines(result.manifest):
        click.echo(line)
    if verbose:
        for artifact in result.artifacts:
            for node in artifact.nodes:
                click.echo(f"  {node.unit}  {node.op:24} {node.node}")
    steps = f"{result.cached_steps} of {result.steps} steps from the cache"
    click.echo(f"wrote {result.directory} in {seconds:.1f} s ({steps})")


@contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the running step on stderr; nothing when it is no terminal."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda step: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda step: status.update(step)
