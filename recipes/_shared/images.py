"""Seeded procedural inputs, for recipes whose data set cannot be shipped. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import InputError
from edgeport.types import TensorSpec

_SHARED = 0.9  # the colour channels of a photograph mostly carry the same brightness


def feeds(
    specs: Sequence[TensorSpec], count: int, seed: int
) -> list[dict[str, NDArray[np.floating]]]:
    """Returns `count` feeds for `specs`; every seed gives other data, the same seed the same.

    Inputs `B x 3 x H x W` are images (zero mean and unit deviation per channel), other float
    inputs unit Gaussians. Raises InputError for an input that is not of a float type.
    """
    for spec in specs:
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            raise InputError(f"{spec}: only float inputs can be made up; give --calib-data.")
    return [
        {
            spec.name: _tensor(spec, np.random.default_rng((seed, sample, position)))
            for position, spec in enumerate(specs)
        }
        for sample in range(count)
    ]


def _tensor(spec: TensorSpec, rng: np.random.Generator) -> NDArray[np.floating]:
    if len(spec.shape) == 4 and spec.shape[1] == 3:
        images = [_image(*spec.shape[2:], rng) for _ in range(spec.shape[0])]
        return np.stack(images).astype(spec.dtype)
    return rng.standard_normal(spec.shape, dtype=np.float32).astype(spec.dtype)


def _image(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns `3 x H x W` noise whose amplitude falls as 1/f, as that of photographs does."""
    brightness, *colours = (_noise(height, width, rng) for _ in range(4))
    rest = (1 - _SHARED**2) ** 0.5
    return np.stack([_normalised(_SHARED * brightness + rest * colour) for colour in colours])


def _noise(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    rows = np.fft.fftfreq(height).astype(np.float32)[:, None]
    columns = np.fft.rfftfreq(width).astype(np.float32)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # no mean
    parts = rng.standard_normal((*frequency.shape, 2), dtype=np.float32)
    spectrum = parts.view(np.complex64)[..., 0] / frequency
    return _normalised(np.fft.irfft2(spectrum, s=(height, width)))


def _normalised(plane: NDArray[np.floating]) -> NDArray[np.float32]:
    centred = plane - plane.mean(dtype=np.float64)
    deviation = centred.std(dtype=np.float64)
    return (centred / max(deviation, 1e-12)).astype(np.float32)
