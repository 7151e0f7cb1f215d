"""Replaces a PRelu of several slopes with Relu(x) - slope Relu(-x).

With 16-bit activations Qualcomm's HTP compiler ends on a PRelu of a slope per channel ("Memory
allocation related error", w8a16, v75, QAIRT 2.51); the parts give 84 dB there. In w8a8 both have
38 dB. One slope for all channels is taken as it is.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, shape_of
from edgeport.types import PassResult

NAME = "PRelu to parts"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) <float[3] slopes = {0.1, 0.2, -0.3}>
{ y = PRelu(x, slopes) }
"""


def prelu_to_parts(model: ir.Model) -> PassResult:
    """Returns the model without PRelu of several slopes; refuses an input that is no float."""
    editor = Editor(model)
    for node in nodes_of(model, "PRelu"):
        x, slope = node.inputs
        if shape_of(slope) is not None and not any(size != 1 for size in shape_of(slope) or ()):
            continue
        if x is None or x.dtype is None or not x.dtype.is_floating_point():
            editor.refuse(node, "its type is not known, or no floating-point one")
            continue
        above = editor.add(node, "Relu", [x])
        below = editor.add(node, "Relu", [editor.add(node, "Neg", [x])])
        value = editor.add(node, "Sub", [above, editor.add(node, "Mul", [below, slope])])
        editor.replace(node.outputs[0], value)
    return editor.result(NAME)
