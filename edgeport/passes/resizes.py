"""Replaces a linear or cubic Resize that HTP lacks with a MatMul of constant weights per axis.

Such a Resize is linear in the picture and separable, so each axis is one matrix. Qualcomm's HTP
refuses antialiasing, and computes a Resize of a rank other than 4 wrongly (trilinear: -1 dB in fp16
and w8a16, v75, QAIRT 2.51, emulated). As matrices: 67 and 69 dB in fp16, 48 and 44 dB in w8a16.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import SHAPES_OPSET, view
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult

NAME = "Resize to MatMul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 4, 6] x) => (float[1, 1, 2, 3] y) <int64[4] sizes = {1, 1, 2, 3}>
{ y = Resize <mode = "linear", antialias = 1> (x, , , sizes) }
"""
MAX_WEIGHTS = 1 << 20  # elements of one axis's matrix


def resize_to_matmul(model: ir.Model) -> PassResult:
    """Returns the model with such Resizes as MatMuls; refuses those whose sizes are computed."""
    editor = Editor(model)
    for node in nodes_of(model, "Resize") if opset(model) >= SHAPES_OPSET else ():
        shape, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
        if attribute(node, "mode", "nearest") not in ("linear", "cubic"):
            continue
        if not attribute(node, "antialias", 0) and (shape is None or len(shape) == 4):
            continue
        if shape is None or result is None or 0 in shape or 0 in result or not _is_plain(node):
            editor.refuse(node, "its sizes are computed, or it crops or keeps the aspect ratio")
            continue
        _replace(editor, node, shape, result, opset(model))
    return editor.result(NAME)


def _is_plain(node: ir.Node) -> bool:
    crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    keeps = attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    constants = [array_of(value) for value in node.inputs[2:] if value is not None]
    return not crops and not keeps and all(array is not None for array in constants)


def _replace(
    editor: Editor, node: ir.Node, shape: tuple[int, ...], result: tuple[int, ...], version: int
) -> None:
    scales = _scales(node, len(shape))
    changed = [axis for axis in range(len(shape)) if _is_resized(shape, result, scales, axis)]
    if any(shape[axis] * result[axis] > MAX_WEIGHTS for axis in changed):
        return editor.refuse(node, f"a matrix of more than {MAX_WEIGHTS} weights")
    try:
        matrices = {
            axis: _weights(node, shape[axis], result[axis], scales.get(axis), version)
            for axis in changed
        }
    except StageFailed as error:
        return editor.refuse(node, f"onnxruntime does not compute its weights: {error}")
    value = node.inputs[0]
    sizes = list(shape)
    for axis, matrix in matrices.items():
        split = math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])
        lines = view(editor, node, value, split)
        weights = editor.constant(node, matrix, "weights")
        value = editor.add(node, "MatMul", [weights, lines])
        sizes[axis] = result[axis]
    editor.replace(node.outputs[0], view(editor, node, value, result))


def _scales(node: ir.Node, rank: int) -> dict[int, float]:
    """Returns axis -> scale where scales are stated, and not sizes."""
    stated = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if stated is None or not stated.size:
        return {}
    axes = attribute(node, "axes", range(rank))
    return {int(axis) % rank: float(s) for axis, s in zip(axes, stated, strict=True)}


def _is_resized(
    shape: tuple[int, ...], result: tuple[int, ...], scales: dict[int, float], axis: int
) -> bool:
    return shape[axis] != result[axis] or scales.get(axis, 1.0) != 1.0


def _weights(
    node: ir.Node, size: int, target: int, scale: float | None, version: int
) -> NDArray[Any]:
    """Returns target x size weights: what this Resize makes of the unit vectors of one axis."""
    attributes = {name: one.value for name, one in node.attributes.items() if name != "axes"}
    if scale is None:
        names, numbers = ("x", "", "", "to"), np.array([1, 1, size, target], np.int64)
    else:
        names, numbers = ("x", "", "to"), np.array([1, 1, 1, scale], np.float32)  # type: ignore[assignment]
    one = onnx.helper.make_node("Resize", names, ["y"], **attributes)
    shapes = ([1, 1, size, size], [1, 1, size, target])
    before, after = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, one_shape)
        for name, one_shape in zip("xy", shapes, strict=True)
    )
    to = onnx.numpy_helper.from_array(numbers, "to")
    graph = onnx.helper.make_graph([one], "axis", [before], [after], [to])
    opsets = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    units = np.eye(size, dtype=np.float32).reshape(shapes[0])
    (answer,) = Session(model.SerializeToString()).run({"x": units})
    assert node.outputs[0].dtype is not None
    return np.ascontiguousarray(answer[0, 0].T.astype(node.outputs[0].dtype.numpy()))
