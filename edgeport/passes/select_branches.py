"""Replaces the selection of q, k or v from a transposed 5-D view with a slice before the view.

torch's Linear(3 C) -> view [B, N, 3, heads, d] -> permute -> unbind becomes, per branch, a Slice of
the Linear's output, a 4-D view and a 4-D transpose. Qualcomm's HTP takes both forms (fp16 58 dB,
w8a16 42 dB, w8a8 27 dB each way, v75, QAIRT 2.51), but then q, k and v share one transposed tensor
of rank 5, with one range where it is quantized; GPU delegates that stop at rank 4 take only this
form.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    is_operator,
    nodes_of,
    opset,
    producer_of,
    shape_of,
)
from edgeport.passes.shapes import SHAPES_OPSET, cut, view
from edgeport.types import PassResult

NAME = "select before the view"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 4, 12] x) => (float[1, 2, 4, 2] y)
<int64[5] view = {1, 4, 3, 2, 2}, int64 first = {0}>
{
  a = Reshape(x, view)
  b = Transpose <perm = [2, 0, 3, 1, 4]> (a)
  y = Gather <axis = 0> (b, first)
}
"""
_MIN_RANK = 5


def select_branches(model: ir.Model) -> PassResult:
    """Returns the model where one index of a view's axis is selected before the view is made."""
    editor = Editor(model)
    for node in nodes_of(model, "Gather", "Slice") if opset(model) >= SHAPES_OPSET else ():
        turned = producer_of(node.inputs[0], "Transpose")
        made = None if turned is None else producer_of(turned.inputs[0], "Reshape")
        found = _selection(node)
        if turned is not None and made is not None and found is not None:
            _replace(editor, node, turned, made, *found)
    return editor.result(NAME)


def _selection(node: ir.Node) -> tuple[int, int] | None:
    """Returns (axis, index) where the node takes one index of one axis, else None."""
    shape = shape_of(node.inputs[0])
    constants = [array_of(value) for value in node.inputs[1:]]
    if shape is None or any(one is None or one.size != 1 for one in constants):
        return None
    numbers = [int(one.reshape(())) for one in constants if one is not None]
    if node.op_type == "Gather":
        axis = attribute(node, "axis", 0) % len(shape)
        return axis, numbers[0] % shape[axis]
    if len(numbers) < 3:  # no axes stated
        return None
    axis = numbers[2] % len(shape)
    start, stop, step = slice(*numbers[:2], *numbers[3:]).indices(shape[axis])
    return (axis, start) if step > 0 and stop - start == 1 else None


def _replace(
    editor: Editor, node: ir.Node, turned: ir.Node, made: ir.Node, axis: int, index: int
) -> None:
    """Replaces Reshape - Transpose - selection with Slice - Reshape - Transpose - Reshape."""
    source, shape = made.inputs[0], shape_of(made.inputs[0])
    sizes, result = shape_of(made.outputs[0]), shape_of(node.outputs[0])
    if source is None or shape is None or sizes is None or result is None:
        return
    if len(sizes) < _MIN_RANK or 0 in shape or not _is_only_selected(turned):
        return
    perm = attribute(turned, "perm", list(range(len(sizes)))[::-1])
    place = perm[axis]  # the axis of the view
    home = _home(shape, sizes, place)
    if home is None:
        return editor.refuse(node, "the axis it selects from is spread over the source")
    width = math.prod(sizes[place + 1 :]) // math.prod(shape[home + 1 :])
    part = cut(editor, node, source, home, index * width, (index + 1) * width)
    rest = [size for at, size in enumerate(sizes) if at != place]
    order = [at - (at > place) for at in perm if at != place]
    value = view(editor, node, part, tuple(rest))
    value = editor.add(node, "Transpose", [value], perm=order)
    editor.replace(node.outputs[0], view(editor, node, value, result))


def _is_only_selected(turned: ir.Node) -> bool:
    """Returns whether every use of the Transpose takes one index of an axis."""
    users = [use.node for use in turned.outputs[0].uses()]
    selects = all(is_operator(user, "Gather", "Slice") and _selection(user) for user in users)
    return selects and not turned.outputs[0].is_graph_output()


def _home(shape: tuple[int, ...], sizes: tuple[int, ...], place: int) -> int | None:
    """Returns the source's axis of which the view's axis `place` is the outermost part."""
    before = math.prod(sizes[:place])
    for axis, size in enumerate(shape):
        if math.prod(shape[:axis]) == before and size % sizes[place] == 0 and size > 1:
            return axis
    return None
