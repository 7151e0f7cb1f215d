"""The parameters of a splat scene, and how its splats are blended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from edgeport.errors import InputError

# The same in every renderer, and in the rewrite of the tensor graph.
from edgeport.rewrites.splatting import LEAST_ALPHA as LEAST_ALPHA
from edgeport.rewrites.splatting import LEAST_DENOMINATOR as LEAST_DENOMINATOR
from edgeport.rewrites.splatting import MOST_ALPHA as MOST_ALPHA

Rule = Literal["sorted", "dir", "exp", "lc"]
RULES: tuple[Rule, ...] = ("sorted", "dir", "exp", "lc")
"""Alpha blending in order of depth; or a weighted sum whose weight of depth d is 1 (DIR),
exp(-sigma d^beta) (EXP) or max(0, 1 - d / sigma) (LC). Source: arXiv 2410.18931, section 4.2."""

NEAR = 0.2  # splats nearer than this, in scene units, are not drawn
LOW_PASS = 0.3  # square pixels added to both variances of a projected splat


@dataclass(frozen=True)
class Blend:
    """What a whole scene shares: the rule, its sigma and beta, and the background.

    `background` is RGB in 0..1. `sigma` is in scene units for LC; `background_weight` is the
    background's own weight in the sum. While they are trained, these are tensors.
    """

    rule: Rule = "sorted"
    sigma: float | Tensor = 10.0
    beta: float | Tensor = 1.0
    background: tuple[float, float, float] | Tensor = (0.0, 0.0, 0.0)
    background_weight: float | Tensor = 0.02


@dataclass(frozen=True)
class Splats:
    """Gaussians as they are trained: N of them, with K = (degree + 1)^2 harmonics each.

    positions [N, 3] in scene units; log_scales [N, 3]; rotations [N, 4], quaternions w, x, y, z of
    any length but 0; opacity_logits [N]; sh [N, K, 3], the colour's coefficients; opacity_sh
    [N, K], the factor of the opacity by direction, or None where it is 1.
    """

    positions: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    sh: Tensor
    opacity_sh: Tensor | None = None

    @property
    def count(self) -> int:
        return int(self.positions.shape[0])

    @property
    def degree(self) -> int:
        return int(self.sh.shape[1] ** 0.5) - 1

    def map(self, change: Callable[[Tensor], Tensor]) -> Splats:
        """Returns the splats with `change` applied to every tensor, such as a choice of rows."""
        kept = {one.name: getattr(self, one.name) for one in fields(self)}
        return Splats(**{name: None if old is None else change(old) for name, old in kept.items()})

    def at_degree(self, degree: int) -> Splats:
        """Returns the splats with no harmonics above `degree`."""
        count = (min(degree, self.degree) + 1) ** 2
        opacity_sh = None if self.opacity_sh is None else self.opacity_sh[:, :count]
        return replace(self, sh=self.sh[:, :count], opacity_sh=opacity_sh)


def checked(splats: Splats, where: str) -> Splats:
    """Returns the splats with unit quaternions; raises InputError for what cannot be drawn.

    That is: no splats at all, a value that is not finite, a quaternion of length 0.
    """
    if splats.count == 0:
        raise InputError(f"{where}: holds no splats; give a scene that was trained.")
    for one in fields(splats):
        values = getattr(splats, one.name)
        if values is None:
            continue
        bad = ~torch.isfinite(values).flatten(1 if values.ndim > 1 else 0)
        bad = bad.any(1) if bad.ndim > 1 else bad
        if bad.any():
            raise InputError(
                f"{where}: {one.name} of {int(bad.sum())} splats are not finite, the first is "
                f"splat {int(bad.nonzero()[0])}; remove them."
            )
    lengths = splats.rotations.norm(dim=1, keepdim=True)
    if (lengths < 1e-6).any():
        first = int((lengths[:, 0] < 1e-6).nonzero()[0])
        raise InputError(f"{where}: splat {first} has a quaternion of length 0; remove it.")
    return replace(splats, rotations=splats.rotations / lengths)
