"""Real spherical harmonics up to degree 3, with the signs that 3DGS files use."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor

C0 = 1 / (2 * sqrt(pi))
_C1 = sqrt(3 / (4 * pi))
_C2 = (sqrt(15 / pi) / 2, sqrt(5 / pi) / 4, sqrt(15 / pi) / 4)
_C3 = (
    sqrt(35 / (2 * pi)) / 4,
    sqrt(105 / pi) / 2,
    sqrt(21 / (2 * pi)) / 4,
    sqrt(7 / pi) / 4,
    sqrt(105 / pi) / 4,
)


def basis(directions: Tensor, degree: int) -> Tensor:
    """Returns the (degree + 1)^2 harmonics [N, K] of unit `directions` [N, 3].

    Within a degree the order runs over m = -l..l, and the sign is (-1)^m: the Condon-Shortley
    phase, which gives degree 1 as (-y, z, -x).
    """
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree > 0:
        values += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree > 1:
        values += _second(x, y, z)
    if degree > 2:
        values += _third(x, y, z)
    return torch.stack(values, -1)


def _second(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        _C2[0] * x * y,
        -_C2[0] * y * z,
        _C2[1] * (2 * z * z - x * x - y * y),
        -_C2[0] * x * z,
        _C2[2] * (x * x - y * y),
    ]


def _third(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        -_C3[0] * y * (3 * xx - yy),
        _C3[1] * x * y * z,
        -_C3[2] * y * (4 * zz - xx - yy),
        _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
        -_C3[2] * x * (4 * zz - xx - yy),
        _C3[4] * z * (xx - yy),
        -_C3[0] * x * (xx - 3 * yy),
    ]
