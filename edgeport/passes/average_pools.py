"""Replaces forms of AveragePool that Qualcomm's HTP computes wrongly with AveragePools it computes.

Emulated for its v75 (QAIRT 2.51), fp16 / w8a16 / w8a8, dB before and after:

    ceil_mode, so that windows overhang    11 / 11 / 10    as end pads, and a Mul: 68 / 80 / 37
    three dimensions, padded                0 /  0 /  0    as two of two dimensions: 68 / 81 / 35
    even square tiles: 4 x 4 by stride 4   70 / 17 / 13    as 2 x 2 twice: 70 / 84 / 37

An average over windows is linear: where a form divides by another number, one Mul with the quotient
of both forms' answers on ones repairs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import Editor, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import view
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult

NAME = "average pools"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y)
{ y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x) }
"""


@dataclass(frozen=True)
class _Window:
    """The windows along one axis: `count` of `kernel` cells, over `size` cells and their pads."""

    size: int
    kernel: int
    stride: int
    before: int
    count: int

    @property
    def after(self) -> int:
        """The padding behind the axis that the last window reaches into."""
        reach = (self.count - 1) * self.stride + self.kernel
        return max(0, reach - self.size - self.before)

    def covered(self) -> NDArray[np.float64]:
        """Returns how many cells of the axis itself each window holds."""
        first = np.arange(self.count) * self.stride - self.before
        return np.minimum(first + self.kernel, self.size) - np.maximum(first, 0.0)


def average_pools(model: ir.Model) -> PassResult:
    """Returns the model without those forms; refuses dilations and windows on padding alone."""
    editor = Editor(model)
    for node in nodes_of(model, "AveragePool"):
        shape, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
        if shape is None or result is None or 0 in shape or 0 in result:
            continue
        if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
            continue
        windows = _windows(node, shape, result)
        if attribute(node, "ceil_mode", 0) or len(windows) == 3:
            _replace(editor, node, shape, result, windows)
        elif _is_even_tiling(node, windows):
            _tile(editor, node, windows[0].kernel)
    return editor.result(NAME)


def _windows(node: ir.Node, shape: tuple[int, ...], result: tuple[int, ...]) -> tuple[_Window, ...]:
    kernel = attribute(node, "kernel_shape")
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    pads = attribute(node, "pads", [0] * (2 * rank))
    return tuple(
        _Window(shape[2 + i], int(kernel[i]), int(strides[i]), int(pads[i]), result[2 + i])
        for i in range(rank)
    )


def _replace(
    editor: Editor,
    node: ir.Node,
    shape: tuple[int, ...],
    result: tuple[int, ...],
    windows: tuple[_Window, ...],
) -> None:
    if set(attribute(node, "dilations", [1])) != {1}:
        return editor.refuse(node, "its windows are dilated")
    if any((one.covered() <= 0).any() or one.after >= one.kernel for one in windows):
        return editor.refuse(node, "a window of it lies on padding alone")
    counted = int(attribute(node, "count_include_pad", 0))
    if any(one.after > one.kernel // 2 for one in windows):
        counted = 1  # left out of the count, so much padding ends the compiler in w8a8
    value = node.inputs[0]
    if len(windows) < 3:
        value = _pool(editor, node, value, windows, counted)
    else:
        batch, channels, depth = shape[:3]
        faces = view(editor, node, value, (batch, channels * depth, *shape[3:]))
        faces = _pool(editor, node, faces, windows[1:], counted)
        stack = view(editor, node, faces, (batch, channels, depth, math.prod(result[3:])))
        across = _Window(math.prod(result[3:]), 1, 1, 0, math.prod(result[3:]))
        stack = _pool(editor, node, stack, (windows[0], across), counted)
        value = view(editor, node, stack, result)
    factor = _on_ones(node, windows, opset(editor.model)) / _own_on_ones(windows, counted)
    if not np.allclose(factor, 1.0, rtol=1e-6):
        assert value.dtype is not None
        constant = editor.constant(node, factor.astype(value.dtype.numpy()), "factor")
        value = editor.add(node, "Mul", [value, constant])
    editor.replace(node.outputs[0], value)


def _pool(
    editor: Editor,
    node: ir.Node,
    value: ir.Value | None,
    windows: tuple[_Window, ...],
    counted: int,
) -> ir.Value:
    """Returns the averages over windows whose padding is stated in full."""
    return editor.add(
        node,
        "AveragePool",
        [value],
        kernel_shape=[one.kernel for one in windows],
        strides=[one.stride for one in windows],
        pads=[*(one.before for one in windows), *(one.after for one in windows)],
        count_include_pad=counted,
    )


def _own_on_ones(windows: tuple[_Window, ...], counted: int) -> NDArray[np.float64]:
    """Returns what the new pools make of ones: 1 where padding does not count."""
    answer = np.ones(())
    for one in windows:
        line = one.covered() / one.kernel if counted else np.ones(one.count)
        answer = np.multiply.outer(answer, line)
    return answer


def _on_ones(node: ir.Node, windows: tuple[_Window, ...], version: int) -> NDArray[np.float64]:
    """Returns what this AveragePool makes of one channel of ones."""
    attributes: dict[str, Any] = {name: one.value for name, one in node.attributes.items()}
    sizes = [1, 1, *(one.size for one in windows)]
    results = [1, 1, *(one.count for one in windows)]
    before, after = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", sizes), ("y", results))
    )
    one = onnx.helper.make_node("AveragePool", ["x"], ["y"], **attributes)
    graph = onnx.helper.make_graph([one], "ones", [before], [after])
    opsets = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (answer,) = Session(model.SerializeToString()).run({"x": np.ones(sizes, np.float32)})
    return np.asarray(answer[0, 0], np.float64)


def _is_even_tiling(node: ir.Node, windows: tuple[_Window, ...]) -> bool:
    """Returns whether the windows are even squares side by side, more than one, of above 2 x 2."""
    kernel = windows[0].kernel
    return (
        len(windows) == 2
        and kernel > 2
        and kernel % 2 == 0
        and all(one.kernel == one.stride == kernel for one in windows)
        and not any(attribute(node, "pads", [0]))
        and set(attribute(node, "dilations", [1])) == {1}
        and any(one.count > 1 for one in windows)
    )


def _tile(editor: Editor, node: ir.Node, kernel: int) -> None:
    """Replaces tiles with tiles of tiles: 12 x 12 with 2 x 2, 2 x 2 and 3 x 3."""
    value = node.inputs[0]
    while kernel > 1:
        side = 2 if kernel % 2 == 0 else kernel
        value = editor.add(
            node, "AveragePool", [value], kernel_shape=[side, side], strides=[side, side]
        )
        kernel //= side
    assert value is not None
    editor.replace(node.outputs[0], value)
