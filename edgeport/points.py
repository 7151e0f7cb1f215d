"""The tensors of a graph that a reference has too, and the part of the graph that gives each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeport.articulations import ancestors, articulations
from edgeport.quantize.integer_io import Edges, decode_outputs
from edgeport.subgraph import CONVERTERS, TensorType, Workbench, used_names

Array = NDArray[Any]


class Reference(Protocol):
    """What a graph is compared with: tensors by the names that the graph has for them too."""

    @property
    def nodes(self) -> Collection[str]:
        """The names of its nodes; empty where it is no ONNX graph."""
        ...

    def types(self) -> Mapping[str, TensorType]:
        """Returns the types of the tensors that it can give."""
        ...

    def values(self, names: Sequence[str]) -> dict[str, Array]:
        """Returns tensors as what reads them gets them, quantized and dequantized again or not."""
        ...


@dataclass(frozen=True)
class Point:
    """A tensor of the graph.

    `seen` is its name once it was quantized and dequantized again, where it is: that is what its
    readers get. `unit` are the indices of the nodes that give it from other points, `inputs` what
    they take: names of other points, before these are quantized, and graph inputs.
    """

    name: str
    seen: str
    unit: tuple[int, ...]
    inputs: tuple[str, ...]


def find_points(bench: Workbench, output: str, reference: Reference) -> tuple[Point, ...]:
    """Returns the points before `output`, in the graph's order; the last is `output` itself."""
    known = reference.types()
    indices = ancestors(bench, output)
    names = [name for name in _varying(bench, indices) if _is_same(bench, name, known, output)]
    given = {value.name for value in bench.model.graph.input} | set(names)
    follow = read_as(bench)
    points = []
    for name in names:
        seen = follow(name)
        unit = ancestors(bench, seen, given - {name} | set(bench.initializers))
        taken = dict.fromkeys(n for index in unit for n in used_names(bench.nodes[index]))
        made = {n for index in unit for n in bench.nodes[index].output}
        inputs = tuple(n for n in taken if n not in made and n not in bench.initializers)
        points.append(Point(name, seen, unit, inputs))
    return tuple(sorted(points, key=lambda point: bench.makers[point.seen]))


def at_articulations(bench: Workbench, output: str, points: Sequence[Point]) -> tuple[Point, ...]:
    """Returns the points in which alone the graph can be cut; the last is `output`."""
    found = set(articulations(bench, output))
    return tuple(one for one in points if one.name in found or one.seen in found)


def read_as(bench: Workbench) -> Callable[[str], str]:
    """Returns a function: a tensor's name -> its name behind its pair, where it is quantized."""
    pairs: dict[str, dict[str, str]] = {operator: {} for operator in CONVERTERS}
    for node in bench.nodes:
        if node.op_type in CONVERTERS:
            pairs[node.op_type].setdefault(node.input[0], node.output[0])
    quantized, dequantized = (pairs[operator] for operator in CONVERTERS)
    return lambda name: dequantized.get(quantized.get(name, ""), name)


def _varying(bench: Workbench, indices: Sequence[int]) -> list[str]:
    """Returns the tensors that operators make of the graph's inputs, and quantized inputs."""
    inputs = {value.name for value in bench.model.graph.input} - set(bench.initializers)
    follow = read_as(bench)
    found = [name for name in inputs if follow(name) != name]
    varying = set(inputs)
    for index in indices:
        node = bench.nodes[index]
        if varying.intersection(used_names(node)):
            varying.update(filter(None, node.output))
            found += filter(None, node.output)
    return found


def _is_same(bench: Workbench, name: str, known: Mapping[str, TensorType], output: str) -> bool:
    """Returns whether the reference has a tensor of this name, kind of element and shape.

    Axes of length 1 make no difference: passes add and drop them, and the values stay in order.
    """
    if name == output:
        return True
    maker = bench.makers.get(name)
    if maker is not None and bench.nodes[maker].op_type in CONVERTERS:
        return False  # a half of a pair: the tensor before it is the point
    ours, theirs = bench.types.get(name), known.get(name)
    if ours is None or theirs is None or _kind(ours) != _kind(theirs):
        return False
    shapes = [[size for size in one.shape if size != 1] for one in (ours, theirs)]
    return shapes[0] == shapes[1]


def _kind(one: TensorType) -> str:
    kind: str = helper.tensor_dtype_to_np_dtype(one.element).kind
    return kind


def apart(bench: Workbench, points: Sequence[Point]) -> tuple[onnx.ModelProto, list[str]]:
    """Returns one model in which each point's operator stands alone, and their outputs' names.

    Each takes its inputs by the names that they have in the graph; what it makes itself gets the
    point's index in front.
    """
    model = bench.cut([index for point in points for index in point.unit], ())
    del model.graph.node[:], model.graph.input[:]
    wanted = []
    for place, point in enumerate(points):
        made = {name for index in point.unit for name in bench.nodes[index].output if name}
        own = {name: f"{place}/{name}" for name in made}
        for index in point.unit:
            node = model.graph.node.add()
            node.CopyFrom(bench.nodes[index])
            node.name = f"{place}/{node.name}"
            _rename(node, own)
        wanted.append(own[point.seen])
        kind = bench.types[point.seen]
        model.graph.output.append(
            helper.make_tensor_value_info(wanted[-1], kind.element, kind.shape)
        )
    for name in dict.fromkeys(name for point in points for name in point.inputs):
        kind = bench.types[name]
        model.graph.input.append(helper.make_tensor_value_info(name, kind.element, kind.shape))
    return model, wanted


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Renames the tensors of a node, and those that its subgraphs take from outside."""
    for tensors in (node.input, node.output):
        for index, name in enumerate(tensors):
            tensors[index] = names.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def is_comparable(values: Array) -> bool:
    """Returns whether an SQNR against these values means something.

    An attention mask holds infinity, and a dead layer gives zeros, which have no power.
    """
    return bool(
        values.size and values.dtype.kind in "biuf" and values.any() and np.isfinite(values).all()
    )


class HostReference:
    """An ONNX graph that this machine runs node by node, as the file states it.

    `edges` say how its integer inputs and outputs are read.
    """

    def __init__(self, bench: Workbench, edges: Edges | None = None) -> None:
        self.bench, self.edges = bench, edges or {}
        self.nodes = {node.name for node in bench.nodes}
        self._follow = read_as(bench)

    def types(self) -> Mapping[str, TensorType]:
        """Returns the types of all tensors."""
        return self.bench.types

    def values(self, names: Sequence[str]) -> dict[str, Array]:
        """Returns the tensors."""
        seen = {name: self._follow(name) for name in names}
        values = self.bench.values(list(seen.values()))
        found = decode_outputs([values[one] for one in seen.values()], names, self.edges)
        return dict(zip(seen, found, strict=True))
