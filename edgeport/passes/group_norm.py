"""Replaces GroupNormalization with InstanceNormalization of the groups, Mul and Add.

Why: the session of Qualcomm's HTP compiler fails on a quantized GroupNormalization ("inserted using
the NHWC format", w8a16 and w8a8, v75, QAIRT 2.51); this form gives 80 and 33 dB there. In fp16 it
is taken as it is, with 69 dB.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of, opset, shape_of
from edgeport.types import PassResult

NAME = "GroupNormalization to InstanceNormalization"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y)
<float[4] scale = {1.0, 2.0, 3.0, 4.0}, float[4] bias = {0.1, 0.2, 0.3, 0.4}> {
  y = GroupNormalization <num_groups = 2> (x, scale, bias)
}
"""


def group_norm_to_instance_norm(model: ir.Model) -> PassResult:
    """Returns the model without GroupNormalization; refuses shapes that are not static."""
    editor = Editor(model)
    for node in nodes_of(model, "GroupNormalization"):
        shape = shape_of(node.inputs[0])
        if shape is None or any(shape_of(value) is None for value in node.inputs[1:]):
            editor.refuse(node, "its shapes are not static")
        else:
            replace_group_norm(editor, node, shape, per_group=opset(model) < 21)
    return editor.result(NAME)


def replace_group_norm(
    editor: Editor, node: ir.Node, shape: tuple[int, ...], *, per_group: bool
) -> None:
    """Puts InstanceNormalization, Mul and Add in the place of a GroupNormalization.

    Before opset 21, scale and bias had one value per group, not per channel.
    """
    x, scale, bias = node.inputs
    assert x is not None and scale is not None and bias is not None
    groups = int(attribute(node, "num_groups"))
    assert x.dtype is not None
    kind = x.dtype.numpy()
    # As lines of rank 3 the HTP normalises some of them wrongly behind other layers
    # (w8a16, v75, QAIRT 2.51, emulated: a PoolFormer has 4 dB; as pictures 59).
    flat = (shape[0], groups, shape[1] // groups, math.prod(shape[2:]))
    ones, zeros = (
        editor.constant(node, np.full(groups, number, kind), name)
        for number, name in ((1, "ones"), (0, "zeros"))
    )
    epsilon = attribute(node, "epsilon", 1e-5)
    value = editor.reshape(node, x, flat)
    value = editor.add(node, "InstanceNormalization", [value, ones, zeros], epsilon=epsilon)
    if not per_group:
        value = editor.reshape(node, value, shape)
    column = (groups, 1) if per_group else (shape[1], *(1,) * (len(shape) - 2))
    value = editor.add(node, "Mul", [value, editor.reshape(node, scale, column)])
    value = editor.add(node, "Add", [value, editor.reshape(node, bias, column)])
    if per_group:
        value = editor.reshape(node, value, shape)
    editor.replace(node.outputs[0], value)
