"""Puts PADRe into a trained net and distils it: python -m edgeport_recipes.padre.distil.

Writes OUT/weights.safetensors and metrics.json, with the score after N steps. A run that was killed
goes on with --resume, from its last epoch, to the same result. The data decide who may have the
weights: those made from CIFAR-10 are not for others.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import torch
from edgeport_recipes._shared.vision.tasks import TASKS, find_task
from edgeport_recipes._shared.vision.training import Budget, report
from edgeport_recipes.padre.distillation import LAYERS, WHOLE, Plan, distil
from torch import nn

from edgeport.errors import EdgeportError, InputError
from edgeport.importing import importable, load_file, user_code
from edgeport.rewrites.padre import Prefix
from edgeport.sources.weights import load_weights

SMOKE = Budget(epochs=1, batch=16, images=64)


def open_net(model: str, weights: Path | None) -> nn.Module:
    """Returns the net of a factory `FILE.py:NAME` or `MODULE:NAME`, with the weights of a file.

    Raises InputError where there is no such factory, where it fails, gives no nn.Module, and where
    the weights are another net's.
    """
    where, _, name = model.rpartition(":")
    if not where:
        raise InputError(f"--model {model}: give FILE.py:FACTORY or MODULE:FACTORY.")
    path = Path(where) if where.endswith(".py") else None
    if path is not None and not path.is_file():
        raise InputError(f"--model {where}: no such file; give FILE.py:FACTORY.")
    folder = path.resolve().parent if path else Path.cwd()
    with user_code(model), importable(folder):
        module = load_file(path) if path else importlib.import_module(where)
        net = getattr(module, name)()
    if not isinstance(net, nn.Module):
        raise InputError(f"--model {model}: gave a {type(net).__name__}, not a torch.nn.Module.")
    if weights is not None:
        load_weights(net, weights)
    return net.eval()


def parse_grid(text: str) -> tuple[int, int]:
    """Returns (rows, columns) of a grid such as 8x8; raises InputError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise InputError(f"--grid {text}: give rows and columns of patches, such as 8x8.")
    return int(found[1]), int(found[2])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", required=True, help="The net: FILE.py:FACTORY or MODULE:FACTORY.")
@click.option("--weights", type=click.Path(path_type=Path), help="Its trained weights.")
@click.option("--task", type=click.Choice(sorted(TASKS)), required=True, help="What it does.")
@click.option("--degree", default=3, show_default=True, help="PADRe's degree.")
@click.option("--kernel", default=7, show_default=True, help="Side of its convolutions, odd.")
@click.option("--grid", default="8x8", show_default=True, help="Rows x columns of patch tokens.")
@click.option(
    "--prefix-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Tokens before the grid, such as CLS.",
)
@click.option(
    "--prefix",
    type=click.Choice(get_args(Prefix)),
    default=Plan.prefix,
    show_default=True,
    help="How they are carried: pooled from the grid, or unchanged.",
)
@click.option(
    "--warm/--cold",
    default=Plan.warm,
    show_default=True,
    help="Start from the attention's value projection, or from drawn weights.",
)
@click.option(
    "--layer-epochs",
    type=click.IntRange(min=0),
    default=LAYERS.epochs,
    show_default=True,
    help="Epochs of the layers, each by itself.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=WHOLE.epochs,
    show_default=True,
    help="Epochs of the whole net after that.",
)
@click.option("--images", type=click.IntRange(min=1), help="Training images an epoch; else all.")
@click.option("--batch", type=click.IntRange(min=1), default=WHOLE.batch, show_default=True)
@click.option("--layer-rate", default=LAYERS.rate, show_default=True, help="Highest rate there.")
@click.option("--rate", default=WHOLE.rate, show_default=True, help="Highest rate of the whole.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=Plan.every,
    show_default=True,
    help="Score the whole net after so many steps.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Test images to score; else all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output-dir", "-o", type=click.Path(path_type=Path), default=Path("out"))
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores by default.")
@click.option("--resume", is_flag=True, help="Go on from the last epoch.")
@click.option("--smoke", is_flag=True, help="64 images once: shows that everything runs.")
def main(**options: Any) -> None:  # fmt: skip
    """Replaces a trained net's attention by PADRe, distils it and scores it after N steps."""
    try:
        metrics = _distil_as_asked(**options)
    except EdgeportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    name = metrics["metric"]
    for point in metrics["curve"]:
        click.echo(
            f"{point['stage']:>9} {point['step']:5d} steps: {name} {point['scores'][name]:.4f}, "
            f"layer errors {' '.join(f'{one:.3f}' for one in point['layer_errors'])}"
        )
    sizes = metrics["parameters"]
    click.echo(
        f"attention: {name} {metrics['teacher'][name]:.4f} on {metrics['images']} images; "
        f"parameters {sizes['teacher']} -> {sizes['student']}: {options['output_dir']}"
    )


def _distil_as_asked(
    *,
    model: str,
    weights: Path | None,
    task: str,
    output_dir: Path,
    threads: int | None,
    resume: bool,
    smoke: bool,
    limit: int | None,
    **settings: Any,
) -> dict[str, Any]:
    if threads is not None:
        torch.set_num_threads(threads)
    plan = _plan(**settings)
    if smoke:
        layers, whole = (replace(SMOKE, rate=one.rate) for one in (plan.layers, plan.whole))
        plan, limit = replace(plan, layers=layers, whole=whole, every=2), 64
    net = open_net(model, weights)
    origin = {"model": model, "weights": weights and weights.name}
    return distil(
        net, find_task(task), plan, output_dir, origin=origin, resume=resume, limit=limit,
        report=report,
    )  # fmt: skip


def _plan(
    *,
    grid: str,
    layer_epochs: int,
    epochs: int,
    images: int | None,
    batch: int,
    layer_rate: float,
    rate: float,
    **rest: Any,
) -> Plan:
    layers = replace(LAYERS, epochs=layer_epochs, images=images, batch=batch, rate=layer_rate)
    whole = replace(WHOLE, epochs=epochs, images=images, batch=batch, rate=rate)
    return Plan(grid=parse_grid(grid), layers=layers, whole=whole, **rest)


if __name__ == "__main__":
    main()
