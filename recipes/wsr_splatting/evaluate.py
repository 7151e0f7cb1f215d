"""Scores of trained scenes: held-out views, popping, and what leaks past a dark object.

python -m edgeport_recipes.wsr_splatting.evaluate --scene DIR OUT/lc OUT/sorted
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from edgeport_recipes.wsr_splatting import scenes
from edgeport_recipes.wsr_splatting.cameras import Camera, orbit
from edgeport_recipes.wsr_splatting.losses import psnr, ssim
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.ply import load_ply
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.splats import Blend, Splats
from torch import Tensor

from edgeport.errors import EdgeportError

Distance = Callable[[Tensor, Tensor], Tensor]
POPPING_DEGREES = 0.2
POPPING_VIEWS = 60


@torch.no_grad()
def picture(splats: Splats, blend: Blend, camera: Camera) -> Tensor:
    """Returns the image [h, w, 3] held to 0..1."""
    return render(splats, blend, camera.view, camera.intrinsics, camera.size).clamp(0, 1)


def score(
    splats: Splats, blend: Blend, scene: Scene, distance: Distance | None = None
) -> dict[str, Any]:
    """Returns PSNR in dB and SSIM of every held-out view and their means.

    `distance` adds LPIPS: what lpips.load returns for the user's weights.
    """
    views = []
    for index in scene.held_out:
        image = picture(splats, blend, scene.cameras[index])
        wanted = scene.images[index].float() / 255
        scores = {"psnr_db": psnr(image, wanted), "ssim": float(ssim(image, wanted))}
        if distance is not None:
            scores["lpips"] = float(distance(image, wanted))
        views.append({"name": scene.cameras[index].name, **scores})
    names = [name for name in views[0] if name != "name"]
    means = {name: statistics.fmean(float(view[name]) for view in views) for name in names}
    return {**means, "held_out": views}


def popping(
    splats: Splats,
    blend: Blend,
    camera: Camera,
    centre: Tensor,
    views: int = POPPING_VIEWS,
) -> dict[str, float]:
    """Returns how much pixels change between views 0.2 degrees apart on an orbit.

    `largest_change` is the largest |I(t+1) - I(t)| of all pixels and steps; `mean_change` the mean
    of all; `largest_jump` the largest |I(t+1) - 2 I(t) + I(t-1)|: an edge that passes a pixel at a
    steady pace changes it much without a jump. In 0..1.
    """
    half = views // 2
    angles = [POPPING_DEGREES * (step - half) for step in range(views)]
    images = [picture(splats, blend, orbit(camera, centre, angle)) for angle in angles]
    steps = [(after - before).abs() for before, after in itertools.pairwise(images)]
    bends = [(images[at + 1] - 2 * images[at] + images[at - 1]).abs() for at in range(1, views - 1)]
    return {
        "largest_change": max(float(step.max()) for step in steps),
        "mean_change": statistics.fmean(float(step.mean()) for step in steps),
        "largest_jump": max(float(bend.max()) for bend in bends),
        "degrees": POPPING_DEGREES,
        "views": float(views),
    }


def leak(image: Tensor, mask: Tensor, colour: Tensor) -> float:
    """Returns mean(I) - c over the pixels of `mask` [h, w], for what should be `colour` [3]: the
    light that comes through an object."""
    return float((image[mask] - colour).mean())


def report(folder: Path, scene: Scene) -> dict[str, Any]:
    """Returns the scores of what train.py wrote to `folder`, and its popping on an orbit through
    the first held-out view."""
    splats, blend = load_ply(folder / "splats.ply")
    camera = scene.cameras[scene.held_out[0]]
    return {
        "folder": str(folder),
        "rule": blend.rule,
        "splats": splats.count,
        **score(splats, blend, scene),
        "popping": popping(splats, blend, camera, scene.centre),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--scene", required=True, help='Folder of posed photos, or "generated".')
@click.option("--downscale", type=click.IntRange(min=1), help="As it was trained.")
@click.option("--cameras", help="The camera file's name, where the folder has several.")
@click.option("--seed", default=0, show_default=True, help="Of the generated scene.")
def main(
    folders: tuple[Path, ...], scene: str, downscale: int | None, cameras: str | None, seed: int
) -> None:
    """Prints, as JSON, the scores of trained scenes on the held-out views of their photos."""
    try:
        loaded = scenes.load(scene, downscale, cameras=cameras, seed=seed)
        click.echo(json.dumps([report(folder, loaded) for folder in folders], indent=1))
    except EdgeportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
