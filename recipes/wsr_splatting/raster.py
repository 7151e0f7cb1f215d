"""Tiles, and the two ways to blend splats inside one, with gradients in closed form.

The exponent of a splat is a quadratic polynomial of the pixel, so that a tile's alphas are
exp(M P): M holds the monomials x^2, xy, y^2, x, y, 1 of the tile's pixels, in coordinates from its
centre (they stay small, which 32-bit floats need), and P the six coefficients of each splat, ln of
its opacity included. Both renderers and their gradients are then a few matrix products per tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from edgeport_recipes.wsr_splatting.splats import LEAST_ALPHA, MOST_ALPHA
from torch import Tensor

if TYPE_CHECKING:
    from edgeport_recipes.wsr_splatting.model import Projected

TILE = (8, 8)  # width, height in pixels: larger ones waste work on small splats
CHUNK = 512  # splats at a time
MOST_KEPT = 1 << 26  # alphas, between the two passes: 256 MiB
_LEAST_POWER = -8.0  # exp of it is below 1/255
LEAST_TRANSMITTANCE = 1e-4  # the sorted renderer stops where every pixel of the tile is below


@dataclass(frozen=True)
class Tiles:
    """Which splats may reach which tile of a frame.

    splats [P] is an index per pair, tile by tile and in the order given within one; the pairs of
    tile t (row-major) are bounds[t]..bounds[t + 1]; centres [P, 2] are those of the pairs' tiles.
    """

    splats: Tensor
    centres: Tensor
    bounds: tuple[int, ...]
    columns: int
    rows: int


def weighted_sum(seen: Projected, size: tuple[int, int]) -> Tensor:
    """Returns [h, w, 4]: the sums over the splats of c alpha w and of alpha w."""
    index = seen.visible.nonzero()[:, 0]
    weights = seen.weights[index, None]
    features = torch.cat([seen.colours[index] * weights, weights], -1)
    return _draw(WeightedSum, seen, index, features, size)


def alpha_blend(seen: Projected, size: tuple[int, int]) -> Tensor:
    """Returns [h, w, 4]: the colours blended front to back, and the transmittance behind all."""
    index = seen.visible.nonzero()[:, 0]
    index = index[seen.depths[index].detach().argsort(stable=True)]
    return _draw(AlphaBlend, seen, index, seen.colours[index], size)


def _draw(
    function: type[torch.autograd.Function],
    seen: Projected,
    index: Tensor,
    features: Tensor,
    size: tuple[int, int],
) -> Tensor:
    means, conics = seen.means[index], seen.conics[index]
    levels = seen.opacities[index].log()
    with torch.no_grad():
        tiles = assign(means, conics, levels, size)
    return untile(function.apply(means, conics, levels, features, tiles), tiles, size)


def assign(means: Tensor, conics: Tensor, levels: Tensor, size: tuple[int, int]) -> Tiles:
    """Returns the tiles in which each splat has a pixel's centre within its ellipse alpha = 1/255.

    `levels` [N] is ln of the opacities; the ellipse is r^2 = 2 ln(255 o).
    """
    columns, rows = -(-size[0] // TILE[0]), -(-size[1] // TILE[1])
    squares = 2 * (levels - math.log(LEAST_ALPHA)).clamp(min=0) + 1e-4  # no pixel less for rounding
    splats, x, y = _boxes(means, conics, squares, size)
    tile = means.new_tensor(TILE)
    centres = (torch.stack([x, y], -1) + 0.5) * tile
    kept = nearest_squares(centres - means[splats], conics[splats]) <= squares[splats]
    ids, order = (y * columns + x)[kept].sort(stable=True)
    order = kept.nonzero()[:, 0][order]
    bounds = torch.searchsorted(ids, torch.arange(columns * rows + 1)).tolist()
    return Tiles(splats[order], centres[order], tuple(bounds), columns, rows)


def _boxes(
    means: Tensor, conics: Tensor, squares: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns splat, column and row [pairs] of every tile that the box of an ellipse meets."""
    a, b, c = conics.unbind(-1)
    extents = (torch.stack([c, a], -1) * (squares / (a * c - b * b))[:, None]).sqrt()
    frame, tile = means.new_tensor(size), means.new_tensor(TILE)
    first = (means - extents - 0.5).ceil().clamp(min=0)
    last = torch.minimum((means + extents - 0.5).floor(), frame - 1)
    low, high = (first / tile).floor().long(), (last / tile).floor().long()
    across, down = ((high - low + 1) * (last >= first).all(-1, keepdim=True)).unbind(-1)
    counts = across * down
    splats = torch.repeat_interleave(counts)
    within = torch.arange(len(splats)) - (counts.cumsum(0) - counts)[splats]
    wide = across[splats]
    return splats, low[splats, 0] + within % wide, low[splats, 1] + within // wide


def nearest_squares(offsets: Tensor, conics: Tensor) -> Tensor:
    """Returns the least A x^2 + 2 B x y + C y^2 [pairs] over the pixels' rectangle of a tile.

    `offsets` [pairs, 2] lead from the splat to the tile's centre. The least is at the splat, or on
    one of the two edges that face it.
    """
    half = (offsets.new_tensor(TILE) - 1) / 2
    low, high = offsets - half, offsets + half
    a, b, c = conics.unbind(-1)
    x, y = torch.maximum(low, -high).clamp(min=0).copysign(offsets).unbind(-1)
    along_y = (-b * x / c).clamp(low[:, 1], high[:, 1])
    along_x = (-b * y / a).clamp(low[:, 0], high[:, 0])
    on_column = a * x * x + (2 * b * x + c * along_y) * along_y
    on_row = c * y * y + (2 * b * y + a * along_x) * along_x
    return torch.minimum(on_column, on_row)


def untile(tiled: Tensor, tiles: Tiles, size: tuple[int, int]) -> Tensor:
    """Returns [h, w, C] from [tiles, pixels of one, C]."""
    width, height = TILE
    grid = tiled.view(tiles.rows, tiles.columns, height, width, -1).transpose(1, 2)
    image = grid.reshape(tiles.rows * height, tiles.columns * width, -1)
    return image[: size[1], : size[0]]


def monomials(like: Tensor) -> Tensor:
    """Returns x^2, xy, y^2, x, y, 1 [pixels, 6] of a tile's pixels, from its centre."""
    width, height = TILE
    x = torch.arange(width).to(like) + 0.5 - width / 2
    y = (torch.arange(height).to(like) + 0.5 - height / 2)[:, None]
    x, y = x.expand(height, width).flatten(), y.expand(height, width).flatten()
    return torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], -1)


def coefficients(means: Tensor, conics: Tensor, levels: Tensor, tiles: Tiles) -> Tensor:
    """Returns P [6, pairs]: ln alpha of each pair's splat as a polynomial of the tile's pixels."""
    x, y = (means[tiles.splats] - tiles.centres).unbind(-1)
    a, b, c = conics[tiles.splats].unbind(-1)
    p, q = a * x + b * y, b * x + c * y
    constant = levels[tiles.splats] - 0.5 * (x * p + y * q)
    return torch.stack([-0.5 * a, -b, -0.5 * c, p, q, constant])


def pull_back(
    slopes: Tensor, means: Tensor, conics: Tensor, tiles: Tiles
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dL/d(means, conics, levels) from `slopes` [pairs, 6] = dL/dP, the transpose of
    `coefficients`."""
    xx, xy, yy, x, y, one = slopes.unbind(-1)
    mx, my = (means[tiles.splats] - tiles.centres).unbind(-1)
    dx, dy = x - mx * one, y - my * one  # moments from the splat's own centre
    moments = torch.stack(
        [
            dx,
            dy,
            -0.5 * (xx - mx * (x + dx)),
            -(xy - mx * y - my * dx),
            -0.5 * (yy - my * (y + dy)),
            one,
        ],
        -1,
    )
    total = moments.new_zeros(len(means), 6).index_add_(0, tiles.splats, moments)
    a, b, c = conics.unbind(-1)
    x, y = total[:, 0], total[:, 1]
    return torch.stack([a * x + b * y, b * x + c * y], -1), total[:, 2:5], total[:, 5]


def pieces(tiles: Tiles) -> list[tuple[int, int, int]]:
    """Returns (tile, start, end) of at most CHUNK pairs each, in order."""
    return [
        (tile, start, min(start + CHUNK, end))
        for tile, (first, end) in enumerate(zip(tiles.bounds, tiles.bounds[1:]))
        for start in range(first, end, CHUNK)
    ]


def alphas_of(pixels: Tensor, piece: Tensor) -> Tensor:
    """Returns exp(M P) [pixels, n], 0 where below 1/255."""
    # exp is twenty times slower where its result is no normal number
    alphas = (pixels @ piece).clamp_(min=_LEAST_POWER).exp_()
    # threshold keeps what is above; the cut keeps 1/255 itself
    return torch.nn.functional.threshold_(alphas, LEAST_ALPHA * (1 - 1e-7), 0.0)


def keeps(tiles: Tiles, pixels: Tensor) -> bool:
    """Says whether the alphas may stay in memory for the backward pass, or are made again."""
    return len(tiles.splats) * len(pixels) <= MOST_KEPT


class WeightedSum(torch.autograd.Function):
    """sum alpha f over the splats of each tile; [tiles, pixels, F]."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, conics: Tensor, levels: Tensor, features: Tensor, tiles: Tiles
    ) -> Tensor:
        pixels = monomials(means)
        polynomials = coefficients(means, conics, levels, tiles)
        values = features[tiles.splats]
        sums = means.new_zeros(len(tiles.bounds) - 1, len(pixels), features.shape[1])
        ctx.drawn, keep = [], keeps(tiles, pixels)
        for tile, start, end in pieces(tiles):
            alphas = alphas_of(pixels, polynomials[:, start:end])
            sums[tile].addmm_(alphas, values[start:end])
            ctx.drawn.append(((tile, start, end), alphas if keep else None))
        ctx.save_for_backward(means, conics, polynomials, values)
        ctx.tiles = tiles
        return sums

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        means, conics, polynomials, values = ctx.saved_tensors
        pixels = monomials(means)
        slope = slope.contiguous()
        slopes = means.new_empty(len(values), 6)
        value_slopes = torch.empty_like(values)
        for (tile, start, end), alphas in ctx.drawn:
            if alphas is None:
                alphas = alphas_of(pixels, polynomials[:, start:end])
            torch.mm(alphas.T, slope[tile], out=value_slopes[start:end])
            alphas = alphas * (slope[tile] @ values[start:end].T)
            torch.mm(alphas.T, pixels, out=slopes[start:end])
        grads = pull_back(slopes, means, conics, ctx.tiles)
        return *grads, _to_splats(value_slopes, ctx.tiles, len(means)), None


def _to_splats(values: Tensor, tiles: Tiles, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_add_(0, tiles.splats, values)


def blend_chunk(pixels: Tensor, piece: Tensor, through: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns alpha [pixels, n], the transmittance before each splat [pixels, n] and after all.

    `through` [pixels] is the transmittance before the first.
    """
    alphas = alphas_of(pixels, piece).clamp_(max=MOST_ALPHA)
    passed = alphas.new_empty(alphas.shape[0], alphas.shape[1] + 1)
    passed[:, 0] = through
    torch.sub(1, alphas, out=passed[:, 1:])
    passed = torch.cumprod(passed, 1)
    return alphas, passed[:, :-1], passed[:, -1]


class AlphaBlend(torch.autograd.Function):
    """sum c alpha T front to back, and the last T, of each tile; [tiles, pixels, 4]."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, conics: Tensor, levels: Tensor, colours: Tensor, tiles: Tiles
    ) -> Tensor:
        pixels = monomials(means)
        polynomials = coefficients(means, conics, levels, tiles)
        values = colours[tiles.splats]
        blended = means.new_zeros(len(tiles.bounds) - 1, len(pixels), 4)
        blended[..., 3] = 1
        ctx.drawn, keep = [], keeps(tiles, pixels)
        for tile, start, end in pieces(tiles):
            if blended[tile, :, 3].max() < LEAST_TRANSMITTANCE:
                continue
            before = blended[tile, :, 3].clone()
            chunk = blend_chunk(pixels, polynomials[:, start:end], before)
            blended[tile, :, :3].addmm_(chunk[0] * chunk[1], values[start:end])
            blended[tile, :, 3] = chunk[2]
            ctx.drawn.append(((tile, start, end), before, chunk if keep else None))
        ctx.save_for_backward(means, conics, polynomials, values, blended)
        ctx.tiles = tiles
        return blended

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        means, conics, polynomials, values, blended = ctx.saved_tensors
        pixels = monomials(means)
        slope = slope.contiguous()
        slopes = means.new_zeros(len(values), 6)
        value_slopes = torch.zeros_like(values)
        behind = slope[..., 3] * blended[..., 3]  # dL/dC . (what lies behind the splat)
        for (tile, start, end), before, chunk in reversed(ctx.drawn):
            alphas, passed, _ = chunk or blend_chunk(pixels, polynomials[:, start:end], before)
            shares = alphas * passed
            colour_slope = slope[tile, :, :3]
            torch.mm(shares.T, colour_slope, out=value_slopes[start:end])
            shares *= colour_slope @ values[start:end].T
            level_slopes, behind[tile] = _blend_slopes(alphas, shares, behind[tile])
            torch.mm(level_slopes.T, pixels, out=slopes[start:end])
        grads = pull_back(slopes, means, conics, ctx.tiles)
        return *grads, _to_splats(value_slopes, ctx.tiles, len(means)), None


def _blend_slopes(alphas: Tensor, shares: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dL/d ln alpha [pixels, n], and `behind` with this chunk's part added.

    With s_i = dL/dC . c_i alpha_i T_i and B_i the sum of s_j behind i:
    dL/d ln alpha_i = s_i - alpha_i / (1 - alpha_i) B_i; 0 where alpha was held at its maximum.
    """
    sums = shares.cumsum(1)
    total = sums[:, -1] + behind
    rest = sums.neg_().add_(total[:, None])
    slopes = shares.addcmul_(alphas / (alphas - 1), rest)
    return slopes.masked_fill_(alphas >= MOST_ALPHA, 0.0), total
