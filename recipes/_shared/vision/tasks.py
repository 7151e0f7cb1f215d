"""What a vision network is trained for: data, loss and score, as one value that a trainer takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from edgeport.errors import UnknownName

Part = Literal["train", "test"]
Targets = Mapping[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Images `n x 3 x h x w` uint8 and their targets, whose first axis is the image."""

    images: Tensor
    targets: Targets

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.images)


@dataclass(frozen=True)
class Task:
    """One task, whose data are real or generated from a seed.

    `data(part, seed)` gives a split: real data do not depend on the seed, and a generated test part
    does not either. A network gives `outputs` values: one set an image, or where `dense`
    `n x outputs x grid x grid`, a set for each patch of the image. `loss` and `score` take these
    outputs; `score` gives one number an image for each metric, `metric` names the one that claims
    are about, and `better` says which way it is good. Weights trained on `restricted` data must not
    be redistributed.
    """

    name: str
    side: int
    outputs: int
    dense: bool
    data: Callable[[Part, int], Split]
    loss: Callable[[Tensor, Targets], Tensor]
    score: Callable[[Tensor, Targets], Mapping[str, Tensor]]
    metric: str
    better: Literal["more", "less"]
    restricted: bool
    flips: bool = False
    """Whether an image and its mirror image have the same targets."""


TASKS: Mapping[str, str] = {
    "cifar10": "edgeport_recipes._shared.vision.cifar:TASK",
    "shapes": "edgeport_recipes._shared.vision.shapes:TASK",
    "boxes": "edgeport_recipes._shared.vision.boxes:TASK",
    "rooms": "edgeport_recipes._shared.vision.rooms:TASK",
    "redkitchen": "edgeport_recipes._shared.vision.redkitchen:TASK",
}


def find_task(name: str) -> Task:
    """Returns the task of this name; raises UnknownName for another."""
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)
    return task
