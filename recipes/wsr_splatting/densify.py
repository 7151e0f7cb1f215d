"""More splats where the picture asks for them, fewer where nothing is seen.

Splats with the steepest loss over their place on the screen are doubled: small ones cloned, large
ones split (arXiv 2308.04079, section 5.2). Which ones follows from a rank and not a threshold, so
that every method has the same number of splats at every step.
"""

from __future__ import annotations

import math

import torch
from edgeport_recipes.wsr_splatting.model import Projected, scaled_axes
from edgeport_recipes.wsr_splatting.trainable import Trainable
from torch import Tensor

LEAST_OPACITY = 0.01  # the largest seen since the last time; below it a splat goes
SMALL = 0.01  # of the scene's extent: splats up to this size are cloned, not split
_SHRINK = math.log(1.6)


class Sightings:
    """What was seen of each splat since the splats last changed."""

    def __init__(self, count: int) -> None:
        self.slopes = torch.zeros(count)  # summed |dL/d(place on the screen)|
        self.views = torch.zeros(count)
        self.opacities = torch.zeros(count)  # the largest

    @torch.no_grad()
    def add(self, seen: Projected) -> None:
        """Adds one view; the means of `seen` have their gradient."""
        assert seen.means.grad is not None
        self.slopes += seen.means.grad.norm(dim=1)
        self.views += seen.visible
        shown = torch.where(seen.visible, seen.opacities, 0.0)
        self.opacities = torch.maximum(self.opacities, shown)


@torch.no_grad()
def densify(
    scene: Trainable, sightings: Sightings, wanted: int, extent: float, rng: torch.Generator
) -> None:
    """Replaces the splats by at most `wanted`: the unseen go, the most asked for are doubled."""
    kept = (sightings.opacities >= LEAST_OPACITY).nonzero()[:, 0]
    if not len(kept):
        return  # nothing was seen yet
    steepness = (sightings.slopes / sightings.views.clamp(min=1))[kept]
    more = max(0, min(wanted - len(kept), len(kept)))
    doubled = kept[steepness.topk(more).indices]
    scales = scene.values["log_scales"].detach().exp()
    split = scales[doubled].amax(1) > SMALL * extent
    rows = torch.cat([kept, doubled])
    twins = torch.cat([torch.isin(kept, doubled), torch.ones(more, dtype=torch.bool)])
    parts = torch.cat([torch.isin(kept, doubled[split]), split])
    moves = _moves(scene, rows, rng) * parts[:, None]
    weighted = scene.settings.method != "sorted"

    def change(name: str, values: Tensor) -> Tensor:
        values = values[rows]
        if name == "positions":
            return values + moves
        if name == "log_scales":
            return values - _SHRINK * parts[:, None]
        if name == "opacity_logits":
            return torch.where(twins, halved(values, weighted), values)
        return values

    scene.change_rows(change, torch.where(twins, -1, rows))


def _moves(scene: Trainable, rows: Tensor, rng: torch.Generator) -> Tensor:
    """Returns a draw [n, 3] from each splat's own Gaussian, about its centre."""
    axes = scaled_axes(scene.splats(0).map(lambda values: values.detach()[rows]))
    return (axes * torch.randn(len(rows), 3, generator=rng)).sum(-1).T


def halved(logits: Tensor, weighted: bool) -> Tensor:
    """Returns the logit of the opacity that two splats need to look as one did.

    o / 2 where weights add; 1 - sqrt(1 - o) where transmittances multiply.
    """
    opacity = torch.sigmoid(logits)
    each = opacity / 2 if weighted else 1 - (1 - opacity).clamp(min=0).sqrt()
    return torch.logit(each.clamp(1e-6, 1 - 1e-6))
