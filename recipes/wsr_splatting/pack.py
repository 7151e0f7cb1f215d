"""A scene as the GPU reads it: geometry in floats, harmonics in halfs, near splats near in memory.

geometry: 10 x float32 a splat: position x, y, z; opacity; covariance xx, xy, xz, yy, yz, zz.
harmonics: K records a splat of 4 x float16: r, g, b and the opacity's factor u.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.model import scaled_axes
from edgeport_recipes.wsr_splatting.splats import Splats, checked
from numpy.typing import NDArray

from edgeport.errors import InputError

_MOST_HALF = 65504.0
_MORTON_BITS = 16  # of each coordinate
_ROUNDING = 1.001  # the harmonics are rounded to halfs after the bound is taken


@dataclass(frozen=True)
class Packed:
    """geometry [N, 10] float32; harmonics [N, K, 4] float16; `most_factor` bounds u from above."""

    geometry: NDArray[np.float32]
    harmonics: NDArray[np.float16]
    most_factor: float

    @property
    def count(self) -> int:
        return int(self.geometry.shape[0])


def pack(splats: Splats, where: str, *, morton: bool = True) -> Packed:
    """Returns the scene in the GPU's form, by default along a Morton curve through space.

    Raises InputError, which names `where`, for no splats, values that are not finite, quaternions
    of length 0, and numbers beyond a float's or a half float's range.
    """
    splats = checked(splats.map(torch.Tensor.detach), where)
    geometry, harmonics = _geometry(splats, where), _harmonics(splats, where)
    if splats.opacity_sh is None:
        # u = 1 as a half is off by 2e-4; the opacity, in full floats, takes that back.
        geometry[:, 3] /= np.float32(C0) * harmonics[:, 0, 3].astype(np.float32)
        most = _ROUNDING
    else:
        most = _most_factor(harmonics[:, :, 3].astype(np.float64))
    if morton:
        order = morton_order(geometry[:, :3])
        geometry, harmonics = geometry[order], harmonics[order]
    return Packed(geometry, harmonics, most)


def morton_order(positions: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the indices that put points [N, 3] along a Morton curve; ties keep their order."""
    low, high = positions.min(0), positions.max(0)
    cells = (1 << _MORTON_BITS) - 1
    scaled = (positions - low) / np.maximum(high - low, np.finfo(np.float32).tiny) * cells
    grid = scaled.astype(np.uint64)
    code = np.zeros(len(positions), np.uint64)
    for bit in range(_MORTON_BITS):
        for axis in range(3):
            of_axis = (grid[:, axis] >> np.uint64(bit)) & np.uint64(1)
            code |= of_axis << np.uint64(3 * bit + axis)
    return np.argsort(code, kind="stable")


def _geometry(splats: Splats, where: str) -> NDArray[np.float32]:
    axes = scaled_axes(splats)
    rows = [
        (axes[i] * axes[j]).sum(-1) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    ]
    opacity = torch.sigmoid(splats.opacity_logits)
    columns = torch.cat([splats.positions, torch.stack([opacity, *rows], -1)], -1)
    if not torch.isfinite(columns).all():
        bad = int((~torch.isfinite(columns)).any(1).nonzero()[0])
        raise InputError(f"{where}: splat {bad} is too large for a float; remove it.")
    return np.array(columns.numpy(), np.float32)


def _harmonics(splats: Splats, where: str) -> NDArray[np.float16]:
    factor = splats.opacity_sh
    if factor is None:
        factor = torch.zeros(splats.sh.shape[:2])
        factor[:, 0] = 1 / C0
    together = torch.cat([splats.sh, factor[:, :, None]], -1).numpy()
    if np.abs(together).max() > _MOST_HALF:
        bad = int((np.abs(together) > _MOST_HALF).any((1, 2)).argmax())
        raise InputError(f"{where}: splat {bad} has a harmonic beyond {_MOST_HALF:g}; remove it.")
    return together.astype(np.float16)


def _most_factor(factors: NDArray[np.float64]) -> float:
    """Returns a bound of u over all directions and splats.

    Source: Unsoeld's theorem; the squares of the harmonics of degree l add up to (2l + 1) / 4 pi.
    """
    bound, start = np.zeros(len(factors)), 0
    for degree in range(round(factors.shape[1] ** 0.5)):
        count = 2 * degree + 1
        band = factors[:, start : start + count]
        bound += np.sqrt((band * band).sum(1) * count / (4 * pi))
        start += count
    return float(bound.max()) * _ROUNDING
