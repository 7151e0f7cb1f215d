"""Replaces a constant Pad behind both last axes of a picture with two Concats.

A quantized Pad of a picture at its right and lower edge alone, as "same" padding of an even picture
by stride 2 has it, is wrong on Qualcomm's HTP (12 dB in w8a16, -1 in w8a8, v75, QAIRT 2.51,
emulated; with one more row above or column to the left, or on one of the two axes only, it is
right). Concats with the constant give 87 and 40 dB.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of, opset, scalar_of, shape_of
from edgeport.passes.pads import pad_sides
from edgeport.passes.shapes import SHAPES_OPSET
from edgeport.types import PassResult

NAME = "pad the corner by Concat"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3, 4] x) => (float[1, 2, 4, 5] y)
<int64[8] pads = {0, 0, 0, 0, 0, 0, 1, 1}>
{ y = Pad(x, pads) }
"""


def pad_corner_by_concat(model: ir.Model) -> PassResult:
    """Returns the model without such Pads; refuses a value that is computed, and crops."""
    editor = Editor(model)
    for node in nodes_of(model, "Pad") if opset(model) >= SHAPES_OPSET else ():
        shape = shape_of(node.inputs[0])
        if attribute(node, "mode", "constant") != "constant" or shape is None or len(shape) != 4:
            continue
        sides = pad_sides(node, 4)
        if sides is None or not all(_is_behind(sides.get(axis, (0, 0))) for axis in (2, 3)):
            continue
        given = node.inputs[2] if len(node.inputs) > 2 else None
        value = 0.0 if given is None else scalar_of(given)
        if value is None or any(amount < 0 for pair in sides.values() for amount in pair):
            editor.refuse(node, "its value is computed, or it crops")
            continue
        _replace(editor, node, list(shape), sides, value)
    return editor.result(NAME)


def _is_behind(pair: tuple[int, int]) -> bool:
    return pair[0] == 0 and pair[1] > 0


def _replace(
    editor: Editor,
    node: ir.Node,
    sizes: list[int],
    sides: dict[int, tuple[int, int]],
    number: float,
) -> None:
    value = node.inputs[0]
    assert value is not None and value.dtype is not None
    for axis, pair in sides.items():
        blocks: list[ir.Value | None] = [None, None]
        for end, amount in enumerate(pair):
            if amount:
                block = [*sizes[:axis], amount, *sizes[axis + 1 :]]
                array = np.full(block, number, value.dtype.numpy())
                blocks[end] = editor.constant(node, array, "border")
        parts = [part for part in (blocks[0], value, blocks[1]) if part is not None]
        if len(parts) > 1:
            value = editor.add(node, "Concat", parts, axis=axis)
        sizes[axis] += sum(pair)
    editor.replace(node.outputs[0], value)
