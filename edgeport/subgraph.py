"""Cuts subgraphs out of an ONNX model, and gives the real values at their borders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeport.private import scratch_directory
from edgeport.runtimes.onnx import Session

Feed = Mapping[str, NDArray[Any]]
EXTERNAL_DATA_BYTES = 1 << 30  # of weights; beyond it they lie in a file beside the graph
CONVERTERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class TensorType:
    """ONNX's element type and the static shape of a tensor."""

    element: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of the tensor; 4-bit types are counted as a byte each."""
        size: int = helper.tensor_dtype_to_np_dtype(self.element).itemsize
        for length in self.shape:
            size *= length
        return size


class Workbench:
    """A model whose nodes all have names of their own, the types of its tensors, and its cuts.

    `feed` is one real input; the values at the border of a cut come from running it on the host,
    without `optimize` node by node as the file states it.
    """

    def __init__(self, model: onnx.ModelProto, feed: Feed, *, optimize: bool = True) -> None:
        self.model = with_names(model)
        self.feed = feed
        self.optimize = optimize
        self.nodes = tuple(self.model.graph.node)

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Tensor name -> the index of the node that gives it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """The types of all tensors that a node takes or gives; run on the host where not stated."""
        stated = _stated_types(self.model)
        given = [name for node in self.nodes for name in node.output if name]
        unknown = [name for name in given if name not in stated]
        measured = {
            name: TensorType(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in self.values(unknown).items()
        }
        return {**stated, **measured}

    @cached_property
    def peaks(self) -> Mapping[str, float]:
        """The largest magnitude of each operator's first output, for the feed."""
        names = [node.output[0] for node in self.nodes if node.op_type not in CONVERTERS]
        return {
            name: float(np.abs(array.astype(np.float64)).max())
            for name, array in self.values(names).items()
            if array.size and array.dtype.kind in "fiub"
        }

    def values(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Returns the values of these tensors for the feed, as the host computes them."""
        held = {name: self.feed[name] for name in names if name in self.feed}
        wanted = [name for name in dict.fromkeys(names) if name not in held]
        if not wanted:
            return held
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        answers = run_on_host(model, self.feed, optimize=self.optimize)
        return {**held, **dict(zip(wanted, answers, strict=True))}

    def border(self, indices: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the names of the tensors that these nodes take from others, and give to them."""
        chosen = [self.nodes[index] for index in indices]
        made = {name for node in chosen for name in node.output}
        taken = dict.fromkeys(name for node in chosen for name in used_names(node))
        inside = set(indices)
        needed = {value.name for value in self.model.graph.output}
        for index, node in enumerate(self.nodes):
            if index not in inside:
                needed.update(used_names(node))
        used_inside = set(taken)
        inputs = tuple(n for n in taken if n and n not in made and n not in self.initializers)
        # What nothing consumes is an output too: otherwise its node would be removed as dead.
        outputs = tuple(
            name
            for node in chosen
            for name in node.output
            if name and (name in needed or name not in used_inside)
        )
        return inputs, outputs

    def cut(self, indices: Sequence[int], wanted: Sequence[str] | None = None) -> onnx.ModelProto:
        """Returns the model of these nodes alone; tensors at its border are inputs and outputs.

        `wanted` names the outputs in place of those at the border.
        """
        inputs, outputs = self.border(indices)
        outputs = outputs if wanted is None else tuple(wanted)
        nodes = [self.nodes[index] for index in indices]
        weights = dict.fromkeys(name for node in nodes for name in used_names(node))
        graph = helper.make_graph(
            nodes,
            "cut",
            [self._value_info(name) for name in inputs],
            [self._value_info(name) for name in outputs],
            [self.initializers[name] for name in weights if name in self.initializers],
        )
        imports = list(self.model.opset_import)
        return helper.make_model(
            graph, opset_imports=imports, ir_version=self.model.ir_version, producer_name="edgeport"
        )

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """One per operator: its index with those of its QuantizeLinear and DequantizeLinear nodes.

        A DequantizeLinear belongs to every operator that takes its result, so that each has its
        own; converters with no operator beside them are a unit alone. Order is the graph's.
        """
        makers = self.makers
        members = {i: {i} for i, node in enumerate(self.nodes) if node.op_type not in CONVERTERS}
        used: set[int] = set()
        for index, own in members.items():
            for name in used_names(self.nodes[index]):
                maker = makers.get(name)
                if maker is not None and self.nodes[maker].op_type == "DequantizeLinear":
                    own.add(maker)
        for index, node in enumerate(self.nodes):
            maker = makers.get(node.input[0]) if node.input else None
            if node.op_type == "QuantizeLinear" and maker in members:
                members[maker].add(index)
        for own in members.values():
            used |= own
        members.update({i: {i} for i in range(len(self.nodes)) if i not in used})
        return tuple(tuple(sorted(members[index])) for index in sorted(members))

    def merge(self, units: Sequence[int]) -> tuple[int, ...]:
        """Returns the indices of the nodes in these units, in the graph's order."""
        return tuple(sorted({index for unit in units for index in self.units[unit]}))

    def _value_info(self, name: str) -> onnx.ValueInfoProto:
        kind = self.types[name]
        return helper.make_tensor_value_info(name, kind.element, kind.shape)


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy without local functions in which each node has a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        from onnx import inliner

        copy = inliner.inline_local_functions(copy)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name
    return copy


def used_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yields the tensors that a node takes, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            local = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in used_names(inner) if name not in local)
                local.update(inner.output)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model; weights past 1 GiB go to `<path>.data` beside it, and stay in `model`."""
    external = not _fits_in_a_message(model)
    if external:  # onnx moves the weights of what it saves
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        model = copy
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")


def _fits_in_a_message(model: onnx.ModelProto) -> bool:
    """Returns whether the model, and a copy that something makes of it, fits in 2 GiB."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= EXTERNAL_DATA_BYTES


def run_on_host(
    model: onnx.ModelProto, feed: Feed, *, optimize: bool = True
) -> tuple[NDArray[Any], ...]:
    """Returns the outputs that onnxruntime's CPU provider gives; raises StageFailed."""
    with scratch_directory() as folder:
        path = folder / "model.onnx"  # a file: a model over 2 GiB fits in no message
        save_onnx(model, path)
        return Session(path, optimize=optimize).run(feed)


def _stated_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Returns the static types that the file states or that shape inference finds."""
    if _fits_in_a_message(model):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return static_types(model.graph)


def static_types(graph: onnx.GraphProto) -> dict[str, TensorType]:
    """Returns the types of the tensors whose element type and static shape the graph states."""
    types = {t.name: TensorType(t.data_type, tuple(t.dims)) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            sizes = tuple(size.dim_value for size in tensor.shape.dim)
            if all(size.HasField("dim_value") for size in tensor.shape.dim):
                types[value.name] = TensorType(tensor.elem_type, sizes)
    return types
