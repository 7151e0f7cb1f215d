"""The user's data with its targets: an .npz, or a folder of images with a sub-folder per class.

Feeds are what the app gives the exported graph: calibration data is read the same way
(`edgeport.feeds`), images resized to the input and in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.boundary import Boundary
from edgeport.errors import InputError
from edgeport.feeds import IMAGE_SUFFIXES, Feed, array_feeds, image_feed, load_arrays
from edgeport.types import TensorSpec

LABEL = "label"
"""The target of a folder of images: the index of the class, sub-folders in sorted order."""


@dataclass(frozen=True)
class Labelled:
    """Samples in feeds of `batch` each, and their targets, whose first axis is the sample.

    `feeds` gives them anew each time, in order. `files` hold them; `classes` are the names of a
    folder's sub-folders.
    """

    name: str
    batch: int
    targets: Mapping[str, NDArray[Any]]
    feed_count: int
    feeds: Callable[[], Iterator[Feed]]
    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.feed_count * self.batch


def open_labelled(
    data: Path, specs: Sequence[TensorSpec], boundary: Boundary, limit: int | None = None
) -> Labelled:
    """Returns the data for a graph with these inputs, at most `limit` samples spread evenly.

    `specs` are what the app gives, as an export's manifest states them. Images are read one at a
    time, when they are used; an .npz is read whole. Raises InputError where the data does not fit.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give one sample or more")
    batch = _batch(specs)
    if data.is_dir():
        return _folder(data, specs, boundary, limit)
    if data.suffix.lower() != ".npz" or not data.is_file():
        wrong = "no such file or folder" if not data.exists() else "neither"
        raise InputError(
            f"data {data}: {wrong}; give an .npz or a folder with one sub-folder of images a class"
        )
    return _arrays(data, specs, batch, limit)


def _batch(specs: Sequence[TensorSpec]) -> int:
    """Returns the first axis of the inputs, which is the batch."""
    sizes = {spec.shape[0] if spec.shape else 0 for spec in specs}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            "the first axis of all inputs is the batch, and these differ in it:"
            f" {', '.join(map(str, specs))}; export a model with one batch axis"
        )
    return sizes.pop()


def _arrays(file: Path, specs: Sequence[TensorSpec], batch: int, limit: int | None) -> Labelled:
    named = load_arrays(file, specs[0].name)
    names = [spec.name for spec in specs]
    if missing := [name for name in names if name not in named]:
        raise InputError(
            f"{file} has no array {', '.join(missing)}, which the model takes; it has"
            f" {', '.join(sorted(named)) or 'none'}"
        )
    counts = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{file}: the arrays differ in their number of samples: {listed}")
    count = counts[names[0]]
    if not count or count % batch:
        raise InputError(
            f"{file} holds {count} samples, and the model takes {batch} at a time: give a multiple"
        )
    feeds = list(array_feeds(file, named, specs))  # views of the arrays, which are read already
    chosen = _spread(len(feeds), None if limit is None else -(-limit // batch))
    samples = [at * batch + one for at in chosen for one in range(batch)]
    targets = {name: array[samples] for name, array in named.items() if name not in names}
    return Labelled(
        file.name, batch, targets, len(chosen), lambda: (feeds[index] for index in chosen), (file,)
    )


def _folder(
    folder: Path, specs: Sequence[TensorSpec], boundary: Boundary, limit: int | None
) -> Labelled:
    """Returns the images of a folder with one sub-folder per class."""
    classes, files = _classes(folder)
    chosen = [files[index] for index in _spread(len(files), limit)]
    inner = boundary.inner_specs(specs)
    image_feed(chosen[0][0], inner, boundary)  # an input that takes no image is told at once
    labels = np.asarray([label for _, label in chosen], np.int64)
    return Labelled(
        folder.name,
        1,
        {LABEL: labels},
        len(chosen),
        lambda: (image_feed(file, inner, boundary) for file, _ in chosen),
        tuple(file for file, _ in chosen),
        classes,
    )


def _classes(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Returns the names of the sub-folders, and each image with its folder's index."""
    classes = tuple(sorted(one.name for one in folder.iterdir() if one.is_dir()))
    if not classes:
        raise InputError(
            f"{folder} has no sub-folders: images lie in one sub-folder for each class"
        )
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(
            file
            for file in (folder / name).rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not found:
            raise InputError(
                f"{folder / name} holds no images ({' '.join(IMAGE_SUFFIXES)}): remove it, or the"
                " classes after it are counted one too high"
            )
        files += [(file, label) for file in found]
    return classes, files


def _spread(count: int, limit: int | None) -> list[int]:
    """Returns indices spread evenly: the first samples of a sorted folder are all of one class."""
    kept = count if limit is None else min(limit, count)
    return [index * count // kept for index in range(kept)]
