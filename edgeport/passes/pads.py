"""Replaces Pad of modes "wrap" and "edge", or with a constant other than 0, with a Concat.

Qualcomm's HTP has no "wrap" (circular padding), and pads with "edge" wrongly in fp16 (-87 dB in the
emulator, v75, QAIRT 2.51; 91 dB in w8a16). After the rewrite both give 74 dB in fp16 and 90 dB in
w8a16. A "constant" of 1, as linear attention appends one to its values, gives 12 dB in fp16;
in a w8a16 graph, behind a Split, it gave 5 dB; a Concat with ones 62 and 60 dB. Zeros and
"reflect" are right and stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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
    """Returns the model without such a Pad; refuses pads that are not known or too wide."""
    editor = Editor(model)
    for node in nodes_of(model, "Pad") if opset(model) >= SHAPES_OPSET else ():
        mode, shape = attribute(node, "mode", "constant"), shape_of(node.inputs[0])
        if shape is None or 0 in shape or mode == "reflect":
            continue
        if mode == "constant" and _constant(node) is None:
            continue
        sides = pad_sides(node, len(shape))
        if sides is None:
            editor.refuse(node, "how far it pads is not known")
        elif any(not 0 <= amount <= _most(mode, size) for amount, size in sides_of(sides, shape)):
            editor.refuse(node, f'it pads with "{mode}" further than the input, or crops')
        else:
            _replace(editor, node, mode, shape, sides)
    return editor.result(NAME)


def pad_sides(node: ir.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """Returns axis -> (before, after)."""
    pads = array_of(node.inputs[1])
    stated = node.inputs[3] if len(node.inputs) > 3 else None
    axes = np.arange(rank) if stated is None else array_of(stated)
    if pads is None or axes is None:
        return None
    before, after = pads.reshape(2, -1).tolist()
    return {int(a) % rank: pair for a, *pair in zip(axes, before, after, strict=True)}  # type: ignore[misc]


def _constant(node: ir.Node) -> NDArray[Any] | None:
    """Returns the number that a Pad of floats puts around its input; None for 0 or infinity."""
    stated = node.inputs[2] if len(node.inputs) > 2 else None
    value = array_of(stated)
    if value is None or value.dtype.kind != "f" or not np.isfinite(value).all() or not value.any():
        return None
    return value.reshape(())


def sides_of(sides: dict[int, tuple[int, int]], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns each amount of padding with the size of its axis."""
    return [(amount, shape[axis]) for axis, pair in sides.items() for amount in pair]


def _most(mode: str, size: int) -> float:
    return {"wrap": size, "edge": _MAX_EDGE}.get(mode, np.inf)


def _replace(
    editor: Editor,
    node: ir.Node,
    mode: str,
    shape: tuple[int, ...],
    sides: dict[int, tuple[int, int]],
) -> None:
    value = node.inputs[0]
    assert value is not None
    sizes = list(shape)
    for axis, (before, after) in sides.items():
        size = shape[axis]
        if mode == "constant":
            value = _with_constants(editor, node, value, sizes, axis, (before, after))
            continue
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


def _with_constants(
    editor: Editor,
    node: ir.Node,
    value: ir.Value,
    sizes: list[int],
    axis: int,
    amounts: tuple[int, int],
) -> ir.Value:
    """Returns `value` between constants along `axis`; `sizes` grows with it."""
    number = _constant(node)
    assert number is not None
    ahead, behind = (
        [editor.constant(node, np.full([*sizes[:axis], amount, *sizes[axis + 1 :]], number), "pad")]
        if amount
        else []
        for amount in amounts
    )
    sizes[axis] += sum(amounts)
    parts = [*ahead, value, *behind]
    return editor.add(node, "Concat", parts, axis=axis) if len(parts) > 1 else value
