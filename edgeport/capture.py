"""nn.Module or ONNX file -> ONNX IR, with the reference outputs that later stages must meet."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.errors import InputError, StageFailed
from edgeport.origins import shorten_traces
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

Outputs = tuple[NDArray[Any], ...]

OPSET = 21  # the first with 16-bit QuantizeLinear, which w8a16 needs without a custom domain
# A protobuf holds at most 2 GiB; beyond this many bytes of weights they go to a file beside it.
EXTERNAL_DATA_BYTES = 1 << 30
_TALKATIVE = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")


def run_module(module: nn.Module, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[Outputs]:
    """Returns the flattened output arrays of the module for each feed: the reference.

    Raises InputError when the module does not take these inputs, gives no tensor, or NaN.
    """
    import torch
    from torch.utils import _pytree

    references = []
    for feed in feeds:
        tensors = _tensors(feed)
        try:
            with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                result = module(*tensors)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's forward may raise anything, and sys.exit()
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in feed.items())
            raise InputError(f"the model fails on {shapes}: {_first_line(error)}") from error
        leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        references.append(check_outputs(tuple(_array(leaf) for leaf in leaves)))
    return references


def check_outputs(outputs: Outputs) -> Outputs:
    """Returns the reference outputs; raises InputError where there is nothing to compare with."""
    if not outputs:
        raise InputError("the model returns no tensor; return a tensor, or a tuple or dict of them")
    for output in outputs:
        if output.dtype.kind not in "biuf" or output.size == 0:
            raise InputError(
                f"the model returns {output.dtype}{list(output.shape)}, which cannot be compared;"
                " return tensors of real numbers that are not empty"
            )
    if not all(np.isfinite(output).all() for output in outputs):
        raise InputError("the model's output holds NaN or infinity; check weights and inputs")
    return outputs


def _tensors(feed: Mapping[str, NDArray[Any]]) -> tuple[torch.Tensor, ...]:
    import torch

    # Copies: a module may write to its input, and the same feed is used again and saved.
    return tuple(torch.from_numpy(np.array(array, order="C")) for array in feed.values())


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """Returns a copy: a module may return a buffer that it writes to in the next call."""
    try:
        return np.array(tensor.detach().numpy())
    except TypeError as error:  # a type that numpy has not
        raise InputError(f"the model returns {tensor.dtype}; return float32 or float16") from error


def capture_module(module: nn.Module, feed: Mapping[str, NDArray[Any]]) -> ir.Model:
    """Returns the module as ONNX IR at opset 21, through torch.export with static shapes.

    Inputs are named as in the feed; outputs as the module's attribute `output_names` says, else
    "output" or "output_0", "output_1" ... Raises StageFailed with the exporter's first line, and
    InputError when the module's outputs are constants.
    """
    program = export_program(module, feed)
    if not len(program.model.graph):
        raise InputError("the model computes nothing from its inputs; nothing is left to export")
    _name_outputs(program.model, tuple(getattr(module, "output_names", ())))
    shorten_traces(program.model)
    return program.model


def export_program(module: nn.Module, feed: Mapping[str, NDArray[Any]]) -> torch.onnx.ONNXProgram:
    """Returns what torch's exporter makes of the module: the ONNX model, and the graph it is of.

    Raises StageFailed with the exporter's first line.
    """
    import torch

    from edgeport.exportable import exportable_functions

    arguments = _tensors(feed)
    with quiet(), torch.no_grad():
        try:
            with exportable_functions():
                exported = torch.export.export(module, arguments, strict=False)
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(feed),
                verbose=False,
            )
        except Exception as error:  # torch.export and its ONNX exporter share no error class
            line = _first_line(error)
            if "data-dependent" in line:
                line = f"the model's path depends on values: use torch.where or torch.cond ({line})"
            raise StageFailed("capture", line) from error
    assert program is not None
    return program


def _name_outputs(model: ir.Model, names: tuple[str, ...]) -> None:
    outputs = model.graph.outputs
    if len(names) != len(outputs):
        names = (
            ("output",) if len(outputs) == 1 else tuple(f"output_{i}" for i in range(len(outputs)))
        )
    taken = {value.name for value in model.graph.inputs}
    for output, name in zip(outputs, names):
        if output not in model.graph.inputs and name not in taken:  # an input passed through
            output.name = name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress, and its remarks and listings of the graph, off the terminal.

    The same holds for what its optimizer says of nodes that it cannot fold.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def load_onnx(path: Path) -> ir.Model:
    """Returns the checked ONNX file as IR; many weights stay in the file beside it, mapped.

    Raises InputError for a file that is no model, has lost its external data, or has open
    dimensions.
    """
    model = read_onnx(path)
    check_static(model, path)
    return model


def read_onnx(path: Path) -> ir.Model:
    """Returns the ONNX file as IR, whose inputs may have open axes; raises InputError."""
    import onnx

    data = sum(file.stat().st_size for file in external_data_files(path))
    try:
        # Mapped, and not read: several GiB would stay in memory from here to the last pass.
        large = data > EXTERNAL_DATA_BYTES
        with quiet():  # it warns of what makes the graph invalid, and reads on
            model = ir.load(path) if large else ir.from_proto(onnx.load(path))
    except Exception as error:  # protobuf, onnx and onnx_ir share no error class
        raise InputError(f"{path} is not a readable ONNX model: {_first_line(error)}") from error
    shorten_traces(model)
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)  # a weight: old files list them among the inputs
    if not len(model.graph):
        raise InputError(f"{path} is not a readable ONNX model: its graph has no node")
    return model


def check_static(model: ir.Model, path: Path) -> None:
    """Raises InputError for an input with open axes, with the --input that closes them."""
    for value in model.graph.inputs:
        if value.shape is None:
            raise InputError(
                f"{path}: input {value.name} has no shape, not even a rank; add"
                f" --input {value.name}:float32[...] with its sizes"
            )
        if not value.shape.is_static():
            sizes = [
                str(size) if isinstance(size, int) else size.value or f"axis{axis}"
                for axis, size in enumerate(value.shape)
            ]
            names = [name for name in sizes if not name.isdigit()]
            dtype = value.dtype.numpy() if value.dtype is not None else "float32"
            raise InputError(
                f"{path}: input {value.name} has the open shape [{','.join(sizes)}]; an NPU"
                f" compiles static shapes: add --input {value.name}:{dtype}"
                f"[{','.join(sizes)}] with numbers for {', '.join(names)}"
            )


def external_data_files(path: Path) -> list[Path]:
    """Returns the files that hold the weights of an ONNX model outside of it; raises InputError."""
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own classes
        raise InputError(f"{path} is not a readable ONNX model: {_first_line(error)}") from error
    ends: dict[str, int] = {}
    for tensor in _tensors_of(proto.graph):
        entry = {one.key: one.value for one in tensor.external_data}
        if location := entry.get("location"):
            end = int(entry.get("offset") or 0) + int(entry.get("length") or 0)
            ends[location] = max(end, ends.get(location, 0))
    return [_data_file(path, location, end) for location, end in sorted(ends.items())]


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yields the weights of a graph and of the graphs within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors_of(inner)


def _data_file(path: Path, location: str, end: int) -> Path:
    """Returns the file beside `path` that holds weights up to the byte `end`."""
    file, folder = path.parent / location, path.parent.resolve()
    if not Path(os.path.normpath(folder / location)).is_relative_to(folder):
        raise InputError(
            f"{path} keeps weights in {location}, outside of its own folder; save it anew with its"
            " data beside it"
        )
    if not file.is_file():
        raise InputError(f"{path} keeps weights in {location}, which is not beside it")
    if file.stat().st_size < end:
        raise InputError(
            f"{path} keeps {end} bytes of weights in {location}, which has {file.stat().st_size};"
            " it was cut short: copy it again"
        )
    return file


def model_inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Returns the specs of the graph's inputs."""
    return tuple(_spec(value) for value in model.graph.inputs)


def model_outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Returns the specs of the graph's outputs."""
    return tuple(_spec(value) for value in model.graph.outputs)


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name and value.dtype is not None and value.shape is not None
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), shape)


def save_model(model: ir.Model, path: Path) -> None:
    """Writes the model; weights past 1 GiB go to `<path>.data` beside it."""
    mapped = any(isinstance(one, ir.ExternalTensor) for one in _weights(model))
    external = mapped or weight_bytes(model) > EXTERNAL_DATA_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if external else None)


def weight_bytes(model: ir.Model) -> int:
    """Returns the bytes of all initializers, those of subgraphs included."""
    return sum(weight.nbytes for weight in _weights(model))


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _first_line(error: BaseException) -> str:
    while isinstance(error.__cause__, Exception):  # onnx_ir wraps the reason in where it was
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
