"""Drops an Expand whose readers broadcast its input to the same shape by themselves.

torch writes one before a division by a norm, for instance. A copy of the tensor is saved; LiteRT's
GPU delegate refuses the operator (BROADCAST_TO) at any rank. EdgeNeXt-XX-small loses all 6; with
6 Transposes less, Qualcomm's HTP has 207 operators of it in place of 225 in fp16, 195 in place of
213 in w8a16, with the same 62.6 and 40.6 dB (v75, QAIRT 2.51, emulated).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, is_operator, nodes_of, shape_of
from edgeport.types import PassResult

NAME = "drop Expand"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x, float[2, 1] z) => (float[2, 3] y)
<int64[2] shape = {2, 3}> {
  wide = Expand(z, shape)
  y = Div(x, wide)
}
"""
_BROADCASTS: tuple[str, ...] = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Where")
_BROADCASTS += ("Equal", "Greater", "Less", "And", "Or", "Xor")


def drop_expands(model: ir.Model) -> PassResult:
    """Returns the model where such readers read what was expanded; shapes must be static."""
    editor = Editor(model)
    for node in nodes_of(model, "Expand"):
        source, wide = node.inputs[0], node.outputs[0]
        if source is None or shape_of(source) is None:
            continue
        for use in list(wide.uses()):
            if _broadcasts(use.node, use.idx, source):
                use.node.replace_input_with(use.idx, source)
                editor.count += 1
        editor.drop(node)
    return editor.result(NAME)


def _broadcasts(reader: ir.Node, index: int, source: ir.Value) -> bool:
    """Returns whether `reader` has the same result with `source` as its input `index`."""
    if not is_operator(reader, *_BROADCASTS):
        return False
    inputs = [source if at == index else value for at, value in enumerate(reader.inputs)]
    shapes = [shape for value in inputs if (shape := shape_of(value)) is not None]
    return len(shapes) == len(inputs) and np.broadcast_shapes(*shapes) == shape_of(
        reader.outputs[0]
    )
