"""`edgeport report DIR...`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeport.cli.export import show_progress
from edgeport.descriptors import redirected
from edgeport.errors import InputError

if TYPE_CHECKING:
    from edgeport.layers import Layer


@click.command("report")
@click.argument(
    "directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The page, one file; it is replaced.",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="The same content as markdown, in FILE."
)
@click.option("--bench", type=click.Path(path_type=Path), help="What edgeport bench --json wrote.")
@click.option(
    "--verdicts", type=click.Path(path_type=Path), help="What edgeport check --json wrote."
)
@click.option(
    "--layers",
    "with_layers",
    is_flag=True,
    help="Time each layer on this machine's CPU now, and compare it with the float graph.",
)
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
def write_report(
    directories: tuple[Path, ...],
    output: Path,
    markdown: Path | None,
    bench: Path | None,
    verdicts: Path | None,
    with_layers: bool,
    verbose: bool,
) -> None:
    """Write one HTML page about the exports in DIR..., which needs no network and no other file.

    It shows what their manifests hold, and measures nothing but what --layers asks for.
    """
    from edgeport.page.data import gather_page
    from edgeport.page.html import html_page
    from edgeport.page.markdown import markdown_page
    from edgeport.page.tables import export_title, fit_sentence
    from edgeport.private import write_text_atomic

    targets = [output, *([markdown] if markdown else [])]
    _check_targets(targets, directories)
    with show_progress() as progress, redirected(1, 2):
        layers = partial(_measured_layers, progress) if with_layers else None
        data = gather_page(directories, bench=bench, verdicts=verdicts, layers=layers)
    texts = [html_page(data), *([markdown_page(data)] if markdown else [])]
    for target, text in zip(targets, texts, strict=True):
        try:
            write_text_atomic(target, text)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror}") from error
    for page in data.exports:
        click.echo(f"{export_title(page)}: {fit_sentence(page)}")
        for reason in page.reasons:
            click.echo(f"  {reason.what}: {reason.reason} ({reason.fits})")
    for note in data.notes:
        click.echo(f"note: {note}")
    for target, text in zip(targets, texts, strict=True):
        click.echo(f"{target} ({len(text.encode()) / 1e3:.1f} kB)")


def _measured_layers(progress: Callable[[str], None], directory: Path) -> tuple[Layer, ...]:
    from edgeport.layers import layer_rows

    progress(f"layers of {directory}")
    return layer_rows(directory)


def _check_targets(targets: Sequence[Path], directories: Sequence[Path]) -> None:
    """Raises InputError for a file that cannot be written, or that an export would trip over."""
    exports = {directory.resolve() for directory in directories}
    for target in targets:
        if target.is_dir():
            raise InputError(f"{target} is a directory; name a file")
        if not target.parent.is_dir():
            raise InputError(f"{target}: {target.parent} is no directory; make it first")
        if target.resolve().parent in exports:
            raise InputError(
                f"{target} would lie in the export's directory, which holds nothing else: the next"
                " export refuses to replace it; name a file elsewhere"
            )
    if len({target.resolve() for target in targets}) < len(targets):
        raise InputError(f"{targets[0]} is named twice: --output and --markdown are two files")
