"""Scores of a trained scene: held-out views, popping, and what leaks past a dark object."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, orbit
from edgeport_recipes.wsr_splatting.losses import psnr, ssim
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.splats import Blend, Splats
from torch import Tensor

from edgeport.errors import InputError

POPPING_DEGREES = 0.2
POPPING_VIEWS = 60


@torch.no_grad()
def picture(splats: Splats, blend: Blend, camera: Camera) -> Tensor:
    """Returns the image [h, w, 3] held to 0..1."""
    return render(splats, blend, camera.view, camera.intrinsics, camera.size).clamp(0, 1)


def score(
    splats: Splats, blend: Blend, scene: Scene, lpips_weights: Path | None = None
) -> dict[str, Any]:
    """Returns PSNR in dB and SSIM of every held-out view and their means; LPIPS with weights."""
    distance = None if lpips_weights is None else _lpips(lpips_weights)
    views = []
    for index in scene.held_out:
        image = picture(splats, blend, scene.cameras[index])
        wanted = scene.images[index].float() / 255
        scores = {"psnr_db": psnr(image, wanted), "ssim": float(ssim(image, wanted))}
        if distance is not None:
            scores["lpips"] = distance(image, wanted)
        views.append({"name": scene.cameras[index].name, **scores})
    names = [name for name in views[0] if name != "name"]
    means = {name: statistics.fmean(float(view[name]) for view in views) for name in names}
    return {**means, "held_out": views}


def _lpips(weights: Path) -> Any:
    """Returns LPIPS of the package `lpips`, whose backbone is read from `weights`."""
    try:
        import lpips
    except ImportError as error:
        raise InputError("LPIPS needs its package: pip install lpips.") from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
        net.net.load_state_dict(_alexnet_slices(state, net.net), strict=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{weights}: no weights of torchvision's AlexNet ({first}).") from error

    def distance(image: Tensor, wanted: Tensor) -> float:
        planes = [one.permute(2, 0, 1)[None] * 2 - 1 for one in (image, wanted)]
        return float(net(*planes))

    return distance


def _alexnet_slices(state: dict[str, Tensor], net: torch.nn.Module) -> dict[str, Tensor]:
    """Returns torchvision's `features.N.*` under the names of LPIPS's slices, `sliceS.N.*`."""
    names = [name for name in net.state_dict() if name.startswith("slice")]
    return {name: state[f"features.{name.split('.', 1)[1]}"] for name in names}


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
