"""An ONNX graph as an nn.Module, for the runtimes whose converters start from torch.

Importing this module imports torch, so a runtime does it in a function. The graph is one that the
passes left: opset 18 or newer, static shapes, no functions, and every shape, axis and index that
an operator is told is a constant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from edgeport.errors import InputError

LEAST_OPSET = 18  # before it, reductions, Pad and Split were told their axes otherwise
_REMEDY = "write it with other operators, or export for --target-runtime onnx or qnn_context_binary"

Operation = Callable[..., Any]
"""A node in torch: takes the node's inputs in order, None for one that is absent or was read when
the module was built; gives a tensor, or a tuple where the node has several outputs."""


@dataclass
class Node:
    """One node while it is translated: its attributes, and those inputs that are constants.

    What a translation reads with `constant` is folded into the operation. An attribute that the
    file states and no translation asks for is refused: nothing is dropped silently.
    """

    proto: onnx.NodeProto
    opset: int
    constants: Mapping[str, NDArray[Any]]
    outputs: int  # up to the last that is used
    folded: set[int] = field(default_factory=set)
    _asked: set[str] = field(default_factory=set)

    def constant(self, index: int) -> NDArray[Any] | None:
        """Returns a constant input, which the operation then gets as None; None where absent.

        Raises InputError where the input is computed while the model runs.
        """
        if not self.has(index):
            return None
        name = self.proto.input[index]
        if name not in self.constants:
            raise self.refusal(f"input {index}, {name!r}, is not a constant")
        self.folded.add(index)
        return self.constants[name]

    def integers(self, index: int) -> list[int] | None:
        """Returns a constant input of integers as a flat list; None where absent."""
        array = self.constant(index)
        return None if array is None else [int(one) for one in array.reshape(-1)]

    def has(self, index: int) -> bool:
        """Returns whether the node has this input."""
        return index < len(self.proto.input) and self.proto.input[index] != ""

    def is_constant(self, index: int) -> bool:
        """Returns whether this input is there and constant."""
        return self.has(index) and self.proto.input[index] in self.constants

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Returns the shape of a constant input, without folding it; None for another."""
        return self.constants[self.proto.input[index]].shape if self.is_constant(index) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Returns an attribute, or ONNX's own default where it has one, else `default`."""
        self._asked.add(name)
        return self._attributes.get(name, default)

    def only(self, **allowed: Any) -> None:
        """Raises InputError for an attribute with another value than the one translated here."""
        for name, value in allowed.items():
            if (stated := self.attribute(name, value)) != value:
                raise self.refusal(f"{name} {stated!r} is not translated, only {value!r}")

    def check(self) -> None:
        """Raises InputError for an attribute that the file states and nothing asked for."""
        for one in self.proto.attribute:
            if one.name not in self._asked:
                raise self.refusal(f"attribute {one.name} is not translated")

    def refusal(self, why: str) -> InputError:
        """Returns the error to raise: which operator, where, why, and what to do."""
        name = self.proto.name or next(iter(self.proto.output), "")
        return InputError(f"{self.proto.op_type} ({name}) does not reach torch: {why}; {_REMEDY}")

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        schema = onnx.defs.get_schema(self.proto.op_type, self.opset, "")
        values = {
            name: onnx.helper.get_attribute_value(known.default_value)
            for name, known in schema.attributes.items()
            if known.default_value.name
        }
        for one in self.proto.attribute:
            values[one.name] = onnx.helper.get_attribute_value(one)
        return {name: _readable(value) for name, value in values.items()}


def onnx_module(path: Path) -> OnnxModule:
    """Returns a module that computes the ONNX graph with torch's operators.

    Its forward takes the graph's inputs in their order and gives its outputs so: one tensor, or a
    tuple. Each node is a submodule under its ONNX name, which the metadata of torch.export then
    carries; weights are parameters. Raises InputError naming the first operator, attribute or
    dynamic shape that has no translation.
    """
    model = onnx.load(path)
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if opset < LEAST_OPSET:
        raise InputError(f"{path.name} has opset {opset}; the passes raise it, to 21")
    module = OnnxModule(model.graph, opset)
    module.eval()
    return module


class OnnxModule(nn.Module):
    """The nodes of a graph, run in its order on a table of tensors by name."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        super().__init__()
        constants = {one.name: _weights(one) for one in graph.initializer}
        self.input_names = [one.name for one in graph.input if one.name not in constants]
        self.output_names = [one.name for one in graph.output]
        self.operators: dict[str, str] = {}  # a submodule's name -> the node's operator
        self._steps: list[tuple[str, list[str | None], list[str]]] = []
        self._weights: dict[str, str] = {}
        self._names: set[str] = set(dir(self))
        used = {name for proto in graph.node for name in proto.input} | set(self.output_names)
        for proto in graph.node:
            if proto.op_type == "Constant" and _standard(proto):
                constants[proto.output[0]] = _constant(proto)
            else:
                self._add(proto, opset, constants, used)
        for name in self.output_names:
            self._weigh(name, constants)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the graph's outputs in their order, the tensor itself where it has one."""
        values: dict[str | None, Any] = dict(zip(self.input_names, inputs, strict=True))
        values.update((name, getattr(self, known)) for name, known in self._weights.items())
        for module, read, written in self._steps:
            results = getattr(self, module)(*(values.get(name) for name in read))
            many = isinstance(results, (tuple, list))
            values.update(zip(written, results if many else (results,)))  # the last may be unused
        outputs = tuple(values[name] for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def _add(
        self,
        proto: onnx.NodeProto,
        opset: int,
        constants: Mapping[str, NDArray[Any]],
        used: Container[str],
    ) -> None:
        written = list(proto.output)
        while len(written) > 1 and written[-1] not in used:
            written.pop()
        node = Node(proto, opset, constants, len(written))
        operation = translate(node)
        read = [
            None if index in node.folded or not name else name
            for index, name in enumerate(proto.input)
        ]
        for name in read:
            self._weigh(name, constants)
        module = self._unique(proto.name or proto.output[0])
        self.add_module(module, _Operator(operation, node.refusal))
        self.operators[module] = proto.op_type
        self._steps.append((module, read, written))

    def _weigh(self, name: str | None, constants: Mapping[str, NDArray[Any]]) -> None:
        """Registers a constant that is read: floats as parameters, others as buffers."""
        if name is None or name not in constants or name in self._weights:
            return
        tensor = torch.from_numpy(np.array(constants[name], order="C"))
        self._weights[name] = unique = self._unique(name)
        if tensor.is_floating_point():
            self.register_parameter(unique, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(unique, tensor)

    def _unique(self, name: str) -> str:
        """Returns `name` as an attribute that a module may have, and has not yet."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "node"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        unique = plain
        for number in range(1, len(self._names) + 2):
            if unique not in self._names:
                break
            unique = f"{plain}_{number}"
        self._names.add(unique)
        return unique


class _Operator(nn.Module):
    """One node."""

    def __init__(self, operation: Operation, refusal: Callable[[str], InputError]) -> None:
        super().__init__()
        self._operation, self._refusal = operation, refusal

    def forward(self, *inputs: Tensor | None) -> Any:
        try:
            return self._operation(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            # Of an element type or a size that torch's operator does not take.
            raise self._refusal(next(iter(str(error).splitlines()), "it fails")) from error


def translate(node: Node) -> Operation:
    """Returns the operation of a node; raises InputError where there is none."""
    from edgeport.runtimes.onnx_module_math import MATH
    from edgeport.runtimes.onnx_module_views import VIEWS
    from edgeport.runtimes.onnx_module_windows import WINDOWS

    table: dict[str, Callable[[Node], Operation]] = {**MATH, **VIEWS, **WINDOWS}
    if not _standard(node.proto) or node.proto.op_type not in table:
        domain = "" if _standard(node.proto) else f" of domain {node.proto.domain!r}"
        raise node.refusal(f"there is no translation of this operator{domain}")
    operation = table[node.proto.op_type](node)
    node.check()
    return operation


def translated_operators() -> tuple[str, ...]:
    """Returns the names of the ONNX operators that have a translation."""
    from edgeport.runtimes.onnx_module_math import MATH
    from edgeport.runtimes.onnx_module_views import VIEWS
    from edgeport.runtimes.onnx_module_windows import WINDOWS

    return tuple(sorted({*MATH, *VIEWS, *WINDOWS}))


def torch_dtype(onnx_type: int, node: Node) -> torch.dtype:
    """Returns torch's element type for ONNX's; raises InputError where it has none."""
    name = onnx.TensorProto.DataType.Name(onnx_type).lower()
    names = {"float": "float32", "double": "float64"}
    known = getattr(torch, names.get(name, name), None)
    if not isinstance(known, torch.dtype):
        raise node.refusal(f"element type {name} is not torch's")
    return known


def same_pads(
    kind: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Any
) -> list[int]:
    """Returns ONNX's pads (all begins, then all ends) for auto_pad SAME_UPPER or SAME_LOWER."""
    begins, ends = [], []
    for size, one, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (one - 1) * dilation + 1
        total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        small, large = total // 2, total - total // 2
        begins.append(small if kind == "SAME_UPPER" else large)
        ends.append(large if kind == "SAME_UPPER" else small)
    return [*begins, *ends]


def normal_axes(axes: Iterable[int], rank: int) -> list[int]:
    """Returns the axes counted from the front."""
    return [axis % rank if rank else 0 for axis in axes]


def _weights(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Returns an initializer; raises InputError for text and for types that numpy has not."""
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "biuf":
        held = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        raise InputError(f"initializer {tensor.name} is {held}, which does not reach torch")
    return array


def _readable(value: Any) -> Any:
    """Returns an attribute's value with text in place of bytes, and lists of plain numbers."""
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, (int, float, str)) or not _is_list(value) else list(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence)


def _standard(proto: onnx.NodeProto) -> bool:
    return proto.domain in ("", "ai.onnx")


def _constant(proto: onnx.NodeProto) -> NDArray[Any]:
    stated = {one.name: onnx.helper.get_attribute_value(one) for one in proto.attribute}
    if "value" in stated:
        return _weights(stated["value"])
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for key in (name, f"{name}s"):
            if key in stated:
                return np.array(stated[key], dtype)
    raise InputError(f"Constant ({proto.name}) holds {', '.join(stated)}, not numbers; {_REMEDY}")
