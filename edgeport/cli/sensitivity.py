"""`edgeport sensitivity SOURCE`."""

from __future__ import annotations

import json
from typing import Any

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import SourceCommand, make_request, quantization_options, source_options
from edgeport.descriptors import redirected


@click.command("sensitivity", cls=SourceCommand)
@source_options
@click.option(
    "--precision", default="w8a8", show_default=True, help="Of the one layer: w8a8 | w8a16 | w4a16."
)
@quantization_options
@click.option("--top", default=20, show_default=True, help="Layers to list; 0 lists all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, of all layers.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
def sensitivity(source: str, top: int, as_json: bool, verbose: bool, **flags: Any) -> None:
    """Rank the layers of SOURCE by what quantizing each of them alone costs.

    The SQNR is that of the model's outputs on this machine, against the float model; the lowest is
    the layer that more bits help most. SOURCE is what `edgeport export` takes.
    """
    from edgeport import pipeline

    with show_progress() as progress, redirected(1, 2):
        found = pipeline.sensitivity(
            **make_request(source, flags),
            # Nothing is compiled: any device that takes an ONNX file stands for this machine.
            device="s24",
            target_runtimes=("onnx",),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    click.echo(f"{'SQNR dB':>8}  {'MACs':>14}  {'operator':20} layer, quantized alone")
    for layer in found[: top or None]:
        loss = float(layer["sqnr_db"])
        click.echo(f"{loss:8.1f}  {layer['macs']:14,}  {layer['op']:20} {layer['node']}")
    hidden = len(found) - top if top else 0
    if hidden > 0:
        click.echo(f"and {hidden} layers that lose less (--top 0 lists them)")
