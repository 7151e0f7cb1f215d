"""Integers at the edges: the app quantizes what it gives and dequantizes what it gets.

A quantized graph begins with QuantizeLinear and ends with DequantizeLinear. Where a camera already
gives bytes, or the next stage takes integers, these four-fold copies can go: `--quantize-io`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeport.quantize.graph import save_proto
from edgeport.types import Serialisable

_FILE = "integer_io.json"


@dataclass(frozen=True)
class Affine(Serialisable):
    """real = scale x (stored - zero_point), stored in the integer type `dtype`."""

    dtype: str
    scale: float
    zero_point: int

    def encode(self, real: NDArray[Any]) -> NDArray[Any]:
        """Returns the stored integers, rounded to even and saturated as QuantizeLinear does."""
        limits = np.iinfo(self.dtype)
        stored = np.rint(real / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(stored, limits.min, limits.max), self.dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the real values."""
        real = (stored.astype(np.float32) - self.zero_point) * np.float32(self.scale)
        return np.asarray(real, np.float32)


Edges = Mapping[str, Affine]
"""Name of a graph input or output -> how its integers are read; others stay as they are."""


def edge_scales(model: onnx.ModelProto) -> dict[str, Affine]:
    """Returns how each graph input and output is quantized inside, where it is, per tensor."""
    return {tensor: affine for tensor, affine, _ in _edges(model)}


def _edges(model: onnx.ModelProto) -> list[tuple[str, Affine, onnx.NodeProto]]:
    """Returns (graph input or output, its scale, the QuantizeLinear or DequantizeLinear)."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        for op, tensor, boundary in (
            ("QuantizeLinear", node.input[0] if node.input else "", inputs),
            ("DequantizeLinear", node.output[0] if node.output else "", outputs),
        ):
            if node.op_type == op and tensor in boundary:
                scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
                affine = Affine(str(zero.dtype), float(scale), int(zero))
                found.append((tensor, affine, node))
    return found


def make_edges_integer(model: onnx.ModelProto) -> dict[str, Affine]:
    """Removes the QuantizeLinear of inputs and the DequantizeLinear of outputs, in place.

    Graph inputs and outputs keep their names and become integers. An input that is also read as it
    is, in two ways, or an output that is not dequantized, stays a float and is not in the result.
    """
    changed: dict[str, Affine] = {}
    graph = model.graph
    readers = [name for node in graph.node for name in node.input]
    for tensor, affine, node in _edges(model):
        is_input = node.op_type == "QuantizeLinear"
        if is_input and readers.count(tensor) != 1:
            continue
        inner = node.output[0] if is_input else node.input[0]
        if not is_input and (readers.count(inner) != 1 or readers.count(tensor)):
            continue
        graph.node.remove(node)
        _rename(graph, inner, tensor)
        values = graph.input if is_input else graph.output
        value = next(value for value in values if value.name == tensor)
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(affine.dtype))
        changed[tensor] = affine
    return changed


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in [value for value in graph.value_info if value.name in (old, new)]:
        graph.value_info.remove(value)


def encode_feed(feed: Mapping[str, NDArray[Any]], edges: Edges) -> dict[str, NDArray[Any]]:
    """Returns the feed with the integers that the graph takes."""
    return {n: edges[n].encode(array) if n in edges else array for n, array in feed.items()}


def decode_outputs(
    outputs: Sequence[NDArray[Any]], names: Sequence[str], edges: Edges
) -> tuple[NDArray[Any], ...]:
    """Returns the real values of a graph's outputs, which have these names."""
    return tuple(
        edges[name].decode(array) if name in edges else array
        for name, array in zip(names, outputs, strict=True)
    )


def quantize_edges(path: Path) -> dict[str, Affine]:
    """Rewrites the quantized model at `path` with integer inputs and outputs; returns which."""
    model = onnx.load(path)
    changed = make_edges_integer(model)
    save_proto(model, path)
    return changed


def save_edges(model: Path, edges: Edges) -> None:
    """Writes beside the model how its integer inputs and outputs are read."""
    table = {name: affine.to_dict() for name, affine in edges.items()}
    model.with_name(_FILE).write_text(json.dumps(table, indent=1), encoding="utf-8")


def load_edges(model: Path) -> dict[str, Affine]:
    """Returns what `save_edges` wrote beside the model; nothing where its edges are floats."""
    path = model.with_name(_FILE)
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: Affine(**fields) for name, fields in table.items()}
