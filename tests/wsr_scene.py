"""Small splat scenes and cameras, for the tests of the recipe wsr_splatting."""

from __future__ import annotations

import torch
from edgeport_recipes.wsr_splatting.splats import Blend, Rule, Splats
from torch import Tensor

SIZE = (41, 33)
PARAMETERS = ("positions", "log_scales", "rotations", "opacity_logits", "sh", "opacity_sh")


def random_splats(
    count: int = 60, degree: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Splats:
    """Returns splats of many shapes about 4 units before a camera at the origin."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    terms = (degree + 1) ** 2
    opacity_sh = draw(count, terms) * 0.1
    opacity_sh[:, 0] += 3
    return Splats(
        positions=draw(count, 3) + torch.tensor([0, 0, 4], dtype=dtype),
        log_scales=draw(count, 3) * 0.3 - 2.5,
        rotations=draw(count, 4),
        opacity_logits=draw(count),
        sh=draw(count, terms, 3) * 0.3,
        opacity_sh=opacity_sh,
    )


def camera(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Returns view, intrinsics and size; the principal point is not the middle."""
    view = torch.eye(4, dtype=dtype)
    return view, torch.tensor([40, 42, 20.3, 15.8], dtype=dtype), SIZE


def blend(rule: Rule, dtype: torch.dtype = torch.float64) -> Blend:
    """Returns a blend whose numbers are leaves that can be differentiated."""

    def leaf(value: float | list[float]) -> Tensor:
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    sigma = leaf(6.0 if rule == "lc" else 0.3)
    return Blend(rule, sigma, leaf(0.9), leaf([0.1, 0.5, 0.7]), leaf(0.05))
