"""What ToSA loses beside the full network, and what it saves, by weights that train.py made.

Those of generated tasks are in `weights`. Those of restricted data are the user's own: all seeds of
both arms in EDGEPORT_TRAINED, where train.py -o put them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from edgeport_recipes._shared.vision import training
from edgeport_recipes._shared.vision.scores import mean_score, percent_more, points_lost
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes.tosa import cost
from edgeport_recipes.tosa.configs import BASELINE, OURS, SHIPPED, open_config
from edgeport_recipes.tosa.model import SelectiveTransformer
from edgeport_recipes.tosa.selection import overlaps
from edgeport_recipes.tosa.trained import load_file
from torch import Tensor

from edgeport.measure import environment
from edgeport.types import Measurement

GENERATED = ("shapes", "rooms")
RESTRICTED = ("cifar10", "redkitchen")
OVERLAP_IMAGES = 1000


def measure() -> tuple[Measurement, ...]:
    """Returns for each task the scores of both arms, what ToSA loses, how many multiply-accumulates
    it saves, and how many more tokens its selectors find than copying does."""
    ours = [(task, {arm: shipped(task, arm) for arm in (BASELINE, OURS)}) for task in GENERATED]
    users = [(task, {arm: trained(task, arm) for arm in (BASELINE, OURS)}) for task in RESTRICTED]
    return tuple(one for task, arms in (*ours, *users) for one in of_task(task, arms))


def shipped(task: str, arm: str) -> list[Path]:
    """Returns the file of weights that come with edgeport, if they do."""
    return [file for file in (SHIPPED / f"{task}-{arm}.safetensors",) if file.is_file()]


def trained(task: str, arm: str) -> list[Path]:
    """Returns the files of all seeds of an arm below the folder EDGEPORT_TRAINED."""
    if not (named := os.environ.get("EDGEPORT_TRAINED")):
        return []
    return sorted(Path(named).glob(f"**/{task}/{arm}-seed*/weights.safetensors"))


def of_task(
    task: str, arms: dict[str, list[Path]], limit: int | None = None
) -> Iterator[Measurement]:
    """Yields the measurements of one task, on at most `limit` test images.

    None where a file or the task's data is not there.
    """
    found = find_task(task)
    if not all(arms.values()) or (found.restricted and not os.environ.get("EDGEPORT_DATA")):
        return
    scores = {arm: average(files, limit) for arm, files in arms.items()}
    for arm, each in scores.items():
        as_it_is = mean_score(f"{found.metric}:{task}, {arm}", each)
        yield replace(as_it_is, unit="" if found.better == "less" else as_it_is.unit)
    if found.better == "more":
        yield points_lost(f"{found.metric}_loss:{task}", scores[BASELINE], scores[OURS])
    else:
        yield percent_more(f"{found.metric}_growth:{task}", scores[BASELINE], scores[OURS])
    yield from savings(task, arms[OURS][0])
    gains = [overlap_gain(file, limit or OVERLAP_IMAGES) for file in arms[OURS]]
    selector, copied = torch.stack(gains).mean(0).unbind()
    yield points_lost(f"selector_overlap_gain:{task}", selector, copied)


def average(files: list[Path], limit: int | None) -> Tensor:
    """Returns the score of every test image, averaged over the files' networks."""
    each = []
    for file in files:
        task = find_task(open_config(file).task)
        each.append(training.evaluate(load_file(file), task, limit=limit)[task.metric])
    return torch.stack(each).mean(0)


def savings(task: str, file: Path) -> Iterator[Measurement]:
    """Yields what each form saves of the full network's multiply-accumulates, in percent."""
    shape = open_config(file).shape
    for form in ("topk", "onehot"):
        saved = 100 * cost.saving(form, shape)
        around = environment(torch.get_num_threads())
        yield Measurement(
            f"macs_saving:{task}, {form}", saved, "percent", "host", environment=around
        )


def overlap_gain(file: Path, images: int) -> Tensor:
    """Returns the overlap of the selectors and of copying with the truth, `2 x images`."""
    net = load_file(file)
    assert isinstance(net, SelectiveTransformer)
    test = find_task(open_config(file).task).data("test", 0).images
    chosen = torch.linspace(0, len(test) - 1, min(images, len(test))).long()
    found = overlaps(net, test[chosen], selecting=True)
    return torch.stack([found["selector"], found["copy"]])
