"""An index over an ONNX graph: constants, who makes and who reads each tensor, element types."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeport.private import scratch_directory

Feed = Mapping[str, NDArray[Any]]
Array = NDArray[Any]

PROTOBUF_LIMIT = 1 << 31


class Graph:
    """The index of one model, which it owns and may change.

    Every node has a unique name: a nameless or repeated one gets the name of its first output.
    Constant nodes have become initializers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        _lift_constants(self.proto)
        _name_nodes(self.proto.node)
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}
        self.makers = {name: node for node in self.proto.node for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in self.proto.node:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))
        self.inputs = [v.name for v in self.proto.input if v.name not in self.constants]
        self.outputs = [value.name for value in self.proto.output]
        # A tensor that a subgraph reads from outside must keep its name and its float values.
        self.captured = set(_captured(self.proto.node))
        self._arrays: dict[str, Array] = {}

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.proto.node)

    def array(self, name: str) -> Array:
        """Returns the values of a constant."""
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def set_array(self, name: str, values: Array) -> None:
        """Replaces the values of a constant, or adds one of this name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.proto.initializer.append(tensor)
            self.constants[name] = self.proto.initializer[-1]
        self._arrays[name] = values

    @cached_property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return int(next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")))

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """Returns the node that alone reads `tensor`, if there is one and nobody else sees it."""
        readers = self.readers[tensor]
        if len(readers) != 1 or tensor in self.outputs or tensor in self.captured:
            return None
        return readers[0][0]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Returns the value of an attribute, or `default` where the node has none."""
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def save_proto(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model`; over 2 GiB, which no protobuf message holds, its weights lie beside it."""
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=is_large(model), location=data.name)


def is_large(model: onnx.ModelProto) -> bool:
    """Returns whether the model is too large for one protobuf message, and so has no bytes."""
    return weight_bytes(model) > PROTOBUF_LIMIT - (64 << 20)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Returns the bytes of the model's weights."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[bytes | Path]:
    """Yields what onnxruntime loads: the model's bytes, or a file where it has none."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out
    with scratch_directory() as folder:
        save_proto(copy, folder / "model.onnx")
        del copy
        yield folder / "model.onnx"


T = TypeVar("T")


def in_groups(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yields the items in groups whose sizes sum to at most `limit`, or of one item."""
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + size(item) > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group


class Probe:
    """Runs a model with all of its float32 tensors in view, a bounded number of bytes at a time."""

    def __init__(self, graph: Graph) -> None:
        import onnxruntime as ort

        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        known = {value.name for value in model.graph.output}
        for name in graph.makers:
            if name not in known:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        # A fused operator has no values between its parts, and these are what is asked for.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with scratch_directory() as folder:
            path = folder / "model.onnx"
            save_proto(model, path)
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        self.shapes = {
            value.name: tuple(d if isinstance(d, int) else 1 for d in value.shape)
            for value in values
            if value.type == "tensor(float)"
        }
        self._made = {name for name in self.shapes if name in graph.makers}

    def bytes_of(self, name: str) -> int:
        """Returns the size of a tensor's values."""
        return 4 * math.prod(self.shapes[name])

    def run(self, names: list[str], feed: Feed) -> dict[str, Array]:
        """Returns the values of these tensors, graph inputs among them."""
        made = [name for name in names if name in self._made]
        values = dict(zip(made, self._session.run(made, dict(feed)))) if made else {}
        return {name: values[name] if name in values else feed[name] for name in names}


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = attribute(node, "value", None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        graph.initializer.append(value)
    if len(kept) < len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)


def _name_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            node.name = next(name for name in node.output if name)
        seen.add(node.name)


def _captured(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        for one in node.attribute:
            for graph in [one.g, *one.graphs]:
                for inner in graph.node:
                    yield from inner.input
                yield from _captured(graph.node)
                yield from (value.name for value in graph.output)
