"""What PADRe's accuracy is beside attention's, by weights that train.py made.

Those of generated tasks are in `weights`. Those of CIFAR-10 are the user's own, as its images may
not be passed on: seeds of both arms in EDGEPORT_TRAINED, where train.py -o put them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from edgeport_recipes._shared.vision import training
from edgeport_recipes._shared.vision.scores import mean_score, points_lost
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes._shared.vision.trained import shipped_files, users_files
from edgeport_recipes._shared.vision.weights import load_weights
from edgeport_recipes.padre.trained import SHIPPED, new_net, open_config
from torch import Tensor

from edgeport.types import Measurement

BASELINE, OURS, WITHOUT = "attention", "padre3", "none"
GENERATED, RESTRICTED = ("shapes", "boxes"), "cifar10"


def measure() -> tuple[Measurement, ...]:
    """Returns the scores of each task's arms, and what PADRe of degree 3 loses, in points.

    And what attention gains over a net that mixes no tokens: where that is little, the rest proves
    nothing.
    """
    arms = (BASELINE, OURS, WITHOUT)
    ours = [(task, {arm: shipped_files(SHIPPED, task, arm) for arm in arms}) for task in GENERATED]
    users = (RESTRICTED, {arm: users_files(RESTRICTED, arm) for arm in arms[:2]})
    return tuple(one for task, files in (*ours, users) for one in of_task(task, files))


def of_task(
    task: str, arms: dict[str, list[Path]], limit: int | None = None
) -> Iterator[Measurement]:
    """Yields the measurements of one task, on at most `limit` test images.

    None where a file or the task's data is not there.
    """
    unread = find_task(task).restricted and not os.environ.get("EDGEPORT_DATA")
    if unread or not all(arms.values()):
        return
    metric = find_task(task).metric
    scores = {arm: average(files, limit) for arm, files in arms.items()}
    for arm, each in scores.items():
        yield mean_score(f"{metric}:{task}, {arm}", each)
    yield points_lost(f"{metric}_loss:{task}", scores[BASELINE], scores[OURS])
    if WITHOUT in scores:
        yield points_lost(f"{metric}_of_mixing:{task}", scores[BASELINE], scores[WITHOUT])


def average(files: list[Path], limit: int | None) -> Tensor:
    """Returns the score of every test image, averaged over the files' networks."""
    return torch.stack([scores_of(file, limit) for file in files]).mean(0)


def scores_of(file: Path, limit: int | None) -> Tensor:
    """Returns the score of every test image of the file's task."""
    config = open_config(file)
    net, task = new_net(config, 0), find_task(config.task)
    load_weights(file, net)
    return training.evaluate(net, task, limit=limit)[task.metric]
