"""Trains a small transformer and its arms: python -m edgeport_recipes.tosa.train --task cifar10.

Writes OUT/TASK/ARM-seedN/weights.safetensors and metrics.json. Every arm but "full" starts from the
full network of its seed, which is trained where it is not there yet, and is fine-tuned for the same
number of epochs: "full_longer" too. A run that was killed goes on with --resume.
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from edgeport_recipes._shared.files import read_json, write_json
from edgeport_recipes._shared.vision.tasks import TASKS, Task, find_task
from edgeport_recipes._shared.vision.training import (
    Budget,
    Loss,
    Report,
    evaluate,
    fit,
    report,
    rounded,
)
from edgeport_recipes._shared.vision.weights import load_weights
from edgeport_recipes.tosa import cost
from edgeport_recipes.tosa.configs import ARMS, Config, Shape
from edgeport_recipes.tosa.model import SelectiveTransformer, VisionTransformer
from edgeport_recipes.tosa.selection import overlaps, selector_loss, tuning_loss
from edgeport_recipes.tosa.trained import new_net, save

from edgeport.errors import EdgeportError

PATCH = 4
EPOCHS = {"cifar10": 8, "rooms": 8}  # of the full network; 6 where there are more images
WEIGHTS, METRICS = "weights.safetensors", "metrics.json"


@dataclass(frozen=True)
class Settings:
    """What is the same for all arms of a comparison; `images` of the training part at most, and
    `tested` of the test part."""

    epochs: int = 6
    selector_epochs: int = 1
    tune_epochs: int = 3
    rate: float = 1e-3
    selector_rate: float = 1e-2
    tune_rate: float = 5e-4
    batch: int = 64
    dim: int = 64
    depth: int = 4
    heads: int = 2
    mlp: int = 4
    keep: float = 0.5
    images: int | None = None
    tested: int | None = None

    def shape(self, task: Task) -> Shape:
        """Returns the sizes of the task's network."""
        return Shape(
            grid=task.side // PATCH,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            patch=PATCH,
            keep=self.keep,
            outputs=task.outputs,
            head="dense" if task.dense else "pooled",
        )

    def budget(self, stage: str) -> Budget:
        """Returns the budget of a stage: "full", "selector" or "tune"."""
        epochs, rate = {
            "full": (self.epochs, self.rate),
            "selector": (self.selector_epochs, self.selector_rate),
            "tune": (self.tune_epochs, self.tune_rate),
        }[stage]
        decay = 0.0 if stage == "selector" else 0.05
        return Budget(epochs, self.batch, rate, decay, images=self.images)


SMOKE = Settings(1, 1, 1, batch=32, dim=16, depth=2, heads=1, images=64, tested=64)


@dataclass(frozen=True)
class Run:
    """One arm of one task and seed."""

    task: Task
    arm: str
    seed: int
    settings: Settings
    output_dir: Path
    report: Report | None = None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.output_dir / self.task.name / f"{self.arm}-seed{self.seed}"

    @property
    def config(self) -> Config:
        """What is needed to build its network again."""
        return Config(self.task.name, self.arm, self.seed, self.settings.shape(self.task))


@dataclass
class Stages:
    """What the stages of a run took and found, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    overlap: dict[str, Any] = field(default_factory=dict)


def train(run: Run, *, resume: bool = False) -> dict[str, Any]:
    """Returns the metrics of the arm, whose files are in its folder.

    A finished run is not run again. Raises InputError for a folder that holds another run, or this
    one without `resume`.
    """
    net = new_net(run.config) if run.arm == "full" else start(run)
    done = Stages()
    if isinstance(net, SelectiveTransformer) and run.arm == "tosa":
        trained = list(net.scorers.parameters())
        others = {"loss": selector_loss, "parameters": trained, "resume": resume}
        fit_stage(run, net, "selector", run.folder / "selector", done, **others)
        done.overlap["selector"] = judge(run, net, selecting=False)
    last = "full" if run.arm == "full" else "tune"
    fit_stage(run, net, last, run.folder, done, loss=tune_loss(run), resume=resume)
    if (run.folder / METRICS).exists():
        return read_json(run.folder / METRICS)
    if isinstance(net, SelectiveTransformer) and run.arm == "tosa":
        done.overlap["tune"] = judge(run, net, selecting=True)
    return finish(run, net, done)


def start(run: Run) -> VisionTransformer:
    """Returns the arm's network with the weights of the full one, which is trained if need be."""
    whole = replace(run, arm="full")
    train(whole, resume=True)
    full, net = new_net(whole.config), new_net(run.config)
    load_weights(whole.folder / WEIGHTS, full)
    take_weights(net, full)
    return net


def take_weights(net: VisionTransformer, full: VisionTransformer) -> None:
    """Gives a variant the weights of the full network; its selectors keep their own."""
    known, state = full.state_dict(), net.state_dict()
    for name in state:
        if (source := name.replace(".inner.", ".")) in known:
            state[name] = known[source]
    net.load_state_dict(state)


def tune_loss(run: Run) -> Loss | None:
    """Returns the loss of the last stage, or None for the task's own."""
    if run.arm != "tosa":
        return None
    return lambda net, images, targets: tuning_loss(net, run.task, images, targets)


def fit_stage(
    run: Run, net: VisionTransformer, stage: str, folder: Path, done: Stages, **others: Any
) -> None:
    """Trains one stage in place and notes what it took."""
    shape, budget = asdict(run.settings.shape(run.task)), run.settings.budget(stage)
    origin: dict[str, Any] = {"recipe": "tosa", "arm": run.arm, "stage": stage, "shape": shape}
    if stage == "full":
        del shape["keep"]  # the full network is shared by arms that keep more or fewer
    else:
        before = ("full", "selector") if run.arm == "tosa" and stage == "tune" else ("full",)
        origin["before"] = {one: asdict(run.settings.budget(one)) for one in before}
    progress = fit(
        net, run.task, budget, folder, seed=run.seed, origin=origin, report=run.report, **others
    )
    done.seconds[stage], done.losses[stage] = progress.seconds, progress.losses


def judge(run: Run, net: SelectiveTransformer, *, selecting: bool) -> dict[str, Any]:
    """Returns the overlap of selector, copy and random with the truth, means and by image."""
    test = run.task.data("test", 0)
    count = min(test.count, run.settings.tested or 1000)
    chosen = torch.linspace(0, test.count - 1, count).long()
    found = overlaps(net, test.images[chosen], selecting=selecting)
    return {
        "images": count,
        "mean": {name: float(values.mean()) for name, values in found.items()},
        "by_image": {name: rounded(values) for name, values in found.items()},
    }


def command(run: Run) -> str:
    """Returns the command that trains this run."""
    asked = run.settings
    return (
        f"python -m edgeport_recipes.tosa.train --task {run.task.name} --arm {run.arm}"
        f" --seed {run.seed} --epochs {asked.epochs} --selector-epochs {asked.selector_epochs}"
        f" --tune-epochs {asked.tune_epochs} --keep {asked.keep:g} --rate {asked.rate:g}"
    )


def finish(run: Run, net: VisionTransformer, done: Stages) -> dict[str, Any]:
    """Writes weights and metrics; returns the metrics."""
    scores = evaluate(net, run.task, limit=run.settings.tested)
    shape, variant = net.shape, ARMS[run.arm]
    settings = asdict(run.settings)
    budgets = {stage: asdict(run.settings.budget(stage)) for stage in done.seconds}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    metrics = {
        **run.config.to_dict(),
        "variant": variant,
        "mean": {name: float(values.mean()) for name, values in scores.items()},
        "scores": {name: rounded(values) for name, values in scores.items()},
        "overlap": done.overlap,
        "macs": cost.count_macs(variant, shape),
        "macs_full": cost.count_macs("full", shape),
        "macs_saving": cost.saving(variant, shape),
        "tokens": {"all": shape.tokens, "kept": shape.kept, "counts": getattr(net, "counts", ())},
        "parameters": sum(one.numel() for one in net.parameters()),
        "seconds": done.seconds,
        "losses": done.losses,
        "threads": torch.get_num_threads(),
        "budgets": budgets,
        "settings": settings,
    }
    made = {"command": command(run), "settings": settings, "data": run.task.name, "date": today}
    save(run.folder / WEIGHTS, net, run.config, made)
    write_json(run.folder / METRICS, metrics)
    return metrics


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--task", "name", type=click.Choice(list(TASKS)), default="cifar10")
@click.option("--arm", type=click.Choice(list(ARMS)), default="tosa", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--output-dir", "-o", type=click.Path(path_type=Path), default=Path("out"))
@click.option("--epochs", type=click.IntRange(min=1), help="Of the full network; 6, cifar10 8.")
@click.option("--selector-epochs", type=click.IntRange(min=0), help="Of the selectors alone; 1.")
@click.option("--tune-epochs", type=click.IntRange(min=1), help="Of fine-tuning; 3.")
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True), help="Share of tokens; 0.5.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Of the full network; 1e-3.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores by default.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--smoke", is_flag=True, help="A tiny network on few images: proves the script.")
def main(
    name: str,
    arm: str,
    seed: int,
    output_dir: Path,
    threads: int | None,
    resume: bool,
    smoke: bool,
    **asked: Any,
) -> None:
    """Trains one arm of one task, and scores it on the test part."""
    if threads is not None:
        torch.set_num_threads(threads)
    given = {key: value for key, value in asked.items() if value is not None}
    settings = SMOKE if smoke else Settings(epochs=EPOCHS.get(name, 6))
    try:
        run = Run(find_task(name), arm, seed, replace(settings, **given), output_dir, report)
        metrics = train(run, resume=resume)
    except EdgeportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    score, saved = metrics["mean"][run.task.metric], metrics["macs_saving"]
    click.echo(f"{arm}: {run.task.metric} {score:.4f}, {saved:.1%} fewer MACs: {run.folder}")


if __name__ == "__main__":
    main()
