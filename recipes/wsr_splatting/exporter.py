"""Writes a scene as a folder that a browser opens: packed splats, shaders, a frame as data, a page.

The page draws the scene both ways. Each way has splats of its own where the scene was trained both
ways, since splats that one blend trained come out wrong with the other.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from edgeport_recipes.wsr_splatting.cameras import Camera
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.program import PROGRAMS, write_program
from edgeport_recipes.wsr_splatting.splats import Rule
from edgeport_recipes.wsr_splatting.trained import (
    GENERATED,
    SplatScene,
    Trained,
    load_trained,
    train_small,
)
from torch import Tensor

from edgeport.types import Measurement, Written

PAGE = Path(__file__).with_name("page")
_SUMS: tuple[Rule, ...] = ("lc", "exp", "dir")  # the first that was trained is shown
_SAMPLES = 2  # frames compared with the torch renderer


def export_scene(
    directory: Path, seed: int, *, scene: str, iterations: int, **_graph: Any
) -> Written:
    """Writes the folder of a trained scene; "generated" is trained first, for `iterations`.

    Raises InputError for a scene that is none, or that no renderer can draw.
    """
    if scene == GENERATED:
        with tempfile.TemporaryDirectory() as folder:
            found = train_small(seed, iterations, Path(folder))
    else:
        found = load_trained(scene)
    sets = programs_of(found)
    size = found.cameras[0].size
    write_program(directory, sets, [camera.to_dict() for camera in found.cameras], size)
    shutil.copytree(PAGE, directory, dirs_exist_ok=True)
    seen = [found.cameras[index] for index in found.held_out[:_SAMPLES]]
    return Written(
        computed="fp16",
        feeds=tuple(
            {"view": one.view.numpy(), "intrinsics": one.intrinsics.numpy()} for one in seen
        ),
        outputs=tuple(
            tuple(_picture(sets[name], one, size).numpy() for name in PROGRAMS) for one in seen
        ),
        notes=_notes(found),
        measured=tuple(_measured(found)),
    )


def programs_of(scene: SplatScene) -> dict[str, Trained]:
    """Returns the splats and the blend of each program; the same object where both draw one set."""
    summed = next((rule for rule in _SUMS if rule in scene.sets), _SUMS[0])
    return {"sort_free": scene.of(summed), "sorted": scene.of("sorted")}


@torch.no_grad()
def _picture(trained: Trained, camera: Camera, size: tuple[int, int]) -> Tensor:
    return render(*trained, camera.view, camera.intrinsics, size)


def _notes(scene: SplatScene) -> tuple[str, ...]:
    kinds = {"sorted": "alpha blending"}
    names = [kinds.get(rule, rule.upper()) for rule in scene.sets]
    if "sorted" in scene.sets and len(scene.sets) > 1:
        return ()
    other = "with a weighted sum (--method lc)" if "sorted" in scene.sets else "--method sorted"
    return (
        f"the splats were trained with {names[0]}, and the other picture shows them as they are;"
        f" train the scene {other} too for a picture of its own",
    )


def _measured(scene: SplatScene) -> list[Measurement]:
    """Returns the quality on held-out views, as it was scored when the scene was trained."""
    found = []
    for rule, scores in scene.scores.items():
        told = {"iterations": str(scores["settings"]["iterations"]), "scene": scene.name}
        views = tuple(float(one["psnr_db"]) for one in scores["held_out"])
        found += [
            Measurement(
                f"psnr_db:{rule}", scores["psnr_db"], "dB", "host", views, environment=told
            ),
            Measurement(f"ssim:{rule}", scores["ssim"], "1", "host", environment=told),
        ]
    levels = {one.metric: one.value for one in found}
    for rule in scene.sets:
        if rule != "sorted" and {f"psnr_db:{rule}", "psnr_db:sorted"} <= levels.keys():
            loss = levels["psnr_db:sorted"] - levels[f"psnr_db:{rule}"]
            found.append(Measurement(f"psnr_loss_db:{rule}", loss, "dB", "host"))
    return found
