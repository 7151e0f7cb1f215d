"""The real images that suites read, from the folder EDGEPORT_DATA."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import InputError

CIFAR = "classification/cifar10_jpeg_10k_10k.npz"

Labels = NDArray[np.int64]


def data_folder(suite: str, *needed: str) -> Path:
    """Returns EDGEPORT_DATA; raises InputError where it does not hold what the suite reads."""
    named = os.environ.get("EDGEPORT_DATA")
    if not named:
        raise InputError(f"suite {suite} needs EDGEPORT_DATA, the folder of weights and images")
    for file in needed:
        if not Path(named, file).exists():
            raise InputError(f"suite {suite} reads {Path(named, file)}: check EDGEPORT_DATA")
    return Path(named)


def cifar_images(data: Path, split: str, count: int) -> tuple[NDArray[Any], Labels]:
    """Returns images of a split, `count x 3 x 32 x 32` float32 in 0..1, and labels.

    They are spread evenly: the file is sorted by class. Raises InputError for more than there are.
    """
    from PIL import Image

    with np.load(data / CIFAR, allow_pickle=False) as arrays:
        packed, offsets = arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_offsets"]
        labels = arrays[f"{split}_labels"].astype(np.int64)
    if count > len(labels):
        raise InputError(f"{data / CIFAR} has {len(labels)} {split} images, not {count}")
    chosen = [index * len(labels) // count for index in range(count)]
    files = [packed[offsets[i] : offsets[i + 1]] for i in chosen]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    scaled = pixels.astype(np.float32) / 255
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels[chosen]
