"""What an app hands over against what the model takes: channel order, and normalisation.

    the app's tensors (outer)  --layout, normalisation-->  the model's tensors (inner)

`fold` writes the arrow into the graph; `to_inner` is the same in numpy, for the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeport.errors import InputError, UnknownName
from edgeport.types import Serialisable, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Boundary(Serialisable):
    """Inputs that the app gives with channels last, and how images are normalised.

    The model then takes `(x - mean) / std` of what the app gives. `mean` and `std` have one value,
    or one a channel; empty, nothing is normalised.
    """

    channel_last: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def changes(self, spec: TensorSpec) -> bool:
        """Returns whether the app's tensor differs from the model's."""
        return spec.name in self.channel_last or self.normalises(spec)

    def normalises(self, spec: TensorSpec) -> bool:
        """Returns whether `spec` is an image of floats with as many channels as `mean`."""
        image = len(spec.shape) == 4 and spec.dtype.startswith("float")
        return image and len(self.mean) > 0 and len(self.mean) in (1, spec.shape[1])

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Raises InputError or UnknownName where the model's inputs do not take this boundary."""
        known = {spec.name: spec for spec in specs}
        for name in self.channel_last:
            if name not in known:
                raise UnknownName("input for --channel-last-input", name, known)
            if len(known[name].shape) < 3:
                raise InputError(f"--channel-last-input {name}: {known[name]} has no channel order")
        if self.mean and not any(self.normalises(spec) for spec in specs):
            raise InputError(
                f"--normalize has {len(self.mean)} means, and no input is a float image with as"
                f" many channels: {', '.join(map(str, specs))}"
            )

    def outer_specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Returns the specs of what the app gives, from those of what the model takes."""
        return tuple(
            replace(spec, shape=(spec.shape[0], *spec.shape[2:], spec.shape[1]))
            if spec.name in self.channel_last
            else spec
            for spec in specs
        )

    def inner_specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Returns the specs of what the model takes, from those of what the app gives."""
        return tuple(
            replace(spec, shape=(spec.shape[0], spec.shape[-1], *spec.shape[1:-1]))
            if spec.name in self.channel_last
            else spec
            for spec in specs
        )

    def to_inner(self, feed: Feed, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
        """Returns what the model takes, from what the app gives; `specs` are the model's."""
        import numpy as np

        inner = dict(feed)
        for spec in filter(self.changes, specs):
            array = np.asarray(feed[spec.name])
            if spec.name in self.channel_last:
                array = np.moveaxis(array, -1, 1)
            if self.normalises(spec):
                mean, std = (_column(part, spec) for part in (self.mean, self.std))
                array = (array - mean) / std
            inner[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
        return inner

    def to_outer(self, feed: Feed, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
        """Returns what the app would give for the model to take `feed`."""
        import numpy as np

        outer = dict(feed)
        for spec in filter(self.changes, specs):
            array = np.asarray(feed[spec.name])
            if self.normalises(spec):
                mean, std = (_column(part, spec) for part in (self.mean, self.std))
                array = array * std + mean
            if spec.name in self.channel_last:
                array = np.moveaxis(array, 1, -1)
            outer[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
        return outer

    def fold(self, model: ir.Model, specs: Sequence[TensorSpec]) -> None:
        """Puts the change of layout and the normalisation between the graph and its inputs."""
        for spec in filter(self.changes, specs):
            _fold_one(self, model, spec)


def parse_normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns means and deviations of `MEAN,STD`: one of each, or all means and then all stds."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    half = len(values) // 2
    mean, std = values[:half], values[half:]
    if not values or len(mean) != len(std) or not all(0 < value < float("inf") for value in std):
        raise InputError(
            f"--normalize {text!r} is not MEAN,STD: write two numbers, or the means of all channels"
            " and then their deviations, as 0.485,0.456,0.406,0.229,0.224,0.225"
        )
    return mean, std


def _column(values: tuple[float, ...], spec: TensorSpec) -> NDArray[Any]:
    """Returns one value a channel, shaped to broadcast over `B x C x H x W`."""
    import numpy as np

    return np.asarray(values, dtype=spec.dtype).reshape(1, -1, 1, 1)


def _fold_one(boundary: Boundary, model: ir.Model, spec: TensorSpec) -> None:
    import onnx_ir as ir

    graph = model.graph
    index = next(i for i, value in enumerate(graph.inputs) if value.name == spec.name)
    inner = graph.inputs[index]
    (outer_spec,) = boundary.outer_specs([spec])
    outer = ir.Value(name=spec.name, shape=ir.Shape(outer_spec.shape), type=inner.type)
    inner.name = f"{spec.name}_inner"
    nodes: list[ir.Node] = []
    value = outer
    if spec.name in boundary.channel_last:
        rank = len(spec.shape)
        order = (0, rank - 1, *range(1, rank - 1))
        nodes.append(ir.node("Transpose", [value], {"perm": order}, name=f"{spec.name}_layout"))
        value = nodes[-1].outputs[0]
    if boundary.normalises(spec):
        for op, values in (("Sub", boundary.mean), ("Div", boundary.std)):
            constant = _constant(graph, f"{spec.name}_{op.lower()}", _column(values, spec))
            nodes.append(ir.node(op, [value, constant], name=f"{spec.name}_{op.lower()}"))
            value = nodes[-1].outputs[0]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(spec.shape), inner.type
    inner.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.inputs[index] = outer
    graph.insert_before(graph[0], nodes) if len(graph) else graph.extend(nodes)


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value
