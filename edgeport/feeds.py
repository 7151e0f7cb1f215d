"""Inputs for parity and calibration: seeded, the recipe's own, or the user's images and arrays.

A feed is a dict from input name to array. Parity feeds are never calibration feeds: seeds differ,
user data is split, and a sample equal to a parity sample is left out of calibration.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.boundary import Boundary
from edgeport.catalog import Source
from edgeport.errors import InputError
from edgeport.importing import importable, load_function
from edgeport.types import TensorSpec

Feed = Mapping[str, NDArray[Any]]

PARITY_INPUTS, PARITY_OUTPUTS = "parity_inputs.npz", "parity_outputs.npz"
PARITY_INTEGERS = "parity_integers.npz"  # the inputs as a graph with integer inputs takes them
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_PARITY_SEED = 1_000_003  # far from every calibration seed a user would pick
_INTEGERS = (0, 2)  # a seeded index must be valid in the smallest table that makes sense


@dataclass(frozen=True)
class FeedPlan:
    """Which feeds a run uses: how many, from which seed, and from which data, if any.

    `specs` are what the model takes; the feeds are what the app gives, which `boundary` says.
    `integer_ranges` are half-open, per integer input that the model limits otherwise than to 0, 1.
    """

    source: Source
    specs: tuple[TensorSpec, ...]
    seed: int
    parity_samples: int
    calibration_samples: int
    data: Path | None = None
    integer_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    boundary: Boundary = field(default_factory=Boundary)

    def origin(self) -> str:
        """Returns, for the table, where the calibration inputs come from."""
        if self.data is not None:
            return f"{self.data.name} (up to {self.calibration_samples} samples)"
        whose = "the recipe's" if self.source.recipe is not None else "random"
        return f"{self.calibration_samples} seeded inputs ({whose}; no --calib-data)"


def parity_feeds(plan: FeedPlan) -> list[Feed]:
    """Returns the feeds on which every stage is compared with the reference.

    Raises InputError when the user's data cannot be read or holds fewer.
    """
    if plan.data is not None:
        feeds = list(islice(_read(plan), plan.parity_samples))
        if len(feeds) < plan.parity_samples:
            raise InputError(
                f"{plan.data} holds {len(feeds)} samples, and --parity-samples asks for"
                f" {plan.parity_samples}"
            )
        return feeds
    return _seeded(plan, plan.parity_samples, plan.seed + _PARITY_SEED)


def calibration_feeds(plan: FeedPlan) -> Iterator[Feed]:
    """Yields the feeds for calibration, one at a time.

    Raises InputError when the user's data leaves none beside the parity samples.
    """
    if plan.data is None:
        for index in range(plan.calibration_samples):  # one at a time: they may be large
            yield from _seeded(plan, 1, plan.seed + index)
        return
    held_out = {_content(feed) for feed in parity_feeds(plan)}
    count = 0
    for feed in _read(plan, random.Random(plan.seed)):  # in a folder, one class often comes first
        if count < plan.calibration_samples and _content(feed) not in held_out:
            count += 1
            yield feed
    if not count:
        raise InputError(
            f"{plan.data} leaves no sample for calibration beside {plan.parity_samples} for"
            " parity; give more, or lower --parity-samples"
        )


def _content(feed: Feed) -> str:
    sha = hashlib.sha256()
    for name in sorted(feed):
        sha.update(np.ascontiguousarray(feed[name]).tobytes())
    return sha.hexdigest()


def _seeded(plan: FeedPlan, count: int, seed: int) -> list[Feed]:
    """Returns feeds whose values the model would take from N(0, 1), or that the recipe makes."""
    recipe = plan.source.recipe
    if recipe is not None:
        with importable(plan.source.folder):
            make = load_function(recipe.calibration)
            feeds = list(make(plan.specs, count, seed, **_options(make, plan.source.options)))
    else:
        generator = np.random.default_rng(seed)
        feeds = [random_feed(plan.specs, plan.integer_ranges, generator) for _ in range(count)]
    return [plan.boundary.to_outer(feed, plan.specs) for feed in feeds]


def _options(make: Callable[..., Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the recipe's options where the function takes them: its samples depend on them."""
    kinds = {one.kind for one in inspect.signature(make).parameters.values()}
    return options if inspect.Parameter.VAR_KEYWORD in kinds else {}


def random_feed(
    specs: Sequence[TensorSpec],
    integer_ranges: Mapping[str, tuple[int, int]],
    generator: np.random.Generator,
) -> Feed:
    """Returns normal floats, and integers within the half-open range of each input."""
    feed = {}
    for spec in specs:
        if spec.dtype.startswith("float"):
            feed[spec.name] = generator.standard_normal(spec.shape).astype(spec.dtype)
        else:
            low, high = integer_ranges.get(spec.name, _INTEGERS)
            feed[spec.name] = generator.integers(low, high, spec.shape).astype(spec.dtype)
    return feed


def data_files(data: Path) -> list[Path]:
    """Returns the image and array files of `data`, a file or a folder; raises InputError."""
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise InputError(f"calibration data {data}: no such file or folder")
    suffixes = (*IMAGE_SUFFIXES, ".npy", ".npz")
    files = sorted(f for f in data.rglob("*") if f.suffix.lower() in suffixes and f.is_file())
    if not files:
        raise InputError(f"calibration data {data} holds no image and no .npy or .npz file")
    return files


def _read(plan: FeedPlan, shuffled: random.Random | None = None) -> Iterator[Feed]:
    """Yields the user's samples in their order, or as `shuffled` draws."""
    assert plan.data is not None
    files = data_files(plan.data)
    for file in shuffled.sample(files, len(files)) if shuffled else files:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield image_feed(file, plan.specs, plan.boundary)
        else:
            specs = plan.boundary.outer_specs(plan.specs)
            yield from array_feeds(file, load_arrays(file, specs[0].name), specs, shuffled)


def image_feed(file: Path, specs: Sequence[TensorSpec], boundary: Boundary) -> Feed:
    """Returns an image as the app gives it, in 0..1; `specs` are what the model takes.

    Raises InputError where it cannot be read, or the model takes no image.
    """
    layout = Boundary(boundary.channel_last)  # images are in 0..1: the app normalises nothing
    image = {_image_input(specs, file).name: _read_image(file, specs)}
    return layout.to_outer(image, specs)


def _image_input(specs: Sequence[TensorSpec], file: Path) -> TensorSpec:
    images = [s for s in specs if len(s.shape) == 4 and s.shape[:2] in ((1, 3), (1, 1))]
    if len(specs) != 1 or len(images) != 1 or not specs[0].dtype.startswith("float"):
        raise InputError(
            f"{file}: images fit a model with one float input [1,3,H,W]; this one takes"
            f" {', '.join(map(str, specs))}; give an .npz with an array for each input"
        )
    return images[0]


def _read_image(file: Path, specs: Sequence[TensorSpec]) -> NDArray[Any]:
    """Returns RGB (or grey) in 0..1 at the input's height and width, as `1 x C x H x W`."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError('images need Pillow: pip install "edgeport[images]"') from None
    _, channels, height, width = _image_input(specs, file).shape
    try:
        with Image.open(file) as image:
            pixels = image.convert("RGB" if channels == 3 else "L").resize((width, height))
    except Exception as error:  # each of Pillow's formats fails with classes of its own
        raise InputError(f"{file} is not a readable image: {error}") from error
    array = np.asarray(pixels, dtype=specs[0].dtype).reshape(height, width, channels) / 255
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None]).astype(specs[0].dtype)


def array_feeds(
    file: Path,
    named: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    shuffled: random.Random | None = None,
) -> Iterator[Feed]:
    """Yields one feed per leading index of the file's arrays, which hold any number of batches.

    In the file's order, or as `shuffled` draws. Raises InputError naming the array that is missing
    or no input of the model.
    """
    arrays = {spec.name: _checked_array(file, spec, named) for spec in specs}
    counts = {name: len(a) // spec.shape[0] for (name, a), spec in zip(arrays.items(), specs)}
    if len(set(counts.values())) != 1:
        raise InputError(f"{file}: the inputs differ in their number of samples: {counts}")
    order = range(next(iter(counts.values())))
    for index in shuffled.sample(order, len(order)) if shuffled else order:
        yield {
            spec.name: arrays[spec.name][index * spec.shape[0] : (index + 1) * spec.shape[0]]
            for spec in specs
        }


def load_arrays(file: Path, only: str) -> dict[str, Any]:
    """Returns the arrays of an .npz by name, or that of an .npy under the name `only`."""
    try:
        with file.open("rb") as stream:  # numpy leaves it open where the zip is damaged
            loaded = np.load(stream, allow_pickle=False)
            return {only: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # numpy's, zipfile's and zlib's own classes
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{file} is not a readable array file: {line}") from error


def _checked_array(file: Path, spec: TensorSpec, named: Mapping[str, Any]) -> NDArray[Any]:
    if spec.name not in named:
        raise InputError(f"{file} has no array {spec.name!r}; it has {', '.join(sorted(named))}")
    array = named[spec.name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise InputError(f"{file}: {spec.name} holds no real numbers")
    if not array.ndim or array.shape[1:] != spec.shape[1:] or len(array) < spec.shape[0]:
        raise InputError(f"{file}: {spec.name} is {list(array.shape)}, the model takes {spec}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype)
    if not (np.isfinite(array).all() and np.isfinite(cast).all()):
        raise InputError(f"{file}: {spec.name} holds NaN or infinity; clean the data first")
    return cast
