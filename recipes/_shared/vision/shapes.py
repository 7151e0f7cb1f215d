"""Generated images of ten outlines on clutter, to be told apart: a task without a licence.

An outline spans several patches, in any place, size, colour and rotation, and the clutter is made
of pieces of outlines, so that one patch alone says little: tokens have to be mixed.
"""

from __future__ import annotations

import functools
import math

import torch
from edgeport_recipes._shared.vision.classes import loss, score
from edgeport_recipes._shared.vision.tasks import Part, Split, Task
from torch import Tensor

SIDE = 32
CLASSES = (
    "disc", "ring", "square", "frame", "triangle", "cross", "star", "crescent", "bars", "halves",
)  # fmt: skip
COUNTS = {"train": 20_000, "test": 4000}
_CHUNK = 2000
_PIECES = 2  # of clutter
_TEST_SEED = 1_000_000


@functools.cache
def data(part: Part, seed: int = 0) -> Split:
    """Returns 20,000 images for training, which follow from the seed, or the same 4,000 tests."""
    drawn = torch.Generator().manual_seed(seed if part == "train" else _TEST_SEED)
    chunks = [draw(_CHUNK, drawn) for _ in range(COUNTS[part] // _CHUNK)]
    images, labels = (torch.cat(columns) for columns in zip(*chunks, strict=True))
    return Split(images, {"label": labels})


def draw(count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns images `count x 3 x 32 x 32` uint8 and the classes of their outlines."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=drawn)

    labels = torch.randint(len(CLASSES), (count,), generator=drawn)
    image = uniform(0.2, 0.8, 3, 1, 1) + 0.08 * _smooth_noise(count, drawn)
    for _ in range(_PIECES):  # parts of outlines: half of each is cut off
        kinds = torch.randint(len(CLASSES), (count,), generator=drawn)
        radius, angle = uniform(3.0, 6.0), uniform(0, 2 * math.pi)
        x, y = _turned(uniform(2, 30), uniform(2, 30), radius, angle)
        inside = _inside(x, y, kinds) * torch.sigmoid(radius[:, None, None] * 2 * x)
        image = _painted(image, inside, uniform(0.1, 0.9, 3, 1, 1))
    radius, angle = uniform(6.0, 12.0), uniform(0, 2 * math.pi)
    middle = [uniform(-1, 1) * (15 - radius) + 16 for _ in range(2)]
    x, y = _turned(middle[0], middle[1], radius, angle)
    brighter = torch.where(image.mean((1, 2, 3)) < 0.5, 0.3, -0.3)[:, None, None, None]
    colour = uniform(0.2, 0.8, 3, 1, 1) + brighter
    image = _painted(image, _inside(x, y, labels), colour + 0.08 * _smooth_noise(count, drawn))
    image = image + 0.03 * torch.randn(image.shape, generator=drawn)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _smooth_noise(count: int, drawn: torch.Generator) -> Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=drawn)
    return torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")


def _turned(column: Tensor, row: Tensor, radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Returns every pixel's place `count x 32 x 32` in units of a turned outline's radius."""
    at = torch.arange(SIDE) + 0.5
    x = (at[None, None, :] - column[:, None, None]) / radius[:, None, None]
    y = (at[None, :, None] - row[:, None, None]) / radius[:, None, None]
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return cosine * x + sine * y, cosine * y - sine * x


def _painted(image: Tensor, inside: Tensor, colour: Tensor) -> Tensor:
    return image + inside[:, None] * (colour - image)


def _inside(x: Tensor, y: Tensor, kinds: Tensor) -> Tensor:
    """Returns how far each pixel lies inside the outline of its image's kind, 0 to 1."""
    found = torch.zeros_like(x)
    for kind in range(len(CLASSES)):
        chosen = kinds == kind
        found[chosen] = _OUTLINES[kind](x[chosen], y[chosen])
    return torch.sigmoid(8 * found)


def _disc(x: Tensor, y: Tensor, radius: float = 1.0) -> Tensor:
    return radius - torch.hypot(x, y)


def _square(x: Tensor, y: Tensor, half: float = 0.85) -> Tensor:
    return half - torch.maximum(x.abs(), y.abs())


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.minimum(width - x.abs(), height - y.abs())


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    sides = [0.5 + math.cos(a) * x + math.sin(a) * y for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return torch.minimum(torch.minimum(sides[0], sides[1]), sides[2])


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_disc(x, y), -_disc(x, y, 0.6))


def _frame(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_square(x, y), -_square(x, y, 0.5))


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0))


def _star(x: Tensor, y: Tensor) -> Tensor:
    return 0.7 + 0.3 * torch.cos(5 * torch.atan2(y, x)) - torch.hypot(x, y)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_disc(x, y), -_disc(x - 0.45, y, 0.8))


def _bars(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_box(x - 0.5, y, 0.25, 1.0), _box(x + 0.5, y, 0.25, 1.0))


def _halves(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_disc(x, y), x.abs() - 0.2)


_OUTLINES = (
    _disc, _ring, _square, _frame, _triangle, _cross, _star, _crescent, _bars, _halves,
)  # fmt: skip
TASK = Task("shapes", SIDE, len(CLASSES), False, data, loss, score, "top1", "more", False, True)
