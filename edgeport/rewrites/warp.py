"""Warps and splats whose reach is bounded, as sums of shifted images: no GridSample, no scatter.

A pixel moved by u, |u| <= R, meets only the whole shifts d from -R to R, with the bilinear weight
hat(u - d), hat(a) being max(0, 1 - |a|). Up to float rounding both functions are exact within that
bound, which the author of a network knows and a graph does not say; beyond it they are not. Every
operator is one that NPUs and GPU delegates have in each precision; the cost is (2 R + 1)^2 products
a value, and the order of the sum is fixed, unlike that of atomic additions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from edgeport.errors import InputError


def bounded_warp(image: Tensor, flow: Tensor, radius: int) -> Tensor:
    """Returns `image` sampled at each pixel's place plus `flow`, bilinearly; outside it is 0.

    `image` is [batch, channels, height, width]; `flow`, in pixels, is [batch, 2, height, width], x
    first, and lies in [-radius, radius]. It is what `grid_sample` gives with align_corners and zero
    padding. Raises InputError for shapes that do not fit.
    """
    _check(image, flow, radius)
    padded = F.pad(image, [radius] * 4)
    parts = (
        _weight(flow, x, y) * _window(padded, radius + x, radius + y, image)
        for x, y in _shifts(radius)
    )
    return _sum(parts)


def bounded_splat(values: Tensor, flow: Tensor, radius: int) -> Tensor:
    """Returns the sum of all pixels' values, each added bilinearly where `flow` takes it.

    `values` is [batch, channels, height, width]; `flow`, in pixels, is [batch, 2, height, width], x
    first, and lies in [-radius, radius]. What leaves the image is lost. It is the transpose of
    `bounded_warp`; splatting ones gives the sum of weights that an average is divided by. Raises
    InputError for shapes that do not fit.
    """
    _check(values, flow, radius)
    # A source outside the image has the value 0, and its weight does not matter.
    padded, moved = (F.pad(tensor, [radius] * 4) for tensor in (values, flow))
    parts = (
        _weight(_window(moved, radius - x, radius - y, values), x, y)
        * _window(padded, radius - x, radius - y, values)
        for x, y in _shifts(radius)
    )
    return _sum(parts)


def _check(image: Tensor, flow: Tensor, radius: int) -> None:
    if radius < 1:
        raise InputError(f"radius must be 1 or more, not {radius}")
    if image.ndim != 4 or flow.shape != (image.shape[0], 2, *image.shape[2:]):
        raise InputError(
            f"image {tuple(image.shape)} and flow {tuple(flow.shape)} do not fit: they are"
            " [batch, channels, height, width] and [batch, 2, height, width]"
        )


def _shifts(radius: int) -> Iterator[tuple[int, int]]:
    reach = range(-radius, radius + 1)
    return ((x, y) for y in reach for x in reach)


def _weight(flow: Tensor, x: int, y: int) -> Tensor:
    """Returns the bilinear weight of the shift (x, y), [batch, 1, height, width]."""
    return F.relu(1 - (flow[:, :1] - x).abs()) * F.relu(1 - (flow[:, 1:] - y).abs())


def _window(padded: Tensor, left: int, top: int, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    return padded[:, :, top : top + height, left : left + width]


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total
