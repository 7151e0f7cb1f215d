"""The nets of suite `vit` that are quantized, as plain factories for what train.py wrote.

A recipe's gate on SQNR would stop an export whose accuracy is asked for.
"""

from __future__ import annotations

from dataclasses import asdict

from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes.padre.trained import Config, new_net
from edgeport_recipes.tosa.model import build
from edgeport_recipes.tosa.train import Settings
from torch import nn

from edgeport.rewrites.token_selection import replace_top_k

TASK = "cifar10"


def attention() -> nn.Module:
    return new_net(Config(TASK, "attention"), 0).eval()


def padre2() -> nn.Module:
    return new_net(Config(TASK, "padre2"), 0).eval()


def padre3() -> nn.Module:
    return new_net(Config(TASK, "padre3"), 0).eval()


def full() -> nn.Module:
    return _tosa("full")


def topk() -> nn.Module:
    return _tosa("topk")


def onehot() -> nn.Module:
    return replace_top_k(_tosa("topk"))


def _tosa(variant: str) -> nn.Module:
    return build(variant, 0, **asdict(Settings().shape(find_task(TASK)))).eval()
