"""Loss and scores of monocular depth, where a network gives log-depth for each pixel of a patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeport.errors import InputError

SIDE = 32
PATCH = 4
OUTPUTS = PATCH * PATCH
SHORTEST, LONGEST = 0.01, 100.0
"""Depths in metres between which a prediction is held: an untrained net must not overflow."""


def loss(outputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean over images of L1 plus half the SILog of log-depth, holes left out.

    SILog is sqrt(mean(e^2) - 0.85 mean(e)^2) of the errors e of one image: it forgives most of a
    wrong scale, which L1 does not. An image of holes alone counts zero. Source: arXiv 1406.2283.
    """
    depth = targets["depth"]
    seen = depth > 0
    error = torch.where(seen, to_pixels(outputs) - depth.clamp(min=SHORTEST).log(), 0)
    absolute, mean = _mean(error.abs(), seen), _mean(error, seen)
    variance = _mean(error.square(), seen) - 0.85 * mean.square()
    # The root has no slope at zero, where an image is exact.
    silog = variance.clamp(min=1e-8).sqrt()
    return (absolute + 0.5 * silog).mean()


def score(outputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns for each image, over the pixels that are no holes, three scores.

    `absrel` is the mean of |depth - truth| / truth, `rmse` is in metres, and `delta1` is the share
    of pixels within a factor of 1.25. Raises InputError for an image with no depth at all.
    """
    depth = targets["depth"]
    seen = depth > 0
    if empty := int((~seen.flatten(1).any(1)).sum()):
        raise InputError(f"depth: {empty} images are all holes, so have no score: leave them out.")
    truth = torch.where(seen, depth, 1)
    guess = to_pixels(outputs).exp().clamp(SHORTEST, LONGEST)
    error = guess - truth
    ratio = torch.maximum(guess / truth, truth / guess)
    return {
        "absrel": _mean(torch.where(seen, error.abs() / truth, 0), seen),
        "rmse": _mean(torch.where(seen, error.square(), 0), seen).sqrt(),
        "delta1": _mean((seen & (ratio < 1.25)).float(), seen),
    }


def to_pixels(outputs: Tensor) -> Tensor:
    """Returns `n x 16 x 8 x 8`, the values of each patch row by row, as `n x 32 x 32`."""
    return F.pixel_shuffle(outputs, PATCH).squeeze(1)


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    """Returns the mean over the seen pixels of each image; `values` are zero elsewhere."""
    return values.flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)
