"""Inputs as AI Hub's file takes them, and what came back as our samples, by name or by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.places.hub_failures import STAGE
from edgeport.runtimes.samples import Sample, named_outputs

Entries = dict[str, list[NDArray[Any]]]


def graph_inputs(model: Path) -> list[str]:
    """Returns the names of an ONNX file's inputs, in its order."""
    graph = _graph(model)
    weights = {one.name for one in graph.initializer}
    return [one.name for one in graph.input if one.name not in weights]


def graph_outputs(model: Path) -> dict[str, tuple[int, ...]]:
    """Returns the static shape of each output of an ONNX file, in its order."""
    outputs = _graph(model).output
    return {o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in outputs}


def _graph(model: Path) -> Any:
    import onnx

    return onnx.load(model, load_external_data=False).graph


def as_entries(samples: Sequence[Sample], names: Sequence[str], specs: Sequence[Any]) -> Entries:
    """Returns the samples as a dataset: per input, in the graph's order, an array a sample.

    `specs` are what AI Hub says that its file takes (name, dtype, shape), empty where it does not:
    a converter may have renamed the inputs, or made 32-bit integers of them. Raises StageFailed
    where one does not fit.
    """
    if not specs:
        return {name: [np.ascontiguousarray(one[name]) for one in samples] for name in names}
    by_name = {spec.name: spec for spec in specs}
    if len(specs) != len(names):
        raise StageFailed(
            STAGE, f"the file takes {', '.join(by_name)}; the graph has {', '.join(names)}"
        )
    # By name where all are known; else the converter's order, which is the graph's.
    ordered = [(spec.name, spec) for spec in specs] if set(by_name) == set(names) else None
    pairs = ordered or list(zip(names, specs))
    return {spec.name: [_fitted(one[name], spec) for one in samples] for name, spec in pairs}


def write_entries(file: Path, entries: Entries) -> Path:
    """Writes the .h5 file that the client uploads; returns it.

    Given arrays, the client writes such a file itself, and leaves it where an upload fails.
    """
    import h5py
    from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5

    with h5py.File(file, "w") as opened:
        dataset_entries_to_h5(entries, opened)
    return file


def read_entries(file: Path) -> Entries:
    """Returns the dataset of an .h5 file that the client downloaded."""
    import h5py
    from qai_hub.util.dataset_entries_converters import h5_to_dataset_entries

    with h5py.File(file, "r") as opened:
        return dict(h5_to_dataset_entries(opened))


def _fitted(array: NDArray[Any], spec: Any) -> NDArray[Any]:
    if spec.shape is not None and tuple(spec.shape) != array.shape:
        raise StageFailed(
            STAGE, f"{spec.name} takes {list(spec.shape)} there; ours is {list(array.shape)}"
        )
    cast = np.ascontiguousarray(array.astype(spec.dtype))
    if not np.array_equal(cast, array):
        raise StageFailed(STAGE, f"{spec.name} takes {spec.dtype} there; ours is {array.dtype}")
    return cast


def as_samples(entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Sample]:
    """Returns the outputs that came back as samples, in the graph's order.

    By name where AI Hub kept the names, else by order. Raises StageFailed where the number of
    outputs or a shape is another.
    """
    kept = set(shapes) <= set(entries)
    if not kept and len(entries) != len(shapes):
        raise StageFailed(
            STAGE, f"the outputs {', '.join(entries)} came back; {', '.join(shapes)} were expected"
        )
    keys = list(shapes) if kept else list(entries)
    for key, (name, shape) in zip(keys, shapes.items()):
        for array in entries[key]:
            if all(shape) and tuple(array.shape) != shape:  # 0 where the file states none
                raise StageFailed(
                    STAGE, f"output {name} came back as {list(array.shape)}, not {list(shape)}"
                )
    count = len(entries[keys[0]])
    return [named_outputs([entries[key][index] for key in keys]) for index in range(count)]
