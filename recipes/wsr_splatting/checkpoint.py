"""A run's whole state in one safetensors file, so that a killed run goes on as if it never was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from edgeport_recipes._shared.tensors import (
    check_origin,
    load_tensors,
    read_facts,
    save_tensors,
)
from edgeport_recipes.wsr_splatting.densify import Sightings
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.trainable import Trainable
from torch import Tensor

_SIGHTINGS = ("slopes", "views", "opacities")


@dataclass
class Run:
    """What changes while a scene is trained; `order` are the views still to be seen this round."""

    scene: Trainable
    sightings: Sightings
    rng: torch.Generator
    order: list[int]
    step: int = 0
    seconds: float = 0.0
    first_count: int = 0


def write(path: Path, run: Run, origin: dict[str, object]) -> None:
    """Replaces the checkpoint; `origin` says of which scene it is, at which size."""
    tensors: dict[str, Tensor] = {
        **{f"value.{name}": value.detach() for name, value in run.scene.values.items()},
        **run.scene.moments,
        **{f"seen.{name}": getattr(run.sightings, name) for name in _SIGHTINGS},
        "rng": run.rng.get_state(),
        "order": torch.tensor(run.order, dtype=torch.int64),
    }
    facts = {
        "settings": run.scene.settings.to_dict(),
        "origin": origin,
        "step": run.step,
        "seconds": run.seconds,
        "first_count": run.first_count,
    }
    save_tensors(path, tensors, facts)


def read(path: Path, settings: Settings, origin: dict[str, object]) -> Run:
    """Returns the run as it was; raises InputError for a broken file and for another run's."""
    facts, tensors = read_facts(path), load_tensors(path)
    wanted = {**settings.to_dict(), **origin}
    check_origin(path, wanted, {**facts["settings"], **facts["origin"]})
    values, moments = (
        {name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}
        for start in ("value.", "")
    )
    moments = {name: one for name, one in moments.items() if name.startswith(("first.", "second."))}
    scene = Trainable(settings, values, moments)
    sightings = Sightings(scene.count)
    for name in _SIGHTINGS:
        setattr(sightings, name, tensors[f"seen.{name}"])
    rng = torch.Generator()
    rng.set_state(tensors["rng"])
    order = tensors["order"].tolist()
    return Run(scene, sightings, rng, order, facts["step"], facts["seconds"], facts["first_count"])
