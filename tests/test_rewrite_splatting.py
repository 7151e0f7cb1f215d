"""The rewrite of alpha blending to a weighted sum, against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.splatting import (
    AlphaBlend,
    Sum,
    WeightedSum,
    pixel_centres,
    replace_alpha_blend,
)

BACKGROUND = (0.1, 0.2, 0.3)


def made_up(count: int, seed: int = 0) -> Tensor:
    """Returns features [10, count] of splats over a frame of 8 x 6 pixels."""
    rng = torch.Generator().manual_seed(seed)
    at = torch.rand(2, count, generator=rng) * torch.tensor([[8.0], [6.0]])
    conic = torch.stack([torch.full((count,), 0.3), torch.zeros(count), torch.full((count,), 0.4)])
    rest = torch.rand(5, count, generator=rng)
    return torch.cat([at, conic, rest[:4], 1 + 4 * rest[4:]])


def by_hand(features: Tensor, settings: Sum | None) -> Tensor:
    """Returns the image [6 * 8, 3], pixel by pixel and splat by splat."""
    columns = features.T.tolist()
    if settings is None:
        columns.sort(key=lambda column: column[9])
    image = []
    for row in range(6):
        for column in range(8):
            pixel = (column + 0.5, row + 0.5)
            blend = _over if settings is None else _averaged
            image.append(blend([(_alpha(one, pixel), one) for one in columns], settings))
    return torch.tensor(image)


def _alpha(splat: list[float], pixel: tuple[float, float]) -> float:
    x, y, a, b, c, opacity = splat[:6]
    dx, dy = pixel[0] - x, pixel[1] - y
    alpha = opacity * math.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy))
    return alpha if alpha >= 1 / 255 else 0.0


def _over(found: list[tuple[float, list[float]]], _: Sum | None) -> list[float]:
    colour, left = [0.0, 0.0, 0.0], 1.0
    for alpha, splat in found:
        alpha = min(alpha, 0.99)
        colour = [old + left * alpha * own for old, own in zip(colour, splat[6:9])]
        left *= 1 - alpha
    return [old + left * own for old, own in zip(colour, BACKGROUND)]


def _averaged(found: list[tuple[float, list[float]]], settings: Sum | None) -> list[float]:
    assert settings is not None
    rules = {
        "dir": lambda depth: 1.0,
        "exp": lambda depth: math.exp(-settings.sigma * depth**settings.beta),
        "lc": lambda depth: max(0.0, 1 - depth / settings.sigma),
    }
    weights = [alpha * rules[settings.rule](splat[9]) for alpha, splat in found]
    total = settings.background_weight + sum(weights)
    return [
        (settings.background_weight * own + sum(w * s[6 + k] for w, (_, s) in zip(weights, found)))
        / total
        for k, own in enumerate(BACKGROUND)
    ]


RULES = [Sum("dir"), Sum("exp", sigma=0.3, beta=1.5), Sum("lc", sigma=3.0)]


@pytest.mark.parametrize("settings", RULES, ids=lambda one: one.rule)
def test_a_weighted_sum_is_the_formula(settings: Sum) -> None:
    features = made_up(11)  # not a multiple of the chunk
    image = WeightedSum(BACKGROUND, settings, chunk=4)(features, pixel_centres(8, 6))
    torch.testing.assert_close(image, by_hand(features, settings), rtol=1e-5, atol=1e-6)


def test_alpha_blending_is_the_formula() -> None:
    features = made_up(11)
    image = AlphaBlend(BACKGROUND)(features, pixel_centres(8, 6))
    torch.testing.assert_close(image, by_hand(features, None), rtol=1e-5, atol=1e-5)


def test_only_the_sum_does_not_ask_for_an_order() -> None:
    features, pixels = made_up(40), pixel_centres(8, 6)
    shuffled = features[:, torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    summed = WeightedSum(BACKGROUND, RULES[2])
    assert (summed(features, pixels) - summed(shuffled, pixels)).abs().max() < 1e-6
    blended = AlphaBlend(BACKGROUND)
    assert (blended(features, pixels) - blended(shuffled, pixels)).abs().max() < 1e-5
    shuffled[-1] = features[-1]  # the depths of other splats
    assert (blended(features, pixels) - blended(shuffled, pixels)).abs().max() > 0.05


def test_the_rewrite_replaces_every_blend_and_keeps_the_background() -> None:
    model = nn.Sequential(nn.ModuleDict({"left": AlphaBlend(BACKGROUND)}), AlphaBlend((1, 1, 1)))
    assert replace_alpha_blend(model, RULES[2]) == 2
    assert not any(isinstance(module, AlphaBlend) for module in model.modules())
    empty = torch.zeros(10, 1)
    found = model[0]["left"](empty, pixel_centres(1, 1))
    torch.testing.assert_close(found, torch.tensor([BACKGROUND]))


def test_where_nothing_is_blended_there_is_nothing_to_rewrite() -> None:
    with pytest.raises(InputError, match="no AlphaBlend"):
        replace_alpha_blend(nn.Linear(1, 1), RULES[0])
