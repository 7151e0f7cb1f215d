"""Detection of generated shapes: one to four textured ones of three classes, on clutter.

Every cell of the 8 x 8 grid says which class, if any, has its centre there, and with what box. A
shape is larger than a cell, so a cell by itself sees neither the class nor the extent.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from edgeport_recipes._shared.vision.tasks import Part, Split, Task
from numpy.typing import NDArray
from torch import Tensor

from edgeport.errors import InputError

SIDE, CELL = 32, 4
GRID = SIDE // CELL
CLASSES = ("rectangle", "ellipse", "triangle")
MOST = 4
"""Shapes in an image at most; absent ones have class -1 and a box of zeros."""
SMALLEST, LARGEST = 8.0, 24.0
"""Sides of a shape in pixels."""
TRIES = 16
OUTPUTS = len(CLASSES) + 4
KEPT = 16
"""Detections of an image that are scored, the surest first."""
COUNTS = {"train": 10_000, "test": 2_000}
CHUNK = 1_000

Array = NDArray[np.float32]
Generator = np.random.Generator


@dataclass(frozen=True)
class Detections:
    """Of n images the surest k: boxes `n x k x 4` (centre, size in pixels), classes, sureness."""

    boxes: Tensor
    classes: Tensor
    sureness: Tensor


def data(part: Part, seed: int) -> Split:
    """Returns images with `boxes` `n x 4 x 4` (centre x, y, width, height; pixels) and `classes`.

    `classes` is `n x 4`, -1 where there is no shape; the test part is that of any seed.
    """
    return _made(COUNTS[part], *((2, 0) if part == "test" else (1, seed)))


@functools.lru_cache(maxsize=2)
def _made(count: int, *seed: int) -> Split:
    return generate(count, list(seed))


def generate(count: int, seed: int | list[int]) -> Split:
    """Returns `count` images that follow from the seed; raises InputError for a count below 1."""
    if count < 1:
        raise InputError(f"boxes: cannot make {count} images; give 1 or more.")
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    boxes = np.empty((count, MOST, 4), np.float32)
    classes = np.empty((count, MOST), np.int64)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        boxes[part], classes[part] = draw_shapes(rng, part.stop - part.start)
        images[part] = paint(rng, boxes[part], classes[part])
    targets = {"boxes": torch.from_numpy(boxes), "classes": torch.from_numpy(classes)}
    return Split(torch.from_numpy(images), targets)


def draw_shapes(rng: Generator, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Returns boxes `count x 4 x 4` and classes; no shape hides much of another.

    Of `TRIES` candidates the first that are clear of one another are kept, as many as were drawn.
    """
    sizes = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), (count, TRIES, 2)))
    # Neither side is more than twice the other.
    sizes[..., 1] = sizes[..., 1].clip(sizes[..., 0] / 2, sizes[..., 0] * 2)
    centres = rng.uniform(sizes / 2, SIDE - sizes / 2)
    boxes = np.concatenate([centres, sizes], axis=-1).astype(np.float32)
    wanted = rng.integers(1, MOST + 1, count)
    kept = np.zeros((count, TRIES), bool)
    for index in range(TRIES):
        near = _hides(boxes[:, :index], boxes[:, index, None]) & kept[:, :index]
        kept[:, index] = ~near.any(1) & (kept.sum(1) < wanted)
    first = np.argsort(~kept, axis=1, kind="stable")[:, :MOST]
    kept = np.take_along_axis(kept, first, 1)
    boxes = np.take_along_axis(boxes, first[..., None], 1)
    classes = np.where(kept, rng.integers(0, len(CLASSES), (count, MOST)), -1)
    return np.where(kept[..., None], boxes, np.float32(0)), classes


def _hides(first: Array, second: Array) -> NDArray[np.bool_]:
    """Says of boxes whether they share a fifth of the smaller one, or have their centres close."""
    low = np.maximum(first[..., :2] - first[..., 2:] / 2, second[..., :2] - second[..., 2:] / 2)
    high = np.minimum(first[..., :2] + first[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2)
    shared = (high - low).clip(0).prod(-1)
    smaller = np.minimum(first[..., 2:].prod(-1), second[..., 2:].prod(-1))
    apart = np.abs(first[..., :2] - second[..., :2]).max(-1)
    close: NDArray[np.bool_] = (shared > 0.2 * smaller) | (apart < CELL)
    return close


def paint(rng: Generator, boxes: Array, classes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Returns images `n x 3 x 32 x 32`: waves, short strokes over them, then the shapes in order.

    Waves cover the ground and every shape, so that an edge of a texture is not one of a shape.
    """
    count = len(boxes)
    canvas = _texture(rng, count)
    for _ in range(5):
        centre, half = rng.uniform(0, SIDE, (count, 2)), rng.uniform(0.5, 2.5, (count, 2))
        stroke = np.concatenate([centre, 2 * half], axis=-1)
        inside = _mask(stroke, rng.integers(0, len(CLASSES), count))
        canvas = np.where(inside[..., None], _colour(rng, count), canvas)
    for index in range(MOST):
        inside = _mask(boxes[:, index], classes[:, index])
        canvas = np.where(inside[..., None], _texture(rng, count), canvas)
    noisy = 255 * canvas + rng.normal(0, 6, canvas.shape)
    return noisy.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)


def _pixels() -> tuple[Array, Array]:
    """Returns x and y of the pixel centres, `1 x 32 x 32`."""
    steps = np.arange(SIDE, dtype=np.float32) + 0.5
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return x[None], y[None]


def _mask(boxes: NDArray[np.floating], classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns `n x 32 x 32`: which pixel centres lie in the shape of each box and class."""
    (x, y), (left, top, width, height) = _pixels(), boxes.T[:, :, None, None]
    across, below = 2 * (x - left) / np.maximum(width, 1), 2 * (y - top) / np.maximum(height, 1)
    rectangle = np.maximum(np.abs(across), np.abs(below)) <= 1
    ellipse = across * across + below * below <= 1
    triangle = rectangle & (2 * np.abs(across) <= 1 + below)
    kind = classes[:, None, None]
    inside: NDArray[np.bool_] = np.select(
        [kind == 0, kind == 1, kind == 2], [rectangle, ellipse, triangle], False
    )
    return inside


def _colour(rng: Generator, count: int) -> NDArray[np.float64]:
    return rng.uniform(0, 1, (count, 1, 1, 3))


def _texture(rng: Generator, count: int) -> NDArray[np.float64]:
    """Returns `n x 32 x 32 x 3`: a colour with a wave of another in it, 3 to 12 pixels long."""
    (x, y), angle = _pixels(), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    pace = 2 * np.pi / rng.uniform(3, 12, (count, 1, 1))
    wave = np.sin(pace * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 7, angle.shape))
    weight = 0.25 * (0.5 + 0.5 * wave[..., None])
    return _colour(rng, count) * (1 - weight) + _colour(rng, count) * weight


def loss(outputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Returns focal loss of the class maps, plus L1 of offset and log-size at the centre cells.

    Both are sums over the batch divided by the number of shapes. Source of the focal loss:
    arXiv 1708.02002 with gamma 2; its alpha is 0.5 here.
    """
    image, shape = torch.nonzero(targets["classes"] >= 0, as_tuple=True)
    boxes, classes = targets["boxes"][image, shape], targets["classes"][image, shape]
    column, row = (boxes[:, :2] / CELL).long().clamp(max=GRID - 1).unbind(1)
    wanted = torch.zeros_like(outputs[:, : len(CLASSES)])
    wanted[image, classes, row, column] = 1
    logits = outputs[:, : len(CLASSES)]
    surprise = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (surprise * (1 - (-surprise).exp()).square()).sum()
    found = outputs[image, len(CLASSES) :, row, column]
    regression = (found - _encode(boxes, row, column)).abs().sum()
    return (focal + regression) / max(len(image), 1)


def _encode(boxes: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Returns for boxes `m x 4` the offset from the cell's middle in cells, and log(size / 12)."""
    middle = torch.stack([column, row], dim=1) + 0.5
    return torch.cat([boxes[:, :2] / CELL - middle, (boxes[:, 2:] / 12).log()], dim=1)


def decode(outputs: Tensor) -> Detections:
    """Returns the surest 16 of the 8 x 8 x 3 detections of each image, duplicates last.

    A detection that overlaps a surer one of its class by more than 0.5 (IoU) is a duplicate, and
    gets sureness 0.
    """
    count = len(outputs)
    scores = outputs[:, : len(CLASSES)].sigmoid().flatten(1)
    sureness, place = scores.topk(KEPT)
    classes, cell = place // GRID**2, place % GRID**2
    values = outputs[:, len(CLASSES) :].flatten(2).gather(2, cell[:, None].expand(count, 4, KEPT))
    middle = torch.stack([cell % GRID, cell // GRID], dim=1) + 0.5
    centre, size = (middle + values[:, :2]) * CELL, values[:, 2:].clamp(-3, 3).exp() * 12
    boxes = torch.cat([centre, size], dim=1).mT
    rival = (iou(boxes, boxes) > 0.5) & (classes[:, :, None] == classes[:, None])
    alive = torch.ones_like(classes, dtype=torch.bool)
    for index in range(1, KEPT):
        alive[:, index] = ~(rival[:, index, :index] & alive[:, :index]).any(1)
    order = torch.sort(sureness * alive, dim=1, descending=True, stable=True).indices
    boxes = boxes.gather(1, order[..., None].expand(count, KEPT, 4))
    return Detections(boxes, classes.gather(1, order), (sureness * alive).gather(1, order))


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the intersection over union of boxes `n x a x 4` with `n x b x 4`, `n x a x b`."""
    one, two = first[:, :, None], second[:, None]
    low = torch.maximum(one[..., :2] - one[..., 2:] / 2, two[..., :2] - two[..., 2:] / 2)
    high = torch.minimum(one[..., :2] + one[..., 2:] / 2, two[..., :2] + two[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    joined = one[..., 2:].prod(-1) + two[..., 2:].prod(-1) - shared
    return shared / joined.clamp(min=1e-9)


def score(outputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `ap50`: the average precision of each image at IoU 0.5, all classes together.

    Detections are ranked within their image, not over the whole set as COCO does, so that an image
    has a score of its own: mean it over images.
    """
    return {"ap50": average_precision(decode(outputs), targets)}


def average_precision(found: Detections, targets: Mapping[str, Tensor]) -> Tensor:
    """Returns the area under precision over recall of each image, `n`, in 0..1.

    A detection is right where a shape of its class, not found by a surer one, overlaps it by IoU
    0.5 or more; precision at a recall is the best at that recall or above. Those of sureness 0
    count for nothing.
    """
    present = targets["classes"] >= 0
    if empty := int((~present.any(1)).sum()):
        raise InputError(f"boxes: {empty} images have no shape, so have no score: leave them out.")
    overlap = iou(found.boxes, targets["boxes"])
    same = (found.classes[:, :, None] == targets["classes"][:, None]) & present[:, None]
    right = _match(torch.where(same, overlap, 0) * (found.sureness > 0)[..., None])
    rank = torch.arange(1, right.shape[1] + 1).to(right)
    precision = right.cumsum(1) / rank
    best = precision.flip(1).cummax(1).values.flip(1)
    return (right * best).sum(1) / present.sum(1)


def _match(overlap: Tensor) -> Tensor:
    """Returns 1 for each detection, surest first, that takes a free shape at IoU 0.5; `n x k`."""
    free = torch.ones_like(overlap[:, 0])
    right = torch.zeros_like(overlap[:, :, 0])
    for index in range(overlap.shape[1]):
        best, shape = (overlap[:, index] * free).max(1)
        right[:, index] = (best >= 0.5).to(right)
        free.scatter_reduce_(1, shape[:, None], 1 - right[:, index, None], "prod")
    return right


TASK = Task(
    name="boxes",
    side=SIDE,
    outputs=OUTPUTS,
    dense=True,
    data=data,
    loss=loss,
    score=score,
    metric="ap50",
    better="more",
    restricted=False,
)
