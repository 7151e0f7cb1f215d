"""Calibration feeds of a network that was trained for a task: the task's own training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from edgeport_recipes._shared.vision.tasks import Task
from numpy.typing import NDArray

from edgeport.types import TensorSpec


def training_feeds(
    task: Task, specs: Sequence[TensorSpec], count: int, seed: int
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns feeds of training images in 0..1, `1 x 3 x side x side`, drawn by the seed."""
    (spec,) = specs
    split = task.data("train", 0)
    drawn = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(split.count, generator=drawn)[:count]
    return [{spec.name: np.asarray(split.images[one][None].float() / 255)} for one in chosen]
