"""What every pass needs to read an ONNX graph and to replace a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray
from onnx_ir.passes import common

from edgeport.types import PassResult

_DATA_LIMIT = 1024  # elements: what shape inference reads the values of is never larger


def nodes_of(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Yields the main graph's and its subgraphs' nodes of these ONNX operators.

    A node that was removed meanwhile is passed over; one that was added is not yielded.
    """
    wanted = frozenset(operators)
    found = [
        node
        for graph in model.graphs()
        for node in graph
        if node.op_type in wanted and node.domain in ("", "ai.onnx")
    ]
    return (node for node in found if node.graph is not None)


def opset(model: ir.Model) -> int:
    """Returns the version of the ONNX operators that the model imports."""
    versions = model.opset_imports
    return versions.get("", versions.get("ai.onnx", 1))


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns the shape where it is known and static, else None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Returns the array of a constant, which is an initializer or a Constant's output, else None.

    An initializer that is also a graph input is none: the caller of the model may replace it.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """Returns the number that a constant of one element holds, else None."""
    array = array_of(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def is_operator(node: ir.Node | None, *operators: str) -> bool:
    """Returns whether `node` is one of these ONNX operators."""
    return node is not None and node.op_type in operators and node.domain in ("", "ai.onnx")


def only_user(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads `value`, in the same graph; None where there are others.

    A graph output has another reader: the caller.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    producer = value.producer()
    user = uses[0].node
    return user if producer is None or user.graph is producer.graph else None


def producer_of(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Returns the node that makes `value` where it is one of these operators, else None."""
    node = None if value is None else value.producer()
    return node if is_operator(node, *operators) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Returns the value of an attribute, or `default` where the node does not state it."""
    stated = node.attributes.get(name)
    return default if stated is None else stated.value


def infer_shapes(model: ir.Model) -> None:
    """Adds the types and shapes that the file does not state, where any is missing.

    Not in a model with sequences or optionals: onnx-ir's inference would state them as tensors.
    """
    nodes = [node for graph in model.graphs() for node in graph]
    outputs = [output for node in nodes for output in node.outputs]
    if all(output.dtype is not None and output.shape is not None for output in outputs):
        return
    tensors = (value.type for graph in model.graphs() for value in graph.inputs)
    if all(isinstance(one, ir.TensorType | None) for one in tensors) and not any(
        "Sequence" in node.op_type or "Optional" in node.op_type for node in nodes
    ):
        common.ShapeInferencePass()(model)


class Editor:
    """Replaces parts of one model, and keeps its names unique and its types and shapes stated."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.count = 0
        self.refused: list[str] = []
        self._opset = opset(model)
        self._made: set[ir.Value] = set()
        self._names = {value.name for graph in model.graphs() for value in _values(graph)}
        self._names |= {node.name for graph in model.graphs() for node in graph}
        infer_shapes(model)

    def constant(self, near: ir.Node, array: ArrayLike, hint: str) -> ir.Value:
        """Returns a new initializer of the graph that `near` is in."""
        graph = near.graph
        assert isinstance(graph, ir.Graph), "inline functions first"
        tensor = ir.tensor(np.ascontiguousarray(array), name=self._unique(f"{_label(near)}_{hint}"))
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def add(
        self, before: ir.Node, operator: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> ir.Value:
        """Returns the output of a new node of one output, placed before the node `before`."""
        return self.add_node(before, operator, inputs, 1, **attributes)[0]

    def add_node(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Returns the outputs of a new node, placed before the node `before`."""
        assert before.graph is not None
        node = ir.node(operator, list(inputs), attributes or None, num_outputs=outputs)
        node.name = self._unique(f"{_label(before)}_{operator}")
        for index, output in enumerate(node.outputs):
            output.name = self._unique(f"{node.name}_{index}")
            self._made.add(output)
        before.graph.insert_before(before, node)
        self._state_types(node)
        return tuple(node.outputs)

    def reshape(self, before: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Returns `value` in a static shape: itself, a new constant, or a Reshape's output."""
        if shape_of(value) == tuple(shape):
            return value
        if (array := array_of(value)) is not None:
            return self.constant(before, array.reshape(shape), "reshaped")
        target = self.constant(before, np.array(shape, np.int64), "shape")
        return self.add(before, "Reshape", [value, target])

    def transpose(self, before: ir.Node, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Returns `value` with its axes reordered: itself, a new constant, or a Transpose."""
        if list(perm) == sorted(perm):
            return value
        if (array := array_of(value)) is not None:
            return self.constant(before, array.transpose(perm), "transposed")
        return self.add(before, "Transpose", [value], perm=[int(axis) for axis in perm])

    def replace(self, old: ir.Value, new: ir.Value, *, counted: bool = True) -> None:
        """Puts `new`, under the old name where it is new, in the place of `old`; counts one.

        What made `old` and is then used by nothing goes. `counted` is False for a replacement that
        is only a part of another.
        """
        maker = old.producer()
        assert maker is not None
        if old.is_graph_output() and (new not in self._made or new.is_graph_output()):
            new = self.add(maker, "Identity", [new])
        if new in self._made:
            new.name, old.name = old.name, self._unique(f"{old.name}_before")
            new.shape = old.shape if old.shape is not None else new.shape
            new.type = old.type if old.type is not None else new.type
            self._made.discard(new)  # it has its final name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.drop(maker)
        self.count += counted

    def refuse(self, node: ir.Node, why: str) -> None:
        """Notes in a sentence that the pass could have applied to `node` and did not."""
        self.refused.append(f"{node.name or node.op_type}: {why}")

    def result(self, name: str) -> PassResult:
        """Returns the pass's result; initializers that lost their last use are gone."""
        if self.count:
            for graph in self.model.graphs():
                for key, value in list(graph.initializers.items()):
                    if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                        del graph.initializers[key]
        return PassResult(name, self.model, self.count, tuple(self.refused))

    def drop(self, node: ir.Node) -> None:
        """Removes `node` and what fed only it, where nothing uses its outputs."""
        dead = [node]
        while dead:
            one = dead.pop()
            if one.graph is None or any(o.uses() or o.is_graph_output() for o in one.outputs):
                continue
            makers = [value.producer() for value in one.inputs if value is not None]
            one.graph.remove(one, safe=True)
            dead.extend(maker for maker in makers if maker is not None)

    def _state_types(self, node: ir.Node) -> None:
        """States the types and shapes of a new node's outputs, as onnx's own inference has them."""
        if any(value is not None and value.type is None for value in node.inputs):
            return  # behind an operator that onnx does not know
        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        named = {value.name or "": value for value in node.inputs if value is not None}
        tensors = {name: _small(value) for name, value in named.items()}
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.to_proto(node),
            {name: ir.serde.serialize_value(value).type for name, value in named.items()},
            {name: ir.to_proto(tensor) for name, tensor in tensors.items() if tensor is not None},
            opset_imports=[onnx.helper.make_opsetid("", self._opset)],
        )
        for output in node.outputs:
            if (proto := inferred.get(output.name or "")) is not None:
                known = ir.serde.deserialize_type_proto_for_type(proto)
                output.type = known
                output.shape = ir.serde.deserialize_type_proto_for_shape(proto)

    def _unique(self, name: str) -> str:
        number = 0
        unique = name
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique


def _label(node: ir.Node) -> str:
    """Returns what new names begin with: that of the node, or of what it makes."""
    return node.name or node.outputs[0].name or node.op_type


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _small(value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return tensor if tensor is not None and tensor.size <= _DATA_LIMIT else None
