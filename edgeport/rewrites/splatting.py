"""Splatting by a weighted sum in place of alpha blending: no sort, no gather, no running product.

Both blends take the same features of N projected splats, [10, N]: the rows of `FEATURES`, with the
depth last. Alpha blending goes through them from near to far; the weighted sum is a matrix product
over fixed chunks of splats and one division (arXiv 2410.18931, equation 7), in any order. The two
do not give the same image of the same splats: the rewrite changes the method, and the splats have
to be trained with the blend that draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgeport.errors import InputError

FEATURES = ("x", "y", "a", "b", "c", "opacity", "red", "green", "blue", "depth")
"""Centre, in the unit of length of the pixels that are given with it; the inverse of the covariance
in 2-D, as a x^2 + 2 b x y + c y^2; opacity, 0 for a splat that is not drawn; colour; depth."""

LEAST_ALPHA = 1 / 255  # below it a splat adds nothing to a pixel
MOST_ALPHA = 0.99  # what alpha blending takes for opaque
LEAST_DENOMINATOR = 1e-4
MOST_POWER = 40.0  # exp(-20) is far below the least alpha; 16-bit floats take no larger exponents

Weight = Literal["dir", "exp", "lc"]


@dataclass(frozen=True)
class Sum:
    """The weight of depth d and the background's own.

    DIR is 1, EXP exp(-sigma d^beta), LC max(0, 1 - d / sigma). Source: arXiv 2410.18931, 4.2.
    """

    rule: Weight
    sigma: float = 1.0
    beta: float = 1.0
    background_weight: float = 0.02


def pixel_centres(width: int, height: int) -> Tensor:
    """Returns x and y of every pixel's centre, rows first, [2, height * width]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()]).float() + 0.5


def alphas(features: Tensor, pixels: Tensor) -> Tensor:
    """Returns each splat's alpha at each pixel, [P, N], 0 where it is below 1/255.

    The differences are taken before they are squared: as one product of monomials the exponent
    would be a difference of large numbers, which 16-bit floats do not hold.
    """
    x, y, a, b, c, opacity = features[:6].unsqueeze(1)  # each [1, N]
    dx, dy = pixels[0].unsqueeze(1) - x, pixels[1].unsqueeze(1) - y
    power = dx * (a * dx + 2 * b * dy) + c * dy * dy
    alpha: Tensor = opacity * torch.exp(-0.5 * power.clamp(max=MOST_POWER))
    return alpha * (alpha >= LEAST_ALPHA)


class AlphaBlend(nn.Module):
    """Blends splats from near to far: sum of colour * alpha * transmittance, [P, 3].

    Maps features [10, N] and pixels [2, P]; ties of depth go by the splats' order.
    """

    background: Tensor

    def __init__(self, background: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("background", torch.tensor(background).unsqueeze(0))

    def forward(self, features: Tensor, pixels: Tensor) -> Tensor:
        depths = features[-1]
        # As ONNX's TopK, whose ties go by index; torch's exporter has no stable sort.
        order = torch.topk(depths, depths.shape[0], largest=False, sorted=True).indices
        features = features[:, order]
        alpha = alphas(features, pixels).clamp(max=MOST_ALPHA)
        # The running product: the opset that exporters write has CumSum, and no CumProd.
        remaining = torch.exp(torch.cumsum(torch.log(1 - alpha), dim=1))
        before = torch.cat([torch.ones_like(remaining[:, :1]), remaining[:, :-1]], dim=1)
        return (alpha * before) @ features[6:9].T + remaining[:, -1:] * self.background


class WeightedSum(nn.Module):
    """Divides the sum of colour * weight by the sum of weights, [P, 3], whatever the order.

    Maps features [10, N] and pixels [2, P]. Splats are taken `chunk` at a time, so that no tensor
    is larger than P times `chunk`; N is padded by splats of opacity 0.
    """

    background: Tensor

    def __init__(
        self, background: tuple[float, float, float], settings: Sum, chunk: int = 256
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise InputError(f"chunk is {chunk}; give 1 or more")
        self.settings, self.chunk = settings, chunk
        own = torch.tensor([*background, 1.0]).unsqueeze(0) * settings.background_weight
        self.register_buffer("background", own)

    def forward(self, features: Tensor, pixels: Tensor) -> Tensor:
        total = self.background  # colour * weight and weight, [1, 4]; [P, 4] after the first chunk
        for part in torch.split(features, self.chunk, dim=1):
            weights = self.depth_weights(part[-1]).unsqueeze(1)
            terms = torch.cat([part[6:9].T, torch.ones_like(weights)], dim=1) * weights
            total = total + alphas(part, pixels) @ terms
        return total[:, :3] / total[:, 3:].clamp(min=LEAST_DENOMINATOR)

    def depth_weights(self, depths: Tensor) -> Tensor:
        """Returns the weight of each depth, [N]."""
        sigma, beta = self.settings.sigma, self.settings.beta
        if self.settings.rule == "lc":
            return torch.relu(1 - depths / sigma)
        if self.settings.rule == "exp":
            return torch.exp(-sigma * depths.clamp(min=LEAST_ALPHA) ** beta)
        return torch.ones_like(depths)


def replace_alpha_blend(model: nn.Module, settings: Sum, chunk: int = 256) -> int:
    """Replaces every `AlphaBlend` below `model` with a `WeightedSum`; returns how many.

    The background stays. Train the splats again with the new blend: a scene trained for the old one
    comes out wrong. Raises InputError where there is none.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, AlphaBlend)
    ]
    if not found:
        raise InputError("the model has no AlphaBlend: nothing sorts splats in it")
    for parent, name, child in found:
        colour = child.background.flatten().tolist()
        setattr(parent, name, WeightedSum((colour[0], colour[1], colour[2]), settings, chunk))
    return len(found)
