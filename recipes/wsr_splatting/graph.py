"""The renderer as a tensor graph with one camera as its input: what a tensor runtime can take.

Splats are constants of the graph, their number and the image's size are fixed. Each of the N
splats is a column of [rows, N] tensors, so that nothing is gathered but by the sort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.splatting import (
    LEAST_ALPHA,
    AlphaBlend,
    Sum,
    pixel_centres,
    replace_alpha_blend,
)
from edgeport.types import TensorSpec
from edgeport_recipes.wsr_splatting.harmonics import C0, basis
from edgeport_recipes.wsr_splatting.splats import LOW_PASS, NEAR, Blend, Splats

MARGIN = 0.15  # of the frame: beyond it the slope of the projection is held


class SplatRenderer(nn.Module):
    """Maps `view` [4, 4] (world to camera, OpenCV axes) to an image [1, 3, h, w], not clamped.

    `intrinsics` are fx, fy, cx, cy in pixels; a phone's camera keeps them, and so does the graph.
    """

    output_names = ("image",)

    def __init__(
        self,
        splats: Splats,
        blend: Blend,
        intrinsics: tuple[float, float, float, float],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.intrinsics, self.size, self.degree = intrinsics, size, splats.degree
        self.register_buffer("positions", splats.positions.T.contiguous())
        self.register_buffer("covariances", covariances(splats))
        self.register_buffer("opacities", torch.sigmoid(splats.opacity_logits))
        self.register_buffer("harmonics", _harmonics(splats))
        self.register_buffer("pixels", pixel_centres(*size))
        self.blend: nn.Module = AlphaBlend(blend.background)

    def forward(self, view: Tensor) -> Tensor:
        image = self.blend(self.project(view), self.pixels)
        return image.T.reshape(1, 3, self.size[1], self.size[0])

    def project(self, view: Tensor) -> Tensor:
        """Returns the features of every splat in this camera, [10, N]."""
        turn, shift = view[:3, :3], view[:3, 3:]
        p = turn @ self.positions + shift
        depth = p[2].clamp(min=NEAR)  # those nearer are not drawn; nothing divides by 0
        x, y = p[0] / depth, p[1] / depth
        fx, fy, cx, cy = self.intrinsics
        conic = self._conic(turn, x, y, depth)
        colour, factor = self._shade(turn, p)
        opacity = self.opacities * factor * (p[2] > NEAR)
        opacity = opacity * (opacity >= LEAST_ALPHA)
        centre = torch.stack([fx * x + cx, fy * y + cy])
        return torch.cat([centre, conic, opacity.unsqueeze(0), colour, depth.unsqueeze(0)])

    def _conic(self, turn: Tensor, x: Tensor, y: Tensor, depth: Tensor) -> Tensor:
        """Returns the inverse of J W Sigma W^T J^T + 0.3 I as a, b, c, [3, N]."""
        (fx, fy, cx, cy), (width, height) = self.intrinsics, self.size
        x = x.clamp(-(cx + MARGIN * width) / fx, (width - cx + MARGIN * width) / fx)
        y = y.clamp(-(cy + MARGIN * height) / fy, (height - cy + MARGIN * height) / fy)
        # Rows of J W: each is a combination of the rows of the rotation.
        u = [fx / depth * (turn[0, k] - x * turn[2, k]) for k in range(3)]
        v = [fy / depth * (turn[1, k] - y * turn[2, k]) for k in range(3)]
        su, sv = self._times_covariance(u), self._times_covariance(v)
        uu = sum(a * b for a, b in zip(u, su)) + LOW_PASS
        uv = sum(a * b for a, b in zip(u, sv))
        vv = sum(a * b for a, b in zip(v, sv)) + LOW_PASS
        area = uu * vv - uv * uv
        return torch.stack([vv / area, -uv / area, uu / area])

    def _times_covariance(self, row: Sequence[Tensor]) -> list[Tensor]:
        xx, xy, xz, yy, yz, zz = self.covariances
        x, y, z = row
        return [xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z]

    def _shade(self, turn: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the colour [3, N] and the factor of the opacity [N], both seen from the camera."""
        direction = turn.T @ (p * torch.rsqrt((p * p).sum(0, keepdim=True)))
        shaded = (self.harmonics * basis(direction.T, self.degree)).sum(2)
        return torch.relu(shaded[:3] + 0.5), shaded[3]


def _harmonics(splats: Splats) -> Tensor:
    """Returns the coefficients of colour and opacity, [4, N, K]; without the latter it is 1."""
    own = splats.opacity_sh
    if own is None:
        own = torch.zeros(splats.sh.shape[:2])
        own[:, 0] = 1 / C0
    return torch.cat([splats.sh.permute(2, 0, 1), own.unsqueeze(0)]).contiguous()


def covariances(splats: Splats) -> Tensor:
    """Returns R S S R^T of each splat as xx, xy, xz, yy, yz, zz, [6, N]."""
    w, x, y, z = nn.functional.normalize(splats.rotations, dim=1).T
    turn = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )
    half = turn * splats.log_scales.exp().T.unsqueeze(0)  # [3, 3, N]
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    return torch.stack([(half[i] * half[j]).sum(0) for i, j in pairs])
