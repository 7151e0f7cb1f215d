"""Replaces -inf and other huge negative numbers that mask a softmax with -100.

A quantized tensor has one range, and a mask of -1e9 or of the smallest float in it leaves no step
for the scores; -inf has no range at all. Emulated causal attention in w8a16 (Qualcomm HTP, v75,
QAIRT 2.51): 1 dB with -3.4e38, the compiler refuses -inf, 45 dB with -100; in fp16 57 dB each way.

Equal as long as no masked score exceeds a row's best allowed score by more than about 60, where
exp(60 - 100) vanishes beside 1. A row that is masked as a whole has no such score: constant masks
with one are refused; behind a mask computed at run time such a row keeps its scores' softmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    is_operator,
    nodes_of,
    producer_of,
    shape_of,
)
from edgeport.types import PassResult

NAME = "finite softmax masks"
TOLERANCE_DB = 100.0
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x, bool[2, 3] keep) => (float[2, 3] y)
<float masked = {-3.4e38}>
{
  scores = Where(keep, x, masked)
  y = Softmax(scores)
}
"""
MASKED = -100.0
_HUGE = -1000.0  # what no score is; a mask of -100 is left as it is

# Operators that hand a mask on: the inputs it may come in by.
_CARRIERS = {
    **dict.fromkeys(("Add", "Concat"), (0, 1, 2, 3)),
    **dict.fromkeys(("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile"), (0,)),
    **dict.fromkeys(("Transpose", "Unsqueeze"), (0,)),
    "Where": (1, 2),
}


def finite_masks(model: ir.Model) -> PassResult:
    """Returns the model with each huge negative constant that only masks softmaxes at -100."""
    editor = Editor(model)
    for node in nodes_of(model, *_CARRIERS, "Mul"):
        for index, value in enumerate(node.inputs):
            array = array_of(value)
            if array is not None and _is_mask(array):
                _clamp(editor, node, index, array)
    return editor.result(NAME)


def _is_mask(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f" or not array.size:
        return False
    return bool(array.min() < _HUGE and array.max() <= -_HUGE)


def _clamp(editor: Editor, node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """Gives `node` the clamped constant where everything it reaches is a softmax."""
    if not (_is_switched(node, index) or index in _CARRIERS.get(node.op_type, ())):
        return
    if not _only_softmaxes(node.outputs[0]):
        return
    if is_operator(node, "Add") and array.ndim and not _every_row_is_open(node, array):
        return editor.refuse(node, "a row of its mask leaves nothing to attend to")
    clamped = np.maximum(array, np.asarray(MASKED, array.dtype))
    node.replace_input_with(index, editor.constant(node, clamped, "mask"))
    editor.count += 1


def _is_switched(node: ir.Node, index: int) -> bool:
    """Returns whether the constant is multiplied by what is 0 or 1."""
    if not is_operator(node, "Mul"):
        return False
    switch = node.inputs[1 - index]
    inverse = producer_of(switch, "Sub")
    if inverse is not None:
        one = array_of(inverse.inputs[0])
        if one is None or not (one == 1).all():
            return False
        switch = inverse.inputs[1]
    cast = producer_of(switch, "Cast")
    source = cast.inputs[0] if cast is not None else None
    return source is not None and source.dtype == ir.DataType.BOOL


def _only_softmaxes(value: ir.Value) -> bool:
    """Returns whether `value` ends in nothing but softmaxes, through operators that carry it."""
    waiting, seen = [value], {value}
    while waiting:
        one = waiting.pop()
        if one.is_graph_output() or not one.uses():
            return False
        for use in one.uses():
            if is_operator(use.node, "Softmax"):
                continue
            carries = is_operator(use.node, *_CARRIERS)
            if not carries or use.idx not in _CARRIERS[use.node.op_type]:
                return False
            new = set(use.node.outputs) - seen
            waiting.extend(new)
            seen |= new
    return True


def _every_row_is_open(node: ir.Node, array: NDArray[Any]) -> bool:
    """Returns whether each row along the softmax's axis, the last, has an entry without mask."""
    shape = shape_of(node.outputs[0])
    uses = [use.node for use in node.outputs[0].uses() if is_operator(use.node, "Softmax")]
    last = shape is not None and all(
        attribute(use, "axis", -1) in (-1, len(shape) - 1) for use in uses
    )
    return bool(last and (array.max(axis=-1) > _HUGE).all())
