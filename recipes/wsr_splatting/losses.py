"""How far a picture is from the photograph: the training loss, PSNR and SSIM."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

DSSIM_WEIGHT = 0.2
WINDOW, DEVIATION = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2


def training_loss(image: Tensor, wanted: Tensor) -> Tensor:
    """Returns 0.8 L1 + 0.2 (1 - SSIM) of the image held to 0..1; both [h, w, 3].

    The gradient passes the clamp where it would bring a value back into the range.
    """
    image = _held(image)
    apart = (image - wanted).abs().mean()
    return (1 - DSSIM_WEIGHT) * apart + DSSIM_WEIGHT * (1 - ssim(image, wanted))


def _held(image: Tensor) -> Tensor:
    return image + (image.detach().clamp(0, 1) - image.detach())


def psnr(image: Tensor, wanted: Tensor) -> float:
    """Returns 10 log10(1 / MSE) in dB of the image held to 0..1."""
    error = (image.clamp(0, 1).double() - wanted.double()).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-12)))


def ssim(image: Tensor, wanted: Tensor) -> Tensor:
    """Returns the mean SSIM [] of two pictures [h, w, 3] in 0..1, over windows wholly inside.

    Source: Wang, Bovik, Sheikh and Simoncelli, 2004; an 11 x 11 Gaussian window of deviation 1.5,
    K1 = 0.01, K2 = 0.03.
    """
    a, b = image.permute(2, 0, 1), wanted.permute(2, 0, 1)
    mean_a, mean_b, aa, bb, ab = blur(torch.stack([a, b, a * a, b * b, a * b]))
    cross, square = mean_a * mean_b, mean_a**2 + mean_b**2
    likeness = (2 * cross + _C1) * (2 * (ab - cross) + _C2)
    return (likeness / ((square + _C1) * (aa + bb - square + _C2))).mean()


def blur(planes: Tensor) -> Tensor:
    """Returns the planes [..., h, w] under the Gaussian window, smaller by 10 each way."""
    across = _band(planes.shape[-1], planes.dtype)
    down = _band(planes.shape[-2], planes.dtype)
    return down @ (planes @ across.T)


@functools.lru_cache(maxsize=8)
def _band(length: int, dtype: torch.dtype) -> Tensor:
    """Returns the window as a matrix [length - 10, length]: small frames blur fastest so."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * DEVIATION**2))
    window /= window.sum()
    count = length - WINDOW + 1
    rows = torch.arange(count)[:, None]
    band = torch.zeros(count, length, dtype=torch.float64)
    return band.scatter_(1, rows + torch.arange(WINDOW), window.expand(count, WINDOW)).to(dtype)
