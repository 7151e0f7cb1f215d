"""Nets that are trained: small ones for 32 x 32 images, each in a file with its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeport_recipes._shared import images
from edgeport_recipes._shared.vision.feeds import training_feeds
from edgeport_recipes._shared.vision.patches import Patches
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes._shared.vision.weights import (
    UNTRAINED,
    find_weights,
    load_weights,
    read_config,
    save_weights,
    task_of,
)
from edgeport_recipes.padre.attention import Attention
from edgeport_recipes.padre.controls import Convolutions, LocalAttention, NoMixing
from edgeport_recipes.padre.model import Block, VisionTransformer, initialise
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe
from edgeport.types import TensorSpec

SHIPPED = Path(__file__).with_name("weights")
MIXERS = (
    "attention", "padre2", "padre3", "padre3_kernel1", "convolutions", "attention_conv", "none",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What a trained net is, beside its weights."""

    task: str
    mixer: str
    dim: int = 64
    depth: int = 4
    heads: int = 4
    mlp: int = 2
    kernel: int = 7
    patch: int = 4


class Trained(nn.Module):
    """A net on images in 0..1, `B x 3 x side x side`."""

    output_names = ("output",)

    def __init__(self, net: VisionTransformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.net(image)
        return found


def new_net(config: Config, seed: int) -> Trained:
    """Returns the net before its training."""
    task = find_task(config.task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks: list[nn.Module] = [
            Block(config.dim, _mixer(config), config.mlp) for _ in range(config.depth)
        ]
        grid = task.side // config.patch
        net = VisionTransformer(blocks, config.dim, grid, task.outputs, config.patch, task.dense)
        net.patches = Patches(config.dim, config.patch)
        initialise(net)
        nn.init.trunc_normal_(net.position, std=0.02)
    return Trained(net)


def _mixer(config: Config) -> nn.Module:
    dim, heads, kernel = config.dim, config.heads, config.kernel
    match config.mixer:
        case "attention":
            return Attention(dim, heads)
        case "padre2":
            return PADRe(dim, 2, kernel)
        case "padre3":
            return PADRe(dim, 3, kernel)
        case "padre3_kernel1":
            return PADRe(dim, 3, 1)
        case "convolutions":
            return Convolutions(dim, 3, kernel)
        case "attention_conv":
            return LocalAttention(dim, heads, kernel)
        case "none":
            return NoMixing()
    raise InputError(f"padre: no mixer {config.mixer!r}; give one of {', '.join(MIXERS)}.")


def save(path: Path, net: Trained, config: Config, more: Mapping[str, Any]) -> None:
    """Replaces the file with the net's weights, its configuration and how they were made."""
    save_weights(path, net, {**asdict(config), "made": dict(more)})


def open_config(path: Path) -> Config:
    """Returns the configuration of a file that `save` wrote; raises InputError for another."""
    table = read_config(path)
    try:
        return Config(**{name: table[name] for name in Config.__dataclass_fields__})
    except KeyError as error:
        raise InputError(f"weights {path}: say no {error}; train them with train.py.") from error


def load(mixer: str, weights: str, part: str) -> nn.Module:
    """Returns the trained net of a file, or of the task whose weights come with edgeport.

    Raises InputError for weights of another mixer and for a part of a trained net.
    """
    path = find_weights(SHIPPED, weights, mixer)
    config = open_config(path)
    if part != "net":
        raise InputError("padre: --trained gives a whole net; leave --part out.")
    if config.mixer != mixer:
        raise InputError(f"{path}: weights of {config.mixer}; give --variant {config.mixer}.")
    net = new_net(config, 0)
    load_weights(path, net)
    return net.eval()


def feeds(
    specs: Sequence[TensorSpec],
    count: int,
    seed: int,
    *,
    trained: str = UNTRAINED,
    **_others: object,
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns `count` feeds: of the task that the weights were trained for, else made-up images."""
    if trained == UNTRAINED:
        return images.feeds(specs, count, seed)
    return training_feeds(find_task(task_of(SHIPPED, trained)), specs, count, seed)
