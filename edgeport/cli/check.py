"""`edgeport check [RECIPES]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeport.cli.export import show_progress
from edgeport.cli.outputs import output_options, show_verdicts
from edgeport.descriptors import redirected


@click.command("check")
@click.argument("recipes", nargs=-1)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Numbers to hold; default: ./edgeport-baseline.jsonl, in edgeport's own checkout"
    " benchmarks/baseline.jsonl.",
)
@click.option("--update-baseline", "update", is_flag=True, help="Write the numbers of now there.")
@click.option("--why", default="", help="The reason for the new numbers, kept beside them.")
@click.option("--fresh", is_flag=True, help="Measure times again that are in the cache.")
@click.option(
    "--seconds", default=60.0, show_default=True, help="Most time for one comparison of speeds."
)
@output_options
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    recipes: tuple[str, ...],
    baseline: Path | None,
    update: bool,
    why: str,
    fresh: bool,
    seconds: float,
    verbose: bool,
    **outputs: Any,
) -> None:
    """Judge the claims of RECIPES and hold their numbers against the baseline.

    Without names: the recipes and [[claim]] tables of edgeport.toml; edgeport's own recipes where
    it has neither. Exit code 1 where a claim fails or a number became worse, and where nothing
    could be judged at all. What is missing or inconclusive is printed and is no pass; with --strict
    it fails too.
    """
    from edgeport.baseline import default_baseline
    from edgeport.check import check as run_check

    file = baseline or default_baseline()
    with show_progress() as progress, redirected(1, 2):
        found = run_check(
            recipes,
            baseline=file,
            update=update,
            why=why,
            fresh=fresh,
            seconds=seconds,
            progress=progress,
        )
    code = show_verdicts(found.verdicts, places=found.files, **outputs)
    if not outputs["as_json"]:
        if update:
            click.echo(found.diff or f"{file}: nothing changed")
        elif found.new:
            click.echo(f"{found.new} numbers are not in {file}: --update-baseline --why adds them")
    ctx.exit(code)
