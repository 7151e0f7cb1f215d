"""Grids: how a range becomes a scale and a zero point, and how constants are rounded to a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from edgeport.quantize.config import BITS, IntegerType
from edgeport.quantize.graph import Array

_PART_VALUES = 1 << 24  # rounded at once


@dataclass(frozen=True)
class Grid:
    """Integers of `dtype` that stand for scale * (integer - zero_point).

    `scale` and `zero_point` are arrays: of rank 0 for a whole tensor, of rank 1 along `axis`, or of
    the tensor's rank where `block` elements along `axis` share one.
    """

    dtype: IntegerType
    scale: Array
    zero_point: Array
    axis: int | None = None
    block: int = 0


# The HTP computes with an int16 as 256 high + low, both int8: beyond 127 * 256 + 127 the high part
# saturates, and the largest weight of each channel would be 0.4 % short (v75, QAIRT 2.51, emulated:
# 53 to 60 dB in place of 83, all of it bias).
INT16_REACH = 32639


def limits(dtype: IntegerType) -> tuple[int, int]:
    """Returns the least and greatest integer of a type."""
    bits = BITS[dtype]
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def asymmetric(low: float, high: float, dtype: IntegerType) -> Grid:
    """Returns the grid whose range is [low, high], which holds 0, with 0 exactly on the grid."""
    least, greatest = limits(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (greatest - least))
    if not scale > np.finfo(np.float32).tiny:  # all values are zero: any step is right
        scale = np.float32(1 / (greatest - least))
    zero = np.clip(np.rint(least - low / np.float64(scale)), least, greatest)
    return Grid(dtype, np.array(scale), np.array(zero, storage(dtype)))


def symmetric(
    values: Array, dtype: IntegerType, axis: int | None, block: int = 0, shrink: bool = False
) -> Grid:
    """Returns the grid around 0 of a constant: with one scale, one per index of `axis` or block.

    `shrink` searches, per scale, the factor below 1 with the least squared rounding error, which
    a few bits need: the largest weight alone would set the step of all others.
    """
    rows = _rows(values, axis, block)  # [..., those of one scale]
    greatest = INT16_REACH if dtype == "int16" else limits(dtype)[1]
    peak = np.maximum(rows.max(axis=-1), -rows.min(axis=-1)).astype(np.float64)
    peak = np.where(peak > 0, peak, 1.0)
    best = peak
    if shrink:
        rows = rows.astype(np.float64)
        least_error = np.full(peak.shape, np.inf)
        for factor in np.linspace(1.0, 0.5, 26):
            scale = (factor * peak / greatest)[..., None]
            rounded = np.clip(np.rint(rows / scale), -greatest - 1, greatest) * scale
            error = ((rounded - rows) ** 2).sum(axis=-1)
            best = np.where(error < least_error, factor * peak, best)
            least_error = np.minimum(error, least_error)
    scale = np.maximum(best / greatest, np.finfo(np.float32).tiny).astype(np.float32)
    if axis is None:
        scale = scale.reshape(())
    elif block:
        scale = np.moveaxis(scale, -1, axis)
    return Grid(dtype, scale, np.zeros(scale.shape, storage(dtype)), axis, block)


def _rows(values: Array, axis: int | None, block: int) -> Array:
    """Returns the values, last axis: those that share one scale."""
    if axis is None:
        return values.reshape(1, -1)
    if not block:
        return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    moved = np.moveaxis(values, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, block)


def storage(dtype: IntegerType) -> np.dtype[np.generic]:
    """Returns numpy's type for the stored integers; int4 is ml_dtypes' own."""
    if dtype == "int4":
        import ml_dtypes

        return cast("np.dtype[np.generic]", np.dtype(ml_dtypes.int4))
    return np.dtype(dtype)


def at_least(grid: Grid, scale: Array) -> Grid:
    """Returns a grid around 0 whose steps are nowhere smaller than `scale`."""
    return replace(grid, scale=np.maximum(grid.scale, scale).astype(np.float32))


def to_integers(values: Array, grid: Grid) -> Array:
    """Returns the stored integers nearest to `values`."""
    least, greatest = limits(grid.dtype)
    integers = np.empty(values.shape, storage(grid.dtype))
    for part, scale, zero in _parts(grid, values.shape):
        exact = np.rint(values[part].astype(np.float64) / scale) + zero
        integers[part] = exact.clip(least, greatest).astype(np.int64).astype(integers.dtype)
    return integers


def to_reals(integers: Array, grid: Grid) -> Array:
    """Returns what the stored integers stand for, as float32."""
    reals = np.empty(integers.shape, np.float32)
    for part, scale, zero in _parts(grid, integers.shape):
        reals[part] = (integers[part].astype(np.float64) - zero) * scale
    return reals


def _parts(grid: Grid, shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], Array, Array]]:
    """Yields the parts of an array of this shape, each with its scales and zero points.

    An array of a GiB in float32 would take several more at once in float64.
    """
    scale, zero = _broadcast(grid, len(shape), shape)
    if not shape:
        yield (), scale, zero
        return
    rows = max(1, _PART_VALUES * shape[0] // max(1, math.prod(shape)))
    for start in range(0, shape[0], rows):
        part = (slice(start, start + rows),)
        own = [one[part] if one.ndim and one.shape[0] > 1 else one for one in (scale, zero)]
        yield part, own[0], own[1]


def steps_of(grid: Grid, shape: tuple[int, ...]) -> Array:
    """Returns the step of each element of a constant of this shape, float64."""
    return np.broadcast_to(_broadcast(grid, len(shape), shape)[0], shape)


def _broadcast(grid: Grid, rank: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    scale, zero = grid.scale.astype(np.float64), grid.zero_point.astype(np.float64)
    if grid.axis is None:
        return scale, zero
    if grid.block:
        return np.repeat(scale, grid.block, grid.axis), np.repeat(zero, grid.block, grid.axis)
    column = [1] * rank
    column[grid.axis] = shape[grid.axis]
    return scale.reshape(column), zero.reshape(column)
