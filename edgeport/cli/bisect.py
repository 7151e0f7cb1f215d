"""`edgeport bisect DIR`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import limit_options, limits_of
from edgeport.descriptors import redirected

if TYPE_CHECKING:
    from edgeport.bisect import Bisected, Bisection

FLOAT16_MAX = 65504.0
_VERDICTS = {
    "culprit": "this operator alone loses it",
    "together": "alone it is right: it is wrong only with the operators before it",
    "accumulated": "alone it is right: the noise of the operators before it adds up",
}


@click.command("bisect")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--stage",
    help="capture | passes | passes-gpu | quantize | a runtime's name. Default: the first that"
    " misses.",
)
@click.option(
    "--min-sqnr",
    type=float,
    help="dB that a tensor must hold. Default: 80 in float32; quantized and fp16 what the recipe"
    " or the export asked for, else 20 (8-bit activations) or 30 dB.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The weights that the source was exported with, for torch's values.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Where the part that shows it is written. Default: DIRECTORY.bisect.",
)
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
@click.pass_context
def bisect(
    ctx: click.Context,
    directory: Path,
    stage: str | None,
    min_sqnr: float | None,
    weights: Path | None,
    output_dir: Path | None,
    timeout: float,
    memory: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find the first tensor at which a stage of the export in DIRECTORY parts from the one before.

    Exit code 1 where a stage misses its limit or an operator is wrong, 0 where all hold, 3 where
    they do and one could not run. A file that was replaced since the export is taken as it is now.
    """
    from edgeport.bisect import bisect as find

    limits = limits_of(timeout, memory)
    with show_progress() as progress, redirected(1, 2):
        result = find(
            directory,
            stage=stage,
            min_sqnr=min_sqnr,
            output_dir=output_dir,
            weights=weights,
            limits=limits,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    else:
        for line in _lines(result):
            click.echo(line)
    ctx.exit(1 if result.found else 0 if result.complete else 3)


def _lines(result: Bisected) -> Iterator[str]:
    for note in result.notes:
        yield f"note: {note}"
    for name, found_db, limit_db in result.checked:
        verdict = "holds" if found_db >= limit_db else "misses"
        yield f"{name}: {_decibels(found_db)}, {verdict} {limit_db:.0f} dB"
    if result.found is not None:
        yield from _found(result.found)
    elif result.checked:
        name, lowest, _ = min(result.checked, key=lambda one: one[1])
        yield f"nothing parts; the lowest SQNR is {_decibels(lowest)}, at {name}"
    if result.written:
        yield f"wrote {result.written}: repro.onnx with its inputs and the answer it should give"


def _found(found: Bisection) -> Iterator[str]:
    yield (
        f"{found.stage}: {found.file} against {found.against} ({found.provenance}), output"
        f" {found.output}"
    )
    runs = f"{found.runs} runs, {found.articulations} tensors at which the graph can be cut"
    if not found.tensor:
        yield (
            f"no tensor parts ({runs}): compiled again, the graph holds {found.limit_db:.0f} dB"
            f" (lowest {_decibels(found.lowest_db)}); the export's own file is another: export"
            " again"
        )
        return
    yield f"  tensor    {found.tensor}"
    yield f"  operator  {found.operator} {found.node}"
    if len(found.operators) > 1:
        yield f"  one of    {_listed(found.operators)}"
    if found.origin is not None:
        near = f" (known of {found.near}, near it)" if found.near else ""
        yield f"  module    {found.origin}{near}"
    before = f"at {found.before}" if found.before else "at the inputs"
    yield (
        f"  SQNR      {_decibels(found.before_db)} {before} -> {_decibels(found.after_db)} at"
        f" {found.after}"
    )
    yield f"  alone     {_decibels(found.local_db)}: {_VERDICTS[found.verdict]}"
    if found.computed == "fp16" and found.peak > FLOAT16_MAX:
        yield f"  peak      {found.peak:.3g}: fp16 ends at {FLOAT16_MAX:.0f}"
    if found.refused:
        yield f"  refused   {len(found.refused)} parts could not be run, as: {found.refused[0]}"
    if not found.missed:
        yield f"  output    holds {found.limit_db:.0f} dB all the same"
    elif found.missed != found.after:
        yield f"  missed    {found.limit_db:.0f} dB is first missed at {found.missed}"
    yield f"  searched  {runs}"
    if found.verdict == "accumulated" and found.stage == "quantize":
        yield "  next      --precision auto gives the worst layers more bits; edgeport sensitivity"


def _decibels(value: float) -> str:
    """Returns an SQNR in words: identical arrays have an infinite one."""
    return "exact" if value == float("inf") else f"{value:.1f} dB"


def _listed(operators: Sequence[str]) -> str:
    """Returns operators between which the stage before has no tensor to compare with."""
    more = f" and {len(operators) - 6} more" if len(operators) > 6 else ""
    return f"{', '.join(operators[:6])}{more}"
