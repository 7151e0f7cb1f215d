"""The trainings of suite `vit`: their arms, budgets and folders, and scores of pairs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeport_recipes._shared.files import read_json
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes._shared.vision.training import Budget
from edgeport_recipes.padre.trained import Config

from edgeport.metrics import bootstrap_interval

SUITE = "vit"
WORK = Path(__file__).parent / "results" / SUITE
METRICS = "metrics.json"
CLAIM_SEEDS, CONTROL_SEEDS = 3, 1
BASELINE = "attention"


@dataclass(frozen=True)
class Training:
    """One run of a PADRe recipe's train.py."""

    task: str
    arm: str
    seed: int

    @property
    def group(self) -> str:
        return f"train {self.task} {self.arm} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return WORK / self.task / f"{self.arm}-seed{self.seed}"

    @property
    def config(self) -> Config:
        return Config(self.task, self.arm)

    @property
    def budget(self) -> Budget:
        return Budget(EPOCHS[self.task])


EPOCHS = {"cifar10": 8, "shapes": 6, "boxes": 6}
CLAIMED = ("attention", "padre2", "padre3")
CONTROLS = ("convolutions", "attention_conv", "padre3_kernel1", "none")


def trainings(full: bool) -> Iterator[Training]:
    """Yields the runs: three seeds for the arms that carry the claim, one for the controls."""
    for seed in range(CLAIM_SEEDS):
        yield from (Training("cifar10", arm, seed) for arm in CLAIMED)
        if full or seed < CONTROL_SEEDS:
            yield from (Training("cifar10", arm, seed) for arm in CONTROLS)
    for seed in range(CLAIM_SEEDS if full else CONTROL_SEEDS):
        yield from (Training("shapes", arm, seed) for arm in (*CLAIMED, *CONTROLS))
        yield from (Training("boxes", arm, seed) for arm in (*CLAIMED, "convolutions", "none"))


@dataclass(frozen=True)
class Difference:
    """A mean score less another's on the same images, with its 95 % interval.

    The interval is that of the images: of each image's difference, averaged over the seeds.
    """

    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]


def difference(ours: Sequence[Path], theirs: Sequence[Path]) -> Difference | None:
    """Returns how much more the first runs score than the second; folders in the order of seeds.

    None where a run has not finished.
    """
    pairs = [(_each(one), _each(other)) for one, other in zip(ours, theirs, strict=True)]
    known = [one - other for one, other in pairs if one is not None and other is not None]
    if not known or len(known) != len(pairs):
        return None
    means = np.mean(known, axis=0)
    low, high = bootstrap_interval(means)
    return Difference(float(means.mean()), (low, high), tuple(float(one.mean()) for one in known))


def _each(folder: Path) -> Any:
    """Returns the score of every image of a finished run."""
    metrics = metrics_of(folder)
    if metrics is None:
        return None
    return np.asarray(metrics["scores"][find_task(metrics["task"]).metric], np.float64)


def metrics_of(folder: Path) -> Mapping[str, Any] | None:
    """Returns what a finished run wrote."""
    return read_json(folder / METRICS) if (folder / METRICS).exists() else None
