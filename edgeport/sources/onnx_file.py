"""Opens the user's ONNX file: its operators are known, its weights sound, its open axes pinned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import defs

from edgeport.capture import Outputs, check_static, model_inputs, read_onnx
from edgeport.errors import InputError, UnknownName
from edgeport.types import TensorSpec

# What onnxruntime itself brings kernels for, beside ONNX's own operators.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc")
_REFUSED = (
    ir.DataType.DOUBLE,
    ir.DataType.BFLOAT16,
    ir.DataType.STRING,
    ir.DataType.COMPLEX64,
    ir.DataType.COMPLEX128,
    ir.DataType.UNDEFINED,
)
_PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def open_onnx(path: Path, pinned: Sequence[TensorSpec] = ()) -> ir.Model:
    """Returns the model with static inputs; `pinned` gives the sizes of open axes.

    Raises InputError naming the operator that nobody knows, the weight that holds NaN, the axes
    that are still open, or the pinned input that does not fit.
    """
    model = read_onnx(path)
    check_inputs(model, path)
    check_operators(model, path)
    check_weights(model, path)
    if pinned:
        pin_inputs(model, pinned, path)
    check_static(model, path)
    return model


def check_inputs(model: ir.Model, path: Path) -> None:
    """Raises InputError for an input that is no tensor of real numbers that a phone computes on."""
    for value in model.graph.inputs:
        kind = value.dtype if isinstance(value.type, ir.TensorType) else None
        if kind is None or kind in _REFUSED:
            what = f"of {kind.name.lower()}" if kind else "no tensor"
            raise InputError(
                f"{path}: input {value.name} is {what}; edgeport takes tensors of float32, float16,"
                " integers and bool: cast it in the model that you export"
            )


def check_operators(model: ir.Model, path: Path) -> None:
    """Raises InputError for a node that is neither ONNX's, onnxruntime's nor a local function."""
    opset = model.opset_imports.get("", 1)
    if opset > defs.onnx_opset_version():
        raise InputError(
            f"{path} needs opset {opset}; this onnx knows {defs.onnx_opset_version()} at most:"
            " update onnx and onnxruntime, or export the model with an older opset"
        )
    for graph in model.graphs():
        for node in graph:
            where = f"{path}: node {node.name or node.outputs[0].name} is {node.op_type}"
            if node.op_identifier() in model.functions:
                continue
            if node.domain not in _DOMAINS:
                raise InputError(
                    f"{where} of the custom domain {node.domain}, which nothing here can run;"
                    " export the model with ONNX's own operators"
                )
            opset = model.opset_imports.get(node.domain, 1)
            if node.domain == "" and not defs.has(node.op_type, opset, ""):
                raise InputError(
                    f"{where}, which ONNX has not in opset {opset}; check the exporter"
                )


def check_weights(model: ir.Model, path: Path) -> None:
    """Raises InputError naming the first initializer that holds NaN, or infinity beside numbers.

    Zeros and infinities alone are an attention mask.
    """
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            array = value.const_value.numpy() if value.const_value is not None else None
            if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            if np.isnan(array).any() or not (np.isinf(array) | (array == 0)).all():
                raise InputError(
                    f"{path}: weight {name} holds NaN or infinity; export a sound model"
                )


def pin_inputs(model: ir.Model, pinned: Sequence[TensorSpec], path: Path) -> None:
    """Sets the open axes of the inputs to the given sizes, and infers the shapes after them anew.

    Raises InputError for an input that is not there, another type, rank, or a fixed size.
    """
    values = {str(value.name): value for value in model.graph.inputs}
    for spec in pinned:
        if spec.name not in values:
            raise UnknownName(f"input of {path.name}", spec.name, values)
        value = values[spec.name]
        known = value.shape if value.shape is not None else ir.Shape([None] * len(spec.shape))
        fits = len(known) == len(spec.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(known, spec.shape)
        )
        dtype = str(value.dtype.numpy()) if value.dtype is not None else spec.dtype
        if not fits or dtype != spec.dtype:
            raise InputError(f"--input {spec} does not fit {value.name} of {path}: {dtype}{known}")
        value.shape = ir.Shape(spec.shape)
    _infer_shapes(model)


def _infer_shapes(model: ir.Model) -> None:
    """Forgets what was inferred for the open axes, and infers it for the pinned ones."""
    from onnx_ir.passes.common import ShapeInferencePass

    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    ShapeInferencePass(data_prop=True)(model)


def fix_output_shapes(model: ir.Model, outputs: Outputs) -> None:
    """Sets the shapes of the graph's outputs to those of arrays that it really gave."""
    for value, array in zip(model.graph.outputs, outputs, strict=True):
        value.shape = ir.Shape(array.shape)


def lookup_ranges(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Returns a half-open range per integer input: rows of the table it indexes, masks of ones."""
    ranges = {}
    for value, spec in zip(model.graph.inputs, model_inputs(model), strict=True):
        if spec.dtype.startswith("float"):
            continue
        rows = list(_table_rows(value))
        if rows:
            ranges[spec.name] = (0, min(rows))
        elif spec.name.endswith("mask"):
            ranges[spec.name] = (1, 2)
        elif spec.dtype == "uint8" and len(spec.shape) >= 3:
            ranges[spec.name] = (0, 256)  # pixels
    return ranges


def _table_rows(value: ir.Value) -> Iterator[int]:
    """Yields the rows of each constant that the value, perhaps reshaped, gathers from."""
    for node, index in value.uses():
        if node.op_type in _PASSING and index == 0:
            yield from _table_rows(node.outputs[0])
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None:
            axis = node.attributes.get_int("axis", 0)
            if table.shape is not None and isinstance(rows := table.shape[axis], int):
                yield rows
