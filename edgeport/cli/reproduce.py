"""`edgeport reproduce DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeport.cli.export import show_progress
from edgeport.descriptors import redirected

if TYPE_CHECKING:
    from edgeport.reproduce import Reproduction

_FIELDS_SHOWN = 8


@click.command("reproduce")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--source", help="The model, where it lies elsewhere than the manifest says.")
@click.option("--weights", help="Its weights, likewise.")
@click.option("--calib-data", help="The calibration data, likewise.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Every entry that differs; traceback.")
def reproduce(directory: Path, as_json: bool, verbose: bool, **given: str | None) -> None:
    """Export again what is in DIRECTORY, without the cache, and say which files differ.

    Paths in its manifest are relative to the current directory. Exits with 1 where a file or an
    entry of the manifest differs.
    """
    from edgeport.reproduce import reproduce as run

    overrides = {name: value for name, value in given.items() if value is not None}
    with show_progress() as progress, redirected(1, 2):
        found = run(directory, overrides=overrides, progress=progress)
    if as_json:
        document = {"same": found.same, "since": found.since, **found.to_dict()}
        click.echo(json.dumps(document, indent=2))
    else:
        _show(found, verbose)
    if not found.same:
        raise click.exceptions.Exit(1)


def _show(found: Reproduction, verbose: bool) -> None:
    for one in found.files:
        verdict = "same" if one.same else "DIFFERS"
        edited = "  (the file here was changed after it was written)" if one.edited else ""
        click.echo(f"{verdict:8} {one.stage:26} {one.file}{edited}")
    for cause in found.causes:
        click.echo(f"cause: {cause}")
    shown = found.fields if verbose else found.fields[:_FIELDS_SHOWN]
    for field in shown:
        click.echo(f"manifest: {field} differs")
    if more := len(found.fields) - len(shown):
        click.echo(f"manifest: and {more} more (-v)")
    if found.same:
        click.echo(f"reproduced: {len(found.files)} files with the same bytes")
    elif found.since:
        click.echo(f"not reproduced: files differ since the stage {found.since}")
    else:
        click.echo("not reproduced: the export here is not what its manifest says")
