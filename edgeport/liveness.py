"""The peak memory of a graph's activations, by liveness, from its static shapes.

Each tensor lives from the node that makes it to the last node that reads it; a graph input from the
start to its last reader, a graph output to the end. Nodes run one at a time in the order of the
file: a runtime that reorders them, writes over an input, or fuses operators may take less, one that
keeps scratch buffers more. What is counted, and what not:

- Weights are counted apart, as they are stored. What is made of them alone is folded before a run,
  and not counted.
- Reshape, Squeeze, Unsqueeze, Flatten and Identity are views: they share their source's memory.
- In a quantized graph the tensor between QuantizeLinear and DequantizeLinear counts at its integer
  type. The float tensors at the ends of such a pair are **not** counted where a runtime with
  integer kernels never makes them. An operator has an integer kernel if all its float data comes
  from DequantizeLinear and all that it gives, a Relu or Clip behind it included, is only
  quantized: it reads and writes the integers. A float graph input, a float graph output, and what
  an operator that stays in float takes and gives are there in float, and are counted.
- While If runs, the branch that takes more is counted, its outputs as those of If; while Loop and
  Scan run, their body, with its own inputs and outputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from edgeport.errors import InputError
from edgeport.quantize.insert import NEVER, SETTINGS
from edgeport.subgraph import TensorType, static_types, used_names, with_names
from edgeport.types import Serialisable

VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_ACTIVATIONS = ("Relu", "Clip")  # an integer kernel in front does them with the range of its output
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_PER_BYTE: dict[int, int] = {TensorProto.INT4: 2, TensorProto.UINT4: 2, TensorProto.FLOAT4E2M1: 2}
_SHAPE_BYTES = 1 << 10  # a weight above it is no shape that inference would read


@dataclass(frozen=True)
class Memory(Serialisable):
    """Bytes of a graph: its activations at their peak, its weights, and the node at the peak.

    `at_node` is the first node at which the peak is reached.
    """

    peak_activation_bytes: int
    weight_bytes: int
    at_node: str


def peak_activation_bytes(path: Path) -> int:
    """Returns the peak bytes of the activations of an ONNX file; raises as `memory_of` does."""
    return memory_of(path).peak_activation_bytes


def memory_of(path: Path) -> Memory:
    """Returns the memory of an ONNX file's graph; weights in a file beside it are not read.

    Raises InputError for what is no ONNX file, and for a tensor without a static shape, which it
    names.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, which has no stubs
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error
    if not model.graph.output:
        raise InputError(f"{path} is not a readable ONNX file: it has no graph with outputs")
    weight_bytes = sum(map(_stored_bytes, _drop_weights(model.graph)))
    try:
        model = onnx.shape_inference.infer_shapes(with_names(model), data_prop=True)
    except (RuntimeError, ValueError) as error:  # onnx's binding: a graph that contradicts itself
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: ONNX's shape inference refuses the graph: {line}") from None
    peak, node = _Scope(model.graph, path).peak()
    return Memory(peak, weight_bytes, node)


def _drop_weights(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yields the weights of the graph and its subgraphs, after taking the large ones' values."""
    tensors = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        tensors += (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensors.append(attribute.t)
            for inner in (attribute.g, *attribute.graphs):
                yield from _drop_weights(inner)
    for tensor in tensors:
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
        yield tensor


def _stored_bytes(tensor: TensorProto) -> int:
    return _bytes(TensorType(tensor.data_type, tuple(tensor.dims)))


def _bytes(kind: TensorType) -> int:
    """Returns the bytes of a tensor; those of fewer than 8 bits are packed."""
    packed = _PER_BYTE.get(kind.element)
    return kind.bytes if packed is None else -(-math.prod(kind.shape) // packed)


@dataclass(frozen=True)
class _Step:
    """A node that runs: the memory that it reads and that it makes, each by its first name."""

    node: onnx.NodeProto
    reads: frozenset[str]
    makes: tuple[str, ...]


class _Scope:
    """One graph or subgraph: which of its tensors take memory, and when.

    `roots` maps a tensor to the one in whose memory it lies; constants, and tensors of the graph
    around this one, are not in it.
    """

    def __init__(
        self, graph: onnx.GraphProto, path: Path, outer_constants: Collection[str] = ()
    ) -> None:
        self.graph, self.path = graph, path
        self.types = static_types(graph)
        self.outputs = [value.name for value in graph.output]
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(used_names(node)):
                self.readers[name].append(node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.constants = _constants(graph, {*self.weights, *outer_constants})
        self.inputs = [value.name for value in graph.input if value.name not in self.weights]
        # Nodes go by their first output: those of a subgraph need have no names.
        self.stored = {_key(node): self._stored(node) for node in graph.node}
        self.folded = {key for names in self.stored.values() for key in self._between(names)}
        self.roots = {name: name for name in self.inputs}
        self.steps = list(self._steps())

    def peak(self, free: bool = False) -> tuple[int, str]:
        """Returns the peak bytes and the node; `free` leaves the outputs out: they are If's own."""
        last = max(len(self.steps) - 1, 0)
        change = [0] * (last + 2)
        unpaid = {self.roots.get(name) for name in self.outputs} if free else set()
        for name, (born, dies) in self._lives(last).items():
            if name not in unpaid:
                size = self._size(name)
                change[born] += size
                change[dies + 1] -= size
        most, at, live = 0, "", 0
        for index in range(last + 1):
            live += change[index]
            node = self.steps[index].node if self.steps else None
            total = live + (self._inside(node) if node is not None else 0)
            if total > most:
                most, at = total, node.name if node is not None else ""
        return most, at

    def _lives(self, last: int) -> dict[str, tuple[int, int]]:
        """Returns, per piece of memory, the first and the last step at which it is taken."""
        lives = dict.fromkeys(self.inputs, (0, 0))
        for index, step in enumerate(self.steps):
            lives |= dict.fromkeys(step.makes, (index, index))
            lives |= {name: (lives[name][0], index) for name in step.reads}
        for name in self.outputs:
            if (root := self.roots.get(name)) is not None:
                lives[root] = (lives[root][0], last)
        return lives

    def _inside(self, node: onnx.NodeProto) -> int:
        """Returns the bytes that a node's subgraphs take while it runs: those of the largest."""
        graphs = [g for one in node.attribute for g in (one.g, *one.graphs) if g.node]
        scopes = (_Scope(graph, self.path, self.constants) for graph in graphs)
        return max((one.peak(free=node.op_type == "If")[0] for one in scopes), default=0)

    def _steps(self) -> Iterator[_Step]:
        for node in self.graph.node:
            if all(name in self.constants for name in node.output if name):
                continue
            if node.op_type == "DequantizeLinear" and self._is_read_as_integers(node):
                self._share(node.output[0], self._root(node.input[0]))
                continue
            if _key(node) in self.folded:
                continue
            reads = {self._root(name, node) for name in used_names(node)} - {None}
            made = self.stored[_key(node)] or tuple(filter(None, node.output))
            if self._is_view(node):
                self._share(made[0], self._root(node.input[0], node))
                made = ()
            self.roots |= {name: name for name in made}
            yield _Step(node, frozenset(name for name in reads if name is not None), made)

    def _share(self, name: str, root: str | None) -> None:
        if root is not None:
            self.roots[name] = root

    def _root(self, name: str, reader: onnx.NodeProto | None = None) -> str | None:
        """Returns the memory that a reader finds a tensor in: an integer kernel the integers."""
        maker = self.makers.get(name)
        if reader is None or maker is None or maker.op_type != "DequantizeLinear":
            return self.roots.get(name)
        return self.roots.get(maker.input[0] if self._takes_integers(reader) else name)

    def _takes_integers(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "QuantizeLinear" or bool(self.stored[_key(node)])

    def _is_read_as_integers(self, node: onnx.NodeProto) -> bool:
        """Returns whether nothing needs the floats that a DequantizeLinear gives."""
        name = node.output[0]
        return name not in self.outputs and all(map(self._takes_integers, self.readers[name]))

    def _stored(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Returns the integers that a node with an integer kernel writes; none for another."""
        if node.op_type in NEVER or any(one.HasField("g") for one in node.attribute):
            return ()
        settings = SETTINGS.get(node.op_type, ())
        data = [name for at, name in enumerate(node.input) if at not in settings]
        floats = [name for name in data if name and self._is_float(name)]
        if not floats or not all(self._is_dequantized(name) for name in floats):
            return ()
        written = [self._quantized(name) for name in node.output if name]
        return tuple(name for names in written for name in names) if all(written) else ()

    def _is_float(self, name: str) -> bool:
        """Returns whether a tensor is one of floats, or may be: its type is not known."""
        kind = self.types.get(name)
        return kind is None or kind.element in _FLOATS

    def _is_dequantized(self, name: str) -> bool:
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _quantized(self, name: str) -> tuple[str, ...]:
        """Returns the integers that all readers of a tensor see; none where one sees the floats."""
        readers = self.readers[name]
        if name in self.outputs or not readers:
            return ()
        if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
            return self._quantized(readers[0].output[0])
        if any(node.op_type != "QuantizeLinear" for node in readers):
            return ()
        return tuple(node.output[0] for node in readers)

    def _between(self, names: Sequence[str]) -> Iterator[str]:
        """Yields the nodes that are part of the kernel that writes these integers."""
        for name in names:
            node = self.makers[name]
            yield _key(node)
            maker = self.makers[node.input[0]]
            while maker.op_type in _ACTIVATIONS and not self.stored[_key(maker)]:
                yield _key(maker)
                maker = self.makers[maker.input[0]]

    def _is_view(self, node: onnx.NodeProto) -> bool:
        """Returns whether a node moves no values; one on integers must keep their grid."""
        if node.op_type not in VIEWS:
            return False
        written = self.stored[_key(node)]
        if not written:
            return True
        before, after = self.makers[node.input[0]], self.makers[written[0]]
        return len(written) == 1 and self._grid(before) == self._grid(after)

    def _grid(self, node: onnx.NodeProto) -> list[object]:
        """Returns what compares equal where the scale and zero point are the same."""
        return [
            numpy_helper.to_array(self.weights[name]).tolist()
            if name in self.weights and self.weights[name].raw_data
            else name
            for name in node.input[1:]
        ]

    def _size(self, name: str) -> int:
        kind = self.types.get(name)
        if kind is None:
            raise InputError(
                f"{self.path}: tensor {name!r} has no static shape that ONNX's shape inference"
                " finds; its memory cannot be told: export the model with fixed sizes"
            )
        if kind.element == TensorProto.STRING:
            raise InputError(f"{self.path}: tensor {name!r} holds strings, which have no size")
        return _bytes(kind)


def _key(node: onnx.NodeProto) -> str:
    return next(filter(None, node.output), "")


def _constants(graph: onnx.GraphProto, known: Collection[str]) -> set[str]:
    """Returns the tensors that depend on no input, with those that are known to be such."""
    constants = set(known)
    for node in graph.node:
        names = list(used_names(node))
        if node.op_type == "Constant" or (names and all(name in constants for name in names)):
            constants.update(filter(None, node.output))
    return constants
