"""Trained weights, with what is needed to build their network beside them; imports no torch.

A user names a file of train.py, or by their task the weights that come with a recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport_recipes._shared.tensors import load_tensors, read_facts, save_tensors

from edgeport.errors import InputError

if TYPE_CHECKING:
    from torch import nn

UNTRAINED = "untrained"


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


def task_of(folder: Path, weights: str) -> str:
    """Returns the name of the task that the weights were trained for."""
    ours = [file for file in folder.glob("*.safetensors") if file.stem.split("-")[0] == weights]
    name = read_config(ours[0] if ours else Path(weights)).get("task")
    if not isinstance(name, str):
        raise InputError(f"weights {weights}: no file of train.py; train them again.")
    return name


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
