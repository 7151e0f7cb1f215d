"""CIFAR-10 from `classification/cifar10_jpeg_10k_10k.npz` of the folder EDGEPORT_DATA.

10,000 training and 10,000 test images as JPEG bytes, sorted by class. No licence is stated: weights
trained on them are not redistributed.
"""

from __future__ import annotations

import functools
import io
import itertools
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes._shared.files import find_data
from edgeport_recipes._shared.vision.classes import loss, score
from edgeport_recipes._shared.vision.tasks import Part, Split, Task

FILE = "classification/cifar10_jpeg_10k_10k.npz"


def data(part: Part, _seed: int = 0) -> Split:
    """Returns the images of a part and their classes; the seed changes nothing."""
    return read(find_data(FILE), part)


@functools.cache
def read(file: Path, part: str) -> Split:
    """Returns the images of a part of such a file, and their classes."""
    from PIL import Image

    with np.load(file, allow_pickle=False) as arrays:
        packed, offsets = arrays[f"{part}_jpeg"].tobytes(), arrays[f"{part}_offsets"]
        labels = arrays[f"{part}_labels"].astype(np.int64)
    pictures = [
        np.asarray(Image.open(io.BytesIO(packed[first:last])).convert("RGB"))
        for first, last in itertools.pairwise(offsets)
    ]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return Split(images, {"label": torch.from_numpy(labels)})


TASK = Task("cifar10", 32, 10, False, data, loss, score, "top1", "more", True, flips=True)
