"""Samples on disk, as they cross the process line: a list of name -> array dicts in one .npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sample = Mapping[str, NDArray[Any]]


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes the arrays under the keys "0:name", "1:name" ..., the sample's index first."""
    arrays = {f"{i}:{name}": array for i, one in enumerate(samples) for name, array in one.items()}
    np.savez(path, allow_pickle=False, **arrays)


def load_samples(path: Path) -> list[Sample]:
    """Returns what `save_samples` wrote, arrays in the order of their names in the file."""
    samples: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, _, name = key.partition(":")
            samples.setdefault(int(index), {})[name] = arrays[key]
    return [samples[index] for index in sorted(samples)]


def named_outputs(outputs: Sequence[NDArray[Any]]) -> Sample:
    """Returns a model's outputs as a sample: "output_0", "output_1" ..."""
    return {f"output_{index}": array for index, array in enumerate(outputs)}
