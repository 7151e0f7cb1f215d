"""Gaussian splatting in the paper's order: project every splat, weigh it by depth, blend.

Cameras: `view` [4, 4] takes world to camera coordinates (x right, y down, z forward), `intrinsics`
[4] are fx, fy, cx, cy in pixels, and the centre of pixel (column i, row j) is (i + 0.5, j + 0.5).
Sources: 3D Gaussian splatting, arXiv 2308.04079; the weighted sum, arXiv 2410.18931, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from edgeport_recipes.wsr_splatting import raster
from edgeport_recipes.wsr_splatting.harmonics import basis
from edgeport_recipes.wsr_splatting.splats import (
    LEAST_ALPHA,
    LEAST_DENOMINATOR,
    LOW_PASS,
    MOST_ALPHA,
    NEAR,
    Blend,
    Splats,
)
from torch import Tensor

_MARGIN = 0.15  # of the frame, by which the projection's slope is taken outside it


@dataclass(frozen=True)
class Projected:
    """Splats as one camera sees them; rows that are not `visible` are not to be drawn.

    means [N, 2] in pixels; conics [N, 3], the inverse covariance's A, B, C; depths [N] in scene
    units; colours [N, 3]; opacities [N], at the centre; weights [N], 1 where the rule sorts;
    visible [N] of bool.
    """

    means: Tensor
    conics: Tensor
    depths: Tensor
    colours: Tensor
    opacities: Tensor
    weights: Tensor
    visible: Tensor


def render(
    splats: Splats, blend: Blend, view: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> Tensor:
    """Returns the image [h, w, 3] of frame `size` (w, h), not clamped; differentiable."""
    return composite(project(splats, blend, view, intrinsics, size), blend, size)


def composite(projected: Projected, blend: Blend, size: tuple[int, int]) -> Tensor:
    """Returns the image [h, w, 3] of projected splats, tile by tile."""
    if blend.rule == "sorted":
        return over_background(raster.alpha_blend(projected, size), blend)
    return normalise(raster.weighted_sum(projected, size), blend)


def over_background(blended: Tensor, blend: Blend) -> Tensor:
    """Returns C = sum c alpha T + c_B T_end for `blended` [..., 4]: the sum and T_end."""
    background = as_tensor(blend.background, blended)
    return blended[..., :3] + blended[..., 3:] * background


def normalise(sums: Tensor, blend: Blend) -> Tensor:
    """Returns (c_B w_B + sum c a w) / (w_B + sum a w) for `sums` [..., 4] of c a w and a w."""
    weight = as_tensor(blend.background_weight, sums)
    numerator = sums[..., :3] + weight * as_tensor(blend.background, sums)
    return numerator / (sums[..., 3:] + weight).clamp(min=LEAST_DENOMINATOR)


def project(
    splats: Splats, blend: Blend, view: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> Projected:
    """Returns what the camera sees of every splat, in the order given."""
    rotation, origin = view[:3, :3], view[:3, 3]
    points = splats.positions @ rotation.T + origin
    in_front = points[:, 2] > NEAR
    depths = torch.where(in_front, points[:, 2], 1.0)  # no division by what is not drawn
    slopes = points[:, :2] / depths[:, None]
    fx_fy, centre = intrinsics[:2], intrinsics[2:]
    factors, colours = shade(splats, -rotation.T @ origin)
    opacities = torch.sigmoid(splats.opacity_logits) * factors
    weights = depth_weights(depths, blend)
    return Projected(
        means=slopes * fx_fy + centre,
        conics=invert(
            covariances(splats, rotation, depths, _clamped(slopes, intrinsics, size), fx_fy)
        ),
        depths=depths,
        colours=colours,
        opacities=opacities,
        weights=weights,
        visible=in_front & (opacities >= LEAST_ALPHA) & (weights > 0),
    )


def _clamped(slopes: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns x/z and y/z held near the frame, where the linear projection is still sound."""
    frame = slopes.new_tensor(size)
    fx_fy, centre = intrinsics[:2], intrinsics[2:]
    low = -(centre + _MARGIN * frame) / fx_fy
    high = (frame - centre + _MARGIN * frame) / fx_fy
    return torch.maximum(torch.minimum(slopes, high), low)


def covariances(
    splats: Splats, rotation: Tensor, depths: Tensor, slopes: Tensor, fx_fy: Tensor
) -> Tensor:
    """Returns J W Sigma W^T J^T + 0.3 I as xx, xy, yy [N, 3] in square pixels."""
    axes = scaled_axes(splats)
    # [3, N, 3]: one product turns the axes of all splats into camera coordinates
    x, y, z = (rotation @ axes.flatten(1)).view_as(axes)
    scale = fx_fy / depths[:, None]
    u = scale[:, :1] * (x - slopes[:, :1] * z)
    v = scale[:, 1:] * (y - slopes[:, 1:] * z)
    xx, xy, yy = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    return torch.stack([xx + LOW_PASS, xy, yy + LOW_PASS], -1)


def scaled_axes(splats: Splats) -> Tensor:
    """Returns R S as [3, N, 3]: for each world coordinate, its part in the three axes."""
    quaternions = torch.nn.functional.normalize(splats.rotations, dim=-1)
    w, x, y, z = quaternions.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    rotations = torch.stack([torch.stack(row, -1) for row in rows])
    return rotations * splats.log_scales.exp()


def invert(symmetric: Tensor) -> Tensor:
    """Returns the inverses [N, 3] of 2 x 2 matrices given as xx, xy, yy."""
    xx, xy, yy = symmetric.unbind(-1)
    return torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]


def shade(splats: Splats, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Returns u [N], the factor of the opacity, and the colours [N, 3] as seen from `eye`."""
    directions = torch.nn.functional.normalize(splats.positions - eye, dim=-1)
    harmonics = basis(directions, splats.degree)
    colours = (harmonics[:, :, None] * splats.sh).sum(1) + 0.5
    if splats.opacity_sh is None:
        return torch.ones_like(splats.opacity_logits), colours.clamp(min=0)
    return (harmonics * splats.opacity_sh).sum(1), colours.clamp(min=0)


def depth_weights(depths: Tensor, blend: Blend) -> Tensor:
    """Returns w(d) of the rule; 1 where it has none."""
    if blend.rule == "exp":
        return torch.exp(-as_tensor(blend.sigma, depths) * depths ** as_tensor(blend.beta, depths))
    if blend.rule == "lc":
        return (1 - depths / as_tensor(blend.sigma, depths)).clamp(min=0)
    return torch.ones_like(depths)


def render_dense(
    splats: Splats, blend: Blend, view: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> Tensor:
    """Returns what `render` returns, from all pairs of pixels and splats: for small frames."""
    seen = project(splats, blend, view, intrinsics, size)
    index = seen.visible.nonzero()[:, 0]
    if blend.rule == "sorted":
        index = index[seen.depths[index].argsort(stable=True)]
    alphas = dense_alphas(seen, index, size)
    colours = torch.nn.functional.pad(seen.colours[index], (0, 1), value=1.0)
    if blend.rule != "sorted":
        return normalise((alphas * seen.weights[index]) @ colours, blend)
    alphas = alphas.clamp(max=MOST_ALPHA)
    through = torch.nn.functional.pad((1 - alphas).cumprod(-1), (1, 0), value=1.0)
    blended = (alphas * through[..., :-1]) @ colours[:, :3]
    return over_background(torch.cat([blended, through[..., -1:]], -1), blend)


def dense_alphas(seen: Projected, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns alpha [h, w, N] of the splats `index` at every pixel, 0 where below 1/255."""
    width, height = size
    x = torch.arange(width).to(seen.means) + 0.5 - seen.means[index, :1]
    y = torch.arange(height).to(seen.means) + 0.5 - seen.means[index, 1:]
    a, b, c = seen.conics[index, :, None].unbind(1)
    square = (a * x * x)[:, None, :] + (c * y * y)[:, :, None]
    power = -0.5 * square - b[:, :, None] * x[:, None, :] * y[:, :, None]
    alphas = seen.opacities[index, None, None] * power.exp()
    return (alphas * (alphas >= LEAST_ALPHA)).permute(1, 2, 0)


def as_tensor(value: float | tuple[float, ...] | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
