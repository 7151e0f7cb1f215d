"""The trainings of suite `vit`: their arms, seeds and folders, and scores of pairs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeport_recipes._shared.files import read_json
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes.padre import train as padre
from edgeport_recipes.padre.trained import Config
from edgeport_recipes.tosa import train as tosa

from edgeport.metrics import bootstrap_interval

SUITE = "vit"
WORK = Path(__file__).parent / "results" / SUITE
SEEDS = range(3)
PADRE = ("attention", "padre2", "padre3")
PADRE_CONTROLS = ("convolutions", "attention_conv", "padre3_kernel1", "none")
TOSA = ("full_longer", "full", "tosa")
TOSA_CONTROLS = ("copy", "random", "drop", "merge")


@dataclass(frozen=True)
class Training:
    """One run of a recipe's train.py, with the budget that this script has by default."""

    recipe: str
    task: str
    arm: str
    seed: int

    @property
    def group(self) -> str:
        return f"train {self.recipe} {self.task} {self.arm} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return WORK / self.recipe / self.task / f"{self.arm}-seed{self.seed}"

    def run(self) -> Mapping[str, Any]:
        """Returns the metrics; goes on where the run was stopped, and is quick where it is done."""
        if self.recipe == "padre":
            config, budget = Config(self.task, self.arm), padre.BUDGETS.get(self.task, padre.OTHERS)
            return padre.train(config, budget, self.folder, seed=self.seed, resume=True)
        task = find_task(self.task)
        settings = tosa.Settings(epochs=tosa.EPOCHS.get(self.task, tosa.Settings.epochs))
        one = tosa.Run(task, self.arm, self.seed, settings, WORK / self.recipe)
        return tosa.train(one, resume=True)


def trainings(full: bool) -> Iterator[Training]:
    """Yields the runs: three seeds for the arms that carry a claim, one for the controls."""
    for recipe, tasks, arms, controls in (
        ("padre", ("cifar10",), PADRE, PADRE_CONTROLS),
        ("tosa", ("cifar10", "rooms"), TOSA, TOSA_CONTROLS),
    ):
        for task in tasks:
            for seed in SEEDS:
                yield from (Training(recipe, task, arm, seed) for arm in arms)
                if full or seed == 0:
                    yield from (Training(recipe, task, arm, seed) for arm in controls)
    for seed in SEEDS if full else SEEDS[:1]:
        yield from (Training("padre", "shapes", arm, seed) for arm in (*PADRE, "none"))
        yield from (Training("padre", "boxes", arm, seed) for arm in (*PADRE, "none"))
        yield from (Training("tosa", "shapes", arm, seed) for arm in TOSA)


@dataclass(frozen=True)
class Difference:
    """A mean score less another's on the same images, with its 95 % interval.

    The interval is of the images: of each one's difference, averaged over the seeds; `seeds` are
    the means of each seed.
    """

    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]


def difference(pairs: Sequence[tuple[Training, Training]]) -> Difference | None:
    """Returns how much more the first of each pair scores than the second.

    A pair is of one seed. None where no pair has finished.
    """
    scores = [(scores_of(one), scores_of(other)) for one, other in pairs]
    known = [one - other for one, other in scores if one is not None and other is not None]
    if not known:
        return None
    means = np.mean(known, axis=0)
    return Difference(
        float(means.mean()), bootstrap_interval(means), tuple(float(one.mean()) for one in known)
    )


def scores_of(one: Training) -> Any:
    """Returns the score of every image of a finished run, [N]; None before it has finished."""
    file = one.folder / "metrics.json"
    if not file.exists():
        return None
    return np.asarray(read_json(file)["scores"][find_task(one.task).metric], np.float64)
