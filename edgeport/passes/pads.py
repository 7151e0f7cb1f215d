"""Replaces Pad of modes "wrap" and "edge" with a Concat of slices.

Qualcomm's HTP has no "wrap" (circular padding), and pads with "edge" wrongly in fp16 (-87 dB in the
emulator, v75, QAIRT 2.51; 91 dB in w8a16). After the rewrite both give 74 dB in fp16 and 90 dB in
w8a16. "constant" and "reflect" are right and stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import SHAPES_OPSET, cut
from edgeport.types import PassResult

NAME = "pad by Concat"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 3, 4] x) => (float[1, 1, 3, 7] y)
<int64[8] pads = {0, 0, 0, 2, 0, 0, 0, 1}>
{ y = Pad <mode = "wrap"> (x, pads) }
"""
_MAX_EDGE = 64  # copies of one slice along an axis


def pad_by_concat(model: ir.Model) -> PassResult:
    """Returns the model without "wrap" and "edge"; refuses pads that are not known or too wide."""
    editor = Editor(model)
    for node in nodes_of(model, "Pad") if opset(model) >= SHAPES_OPSET else ():
        mode, shape = attribute(node, "mode", "constant"), shape_of(node.inputs[0])
        if mode not in ("wrap", "edge") or shape is None or 0 in shape:
            continue
        sides = _sides(node, len(shape))
        if sides is None:
            editor.refuse(node, "how far it pads is not known")
        elif any(not 0 <= amount <= _most(mode, size) for amount, size in sides_of(sides, shape)):
            editor.refuse(node, f'it pads with "{mode}" further than the input, or crops')
        else:
            _replace(editor, node, mode, shape, sides)
    return editor.result(NAME)


def _sides(node: ir.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """Returns axis -> (before, after)."""
    pads = array_of(node.inputs[1])
    stated = node.inputs[3] if len(node.inputs) > 3 else None
    axes = np.arange(rank) if stated is None else array_of(stated)
    if pads is None or axes is None:
        return None
    before, after = pads.reshape(2, -1).tolist()
    return {int(a) % rank: pair for a, *pair in zip(axes, before, after, strict=True)}  # type: ignore[misc]


def sides_of(sides: dict[int, tuple[int, int]], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns each amount of padding with the size of its axis."""
    return [(amount, shape[axis]) for axis, pair in sides.items() for amount in pair]


def _most(mode: str, size: int) -> int:
    return size if mode == "wrap" else _MAX_EDGE


def _replace(
    editor: Editor,
    node: ir.Node,
    mode: str,
    shape: tuple[int, ...],
    sides: dict[int, tuple[int, int]],
) -> None:
    value = node.inputs[0]
    assert value is not None
    for axis, (before, after) in sides.items():
        size = shape[axis]
        if mode == "wrap":
            ahead = [(size - before, size)] if before else []
            behind = [(0, after)] if after else []
        else:
            ahead, behind = [(0, 1)] * before, [(size - 1, size)] * after
        slices = {part: cut(editor, node, value, axis, *part) for part in {*ahead, *behind}}
        parts = [*(slices[p] for p in ahead), value, *(slices[p] for p in behind)]
        if len(parts) > 1:
            value = editor.add(node, "Concat", parts, axis=axis)
    editor.replace(node.outputs[0], value)
