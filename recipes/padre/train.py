"""Trains a small vision transformer with one mixer: python -m edgeport_recipes.padre.train.

Writes OUT/TASK/ARM-seedN/weights.safetensors and metrics.json. A run that was killed goes on with
--resume, from its last epoch, to the same result.
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from edgeport_recipes._shared.files import read_json, write_json
from edgeport_recipes._shared.vision.tasks import TASKS, find_task
from edgeport_recipes._shared.vision.training import (
    Budget,
    Report,
    evaluate,
    fit,
    report,
    rounded,
)
from edgeport_recipes.padre.trained import MIXERS, Config, new_net, save

from edgeport.errors import EdgeportError

EPOCHS = {"cifar10": 8, "shapes": 6, "boxes": 6}
SMOKE = Budget(epochs=1, batch=16, images=64)
WEIGHTS, METRICS = "weights.safetensors", "metrics.json"


def train(
    config: Config,
    budget: Budget,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    limit: int | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Returns the scores on the task's test images, at most `limit`; `folder` keeps the files.

    A finished run is not run again. Raises InputError for a folder that holds another run.
    """
    task = find_task(config.task)
    net = new_net(config, seed)
    origin = {"recipe": "padre", **asdict(config)}
    done = fit(net, task, budget, folder, seed=seed, origin=origin, resume=resume, report=report)
    if done.epoch == budget.epochs and (folder / METRICS).exists():
        return read_json(folder / METRICS)
    scores = evaluate(net, task, limit=limit)
    metrics = {
        **asdict(config),
        "arm": config.mixer,
        "mean": {name: float(values.mean()) for name, values in scores.items()},
        "scores": {name: rounded(values) for name, values in scores.items()},
        "budget": asdict(budget),
        "seed": seed,
        "parameters": sum(one.numel() for one in net.parameters()),
        "losses": done.losses,
        "seconds": done.seconds,
        "threads": torch.get_num_threads(),
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    how = {
        "command": "python -m edgeport_recipes.padre.train"
        f" --task {task.name} --arm {config.mixer} --kernel {config.kernel} --seed {seed}"
        f" --epochs {budget.epochs} --rate {budget.rate:g}",
        "budget": asdict(budget),
        "data": task.name,
        "date": today,
    }
    save(folder / WEIGHTS, net, config, how)
    write_json(folder / METRICS, metrics)
    return metrics


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--task", type=click.Choice(sorted(TASKS)), default="shapes", show_default=True)
@click.option("--arm", type=click.Choice(MIXERS), default="padre3", show_default=True)
@click.option("--kernel", default=7, show_default=True, help="Side of the convolutions, odd.")
@click.option("--epochs", type=click.IntRange(min=1), help="6; 8 for cifar10.")
@click.option("--rate", default=Budget.rate, show_default=True, help="Highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output-dir", "-o", type=click.Path(path_type=Path), default=Path("out"))
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores by default.")
@click.option("--resume", is_flag=True, help="Go on from the last epoch.")
@click.option("--smoke", is_flag=True, help="64 images once: shows that everything runs.")
def main(**options: Any) -> None:
    """Trains one arm on one task and scores it on the test images."""
    try:
        folder, metrics = _train_as_asked(**options)
    except EdgeportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    said = ", ".join(f"{name} {value:.4f}" for name, value in metrics["mean"].items())
    click.echo(
        f"{options['arm']} on {options['task']}: {said}, "
        f"{metrics['parameters']} parameters, {metrics['seconds']:.0f} s: {folder}"
    )


def _train_as_asked(
    *,
    task: str,
    arm: str,
    kernel: int,
    epochs: int | None,
    rate: float,
    seed: int,
    output_dir: Path,
    threads: int | None,
    resume: bool,
    smoke: bool,
) -> tuple[Path, dict[str, Any]]:
    if threads is not None:
        torch.set_num_threads(threads)
    budget = SMOKE if smoke else Budget(epochs or EPOCHS.get(task, 6), rate=rate)
    folder = output_dir / task / f"{arm}-seed{seed}"
    config = Config(task, arm, kernel=kernel)
    limit = SMOKE.images if smoke else None
    found = train(config, budget, folder, seed=seed, resume=resume, limit=limit, report=report)
    return folder, found


if __name__ == "__main__":
    main()
