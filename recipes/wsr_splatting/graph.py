"""The renderer as a tensor graph with one camera as its input: what a tensor runtime can take.

Splats are constants of the graph, their number and the image's size are fixed. Each of the N
splats is a column of [rows, N] tensors, so that nothing is gathered but by the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, orbit
from edgeport_recipes.wsr_splatting.harmonics import C0, basis
from edgeport_recipes.wsr_splatting.model import scaled_axes
from edgeport_recipes.wsr_splatting.splats import LOW_PASS, NEAR, Blend, Rule, Splats
from edgeport_recipes.wsr_splatting.trained import GENERATED, SplatScene, load_trained, starting
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

UNIT = 16.0  # pixels: in it the variance of a near splat is a 16-bit float, in pixels it is not
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
        self.register_buffer("axes", scaled_axes(splats).permute(0, 2, 1).reshape(3, -1))
        self.register_buffer("opacities", torch.sigmoid(splats.opacity_logits))
        self.register_buffer("harmonics", _harmonics(splats))
        self.register_buffer("pixels", pixel_centres(*size) / UNIT)
        self.blend: nn.Module = AlphaBlend(blend.background)

    def forward(self, view: Tensor) -> Tensor:
        image = self.blend(self.project(view), self.pixels)
        return image.T.reshape(1, 3, self.size[1], self.size[0])

    def project(self, view: Tensor) -> Tensor:
        """Returns the features of every splat in this camera, [10, N]; lengths in units."""
        turn, shift = view[:3, :3], view[:3, 3:]
        p = turn @ self.positions + shift
        depth = p[2].clamp(min=NEAR)  # those nearer are not drawn; nothing divides by 0
        x, y = p[0] / depth, p[1] / depth
        fx, fy, cx, cy = self.intrinsics
        conic = self._conic(turn, x, y, depth)
        colour, factor = self._shade(turn, p)
        opacity = self.opacities * factor * (p[2] > NEAR)
        opacity = opacity * (opacity >= LEAST_ALPHA)
        centre = torch.stack([fx / UNIT * x + cx / UNIT, fy / UNIT * y + cy / UNIT])
        return torch.cat([centre, conic, opacity.unsqueeze(0), colour, depth.unsqueeze(0)])

    def _conic(self, turn: Tensor, x: Tensor, y: Tensor, depth: Tensor) -> Tensor:
        """Returns the inverse of J W Sigma W^T J^T + 0.3 I as a, b, c, [3, N], in units.

        Sigma is R S S R^T: the three axes R S of a splat are turned and projected, and the sums of
        their squares are the variances. In 16-bit floats the entries of Sigma would be subnormal.
        """
        (fx, fy, cx, cy), (width, height) = self.intrinsics, self.size
        x = x.clamp(-(cx + MARGIN * width) / fx, (width - cx + MARGIN * width) / fx)
        y = y.clamp(-(cy + MARGIN * height) / fy, (height - cy + MARGIN * height) / fy)
        axes = (turn @ self.axes).reshape(3, 3, -1)  # coordinate, axis, splat
        u = fx / UNIT / depth * (axes[0] - x * axes[2])
        v = fy / UNIT / depth * (axes[1] - y * axes[2])
        low_pass = LOW_PASS / UNIT**2
        uu, uv, vv = (u * u).sum(0) + low_pass, (u * v).sum(0), (v * v).sum(0) + low_pass
        slope = uv / vv  # the determinant uu vv - uv^2 would overflow
        a = 1 / (uu - uv * slope)
        return torch.stack([a, -slope * a, uu / vv * a])

    def _shade(self, turn: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the colour [3, N] and the factor of the opacity [N], seen from the camera."""
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


def sorted_blend(seed: int = 0, **options: Any) -> nn.Module:
    """Returns the baseline, which sorts splats by depth and blends; options as for `build`."""
    return build("sorted", seed, **options)


def dir_sum(seed: int = 0, **options: Any) -> nn.Module:
    """Returns the weighted sum with weights of 1; options as for `build`."""
    return build("dir", seed, **options)


def exp_sum(seed: int = 0, **options: Any) -> nn.Module:
    """Returns the weighted sum with weights that fall exponentially; options as for `build`."""
    return build("exp", seed, **options)


def lc_sum(seed: int = 0, **options: Any) -> nn.Module:
    """Returns the weighted sum with weights that fall linearly; options as for `build`."""
    return build("lc", seed, **options)


def build(
    rule: Rule, seed: int, *, scene: str, splats: int, width: int, **_browser: Any
) -> SplatRenderer:
    """Returns the renderer of a scene's `splats` most opaque splats, `width` pixels wide.

    Raises InputError for a scene that is none, and for sizes below 1.
    """
    for name, value in {"splats": splats, "width": width}.items():
        if value < 1:
            raise InputError(f"wsr_splatting: {name} is {value}; give 1 or more.")
    found = _scene(scene, seed)
    trained, blend = found.of(rule)
    camera = resized(found.cameras[0], width)
    fx, fy, cx, cy = camera.intrinsics.tolist()
    model = SplatRenderer(most_opaque(trained, splats), blend, (fx, fy, cx, cy), camera.size)
    if rule != "sorted":
        settings = Sum(rule, float(blend.sigma), float(blend.beta), float(blend.background_weight))
        replace_alpha_blend(model, settings)
    return model.eval()


def _scene(scene: str, seed: int) -> SplatScene:
    return starting(seed) if scene == GENERATED else load_trained(scene)


def most_opaque(splats: Splats, count: int) -> Splats:
    """Returns the splats that cover most: by opacity times their two largest extents."""
    extents = splats.log_scales.sort(dim=1, descending=True).values[:, :2].sum(1)
    weight = torch.nn.functional.logsigmoid(splats.opacity_logits) + extents
    kept = weight.topk(min(count, splats.count)).indices.sort().values
    return splats.map(lambda values: values[kept])


def resized(camera: Camera, width: int) -> Camera:
    """Returns the camera with a frame so wide; the height follows, in whole pixels."""
    height = max(1, round(camera.size[1] * width / camera.size[0]))
    scale = torch.tensor([width / camera.size[0], height / camera.size[1]]).repeat(2)
    return Camera(camera.name, camera.view, camera.intrinsics * scale, (width, height))


def views(
    specs: Sequence[TensorSpec], count: int, seed: int, *, scene: str = GENERATED, **_others: Any
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns `count` views: of the scene's cameras in a seeded order, turned up to 4 degrees."""
    (spec,) = specs
    found = _scene(scene, 0)
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        camera = found.cameras[int(rng.integers(len(found.cameras)))]
        turned = orbit(camera, found.centre, float(rng.uniform(-4.0, 4.0)))
        feeds.append({spec.name: turned.view.numpy().astype(np.float32)})
    return feeds
