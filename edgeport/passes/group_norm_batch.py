"""Replaces GroupNormalization of another rank than 4, or of several images, with instance norms.

Qualcomm's HTP computes a GroupNormalization of a batch of lines wrongly in fp16 (22 dB for 4 x 16 x
32, v75, QAIRT 2.51, emulated) and its compiler's session fails on one of a batch of pictures and on
one of volumes. As InstanceNormalization of the groups, Mul and Add: 66 dB or more. One picture is
taken as it is.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, opset, shape_of
from edgeport.passes.group_norm import replace_group_norm
from edgeport.types import PassResult

NAME = "GroupNormalization of a batch"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 4, 3] x) => (float[2, 4, 3] y)
<float[4] scale = {1.0, 2.0, 3.0, 4.0}, float[4] bias = {0.1, 0.2, 0.3, 0.4}> {
  y = GroupNormalization <num_groups = 2> (x, scale, bias)
}
"""


def group_norm_of_batch(model: ir.Model) -> PassResult:
    """Returns the model without such GroupNormalization; shapes must be static."""
    editor = Editor(model)
    for node in nodes_of(model, "GroupNormalization"):
        shape = shape_of(node.inputs[0])
        if shape is None or any(shape_of(value) is None for value in node.inputs[1:]):
            continue
        if len(shape) != 4 or shape[0] != 1:
            replace_group_norm(editor, node, shape, per_group=opset(model) < 21)
    return editor.result(NAME)
