"""Nets that are trained, each in a file with its configuration; the images that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeport_recipes._shared import images
from edgeport_recipes._shared.vision.tasks import Task, find_task
from edgeport_recipes._shared.vision.weights import load_weights, save_weights
from edgeport_recipes.tosa.configs import (
    ARMS,
    UNTRAINED,
    Config,
    config_of,
    find_weights,
    open_config,
)
from edgeport_recipes.tosa.model import Selector, VisionTransformer, build
from numpy.typing import NDArray
from torch import nn

from edgeport.errors import InputError
from edgeport.types import TensorSpec


def new_net(config: Config) -> VisionTransformer:
    """Returns the net before its training."""
    net = build(ARMS[config.arm], config.seed, **asdict(config.shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        nn.init.trunc_normal_(net.position, std=0.02)
    for module in net.modules():
        if isinstance(module, Selector):
            module.start_as_copy()
    return net


def save(path: Path, net: VisionTransformer, config: Config, made: Mapping[str, Any]) -> None:
    """Replaces the file with the net's weights, its configuration and how they were made."""
    save_weights(path, net, {**config.to_dict(), "made": dict(made)})


def load_file(path: Path) -> VisionTransformer:
    """Returns the trained net of a file, in eval mode."""
    net = new_net(open_config(path))
    load_weights(path, net)
    return net.eval()


def load(variant: str, weights: str) -> nn.Module:
    """Returns the trained net of a file, or of the task whose weights come with edgeport.

    Raises InputError for weights of another variant.
    """
    path = find_weights(variant, weights)
    if (found := ARMS[open_config(path).arm]) != variant:
        raise InputError(f"{path}: weights of {found}; give --variant {found}.")
    return load_file(path)


def feeds(
    specs: Sequence[TensorSpec],
    count: int,
    seed: int,
    *,
    trained: str = UNTRAINED,
    **_others: object,
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns `count` feeds in 0..1: training images of the task that the weights are for, drawn by
    the seed; else made-up images."""
    if trained == UNTRAINED:
        made = images.feeds(specs, count, seed)
        return [{name: image / 4 + 0.5 for name, image in one.items()} for one in made]
    (spec,) = specs
    return [
        {spec.name: one} for one in training_images(find_task(config_of(trained).task), count, seed)
    ]


def training_images(task: Task, count: int, seed: int) -> list[NDArray[np.float32]]:
    """Returns training images `1 x 3 x side x side` in 0..1, drawn by the seed."""
    split = task.data("train", 0)
    drawn = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(split.count, generator=drawn)[:count]
    return [np.asarray(split.images[one][None].float() / 255) for one in chosen]
