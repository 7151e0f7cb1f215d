"""Trained weights, with what is needed to build their network beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport_recipes._shared.tensors import load_tensors, read_facts, save_tensors

from edgeport.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def save_weights(path: Path, net: nn.Module, config: Mapping[str, Any]) -> None:
    """Replaces the file with the network's state; `config` is plain JSON values."""
    save_tensors(path, net.state_dict(), config)


def read_config(path: Path) -> dict[str, Any]:
    """Returns the configuration beside the weights, read without torch.

    Raises InputError for a file that is not there and for one that `save_weights` did not write.
    """
    return read_facts(path)


def load_weights(path: Path, net: nn.Module) -> None:
    """Puts the weights into the network; raises InputError where they are another one's."""
    try:
        net.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"weights {path}: of another network ({reason}).") from error


def ship(source: Path, target: Path) -> None:
    """Writes trained weights as fp16, half as large; raises InputError where they must stay here.

    python -m edgeport_recipes._shared.vision.weights SOURCE TARGET
    """
    from edgeport_recipes._shared.vision.tasks import find_task

    config = read_config(source)
    task = find_task(str(config.get("task")))
    if task.restricted:
        raise InputError(f"{source}: trained on {task.name}, which may not be passed on; keep it.")
    tensors = {name: value.half() for name, value in load_tensors(source).items()}
    save_tensors(target, tensors, config)


if __name__ == "__main__":
    ship(*map(Path, sys.argv[1:]))
