"""The parameters of a splat scene, and how its splats are blended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Rule = Literal["sorted", "dir", "exp", "lc"]
RULES: tuple[Rule, ...] = ("sorted", "dir", "exp", "lc")
"""Alpha blending in order of depth; or a weighted sum whose weight of depth d is 1 (DIR),
exp(-sigma d^beta) (EXP) or max(0, 1 - d / sigma) (LC). Source: arXiv 2410.18931, section 4.2."""

NEAR = 0.2  # splats nearer than this, in scene units, are not drawn
LOW_PASS = 0.3  # square pixels added to both variances of a projected splat
LEAST_ALPHA = 1 / 255  # a splat adds nothing to a pixel where its alpha is below this
MOST_ALPHA = 0.99  # of the sorted renderer
LEAST_DENOMINATOR = 1e-4


@dataclass(frozen=True)
class Blend:
    """What a whole scene shares: the rule, its sigma and beta, and the background.

    `background` is RGB in 0..1. `sigma` is in scene units for LC; `background_weight` is the
    background's own weight in the sum.
    """

    rule: Rule = "sorted"
    sigma: float = 10.0
    beta: float = 1.0
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    background_weight: float = 0.02


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
