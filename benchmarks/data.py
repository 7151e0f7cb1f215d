"""The real images that suites read, from the folder EDGEPORT_DATA."""

from __future__ import annotations

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
    from edgeport_recipes._shared.vision.cifar import read

    whole = read(data / CIFAR, split)
    if count > whole.count:
        raise InputError(f"{data / CIFAR} has {whole.count} {split} images, not {count}")
    chosen = [index * whole.count // count for index in range(count)]
    images = np.asarray(whole.images[chosen], np.float32) / 255
    return images, np.asarray(whole.targets["label"][chosen])
