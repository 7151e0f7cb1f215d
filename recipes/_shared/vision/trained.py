"""Weights that a user names: a file of train.py, or by their task those that come with a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes._shared.vision.tasks import Task, find_task
from edgeport_recipes._shared.vision.weights import read_config
from numpy.typing import NDArray

from edgeport.errors import InputError
from edgeport.types import TensorSpec

UNTRAINED = "untrained"


def find_weights(folder: Path, weights: str, arm: str) -> Path:
    """Returns the file of an arm: `weights` is a path, or a task with files of ours in `folder`.

    Raises InputError where there is none.
    """
    ours = {file.stem: file for file in folder.glob("*.safetensors")}
    if (shipped := ours.get(f"{weights}-{arm}")) is not None:
        return shipped
    if not Path(weights).is_file():
        names = ", ".join(sorted({stem.split("-")[0] for stem in ours}))
        raise InputError(
            f"no weights {weights} of {arm}; give a file of train.py, or one of ours by its task:"
            f" {names or 'there are none'}."
        )
    return Path(weights)


def shipped_files(folder: Path, task: str, arm: str) -> list[Path]:
    """Returns the file of weights that come with a recipe, if they do."""
    return [file for file in (folder / f"{task}-{arm}.safetensors",) if file.is_file()]


def users_files(task: str, arm: str) -> list[Path]:
    """Returns the files of all seeds of an arm below the folder EDGEPORT_TRAINED."""
    if not (folder := os.environ.get("EDGEPORT_TRAINED")):
        return []
    return sorted(Path(folder).glob(f"**/{task}/{arm}-seed*/weights.safetensors"))


def task_of(folder: Path, weights: str) -> Task:
    """Returns the task that the weights were trained for."""
    ours = [file for file in folder.glob("*.safetensors") if file.stem.split("-")[0] == weights]
    name = read_config(ours[0] if ours else Path(weights)).get("task")
    if not isinstance(name, str):
        raise InputError(f"weights {weights}: no file of train.py; train them again.")
    return find_task(name)


def training_feeds(
    task: Task, specs: Sequence[TensorSpec], count: int, seed: int
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns feeds of training images in 0..1, `1 x 3 x side x side`, drawn by the seed."""
    (spec,) = specs
    split = task.data("train", 0)
    drawn = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(split.count, generator=drawn)[:count]
    return [{spec.name: np.asarray(split.images[one][None].float() / 255)} for one in chosen]
