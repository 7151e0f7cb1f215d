"""Replaces a BatchNormalization that nothing could take in with Mul and Add per channel.

Why: Qualcomm's HTP does not take a BatchNormalization in every element type: "QNN Batchnorm
unsupported datatype" (w8a16, v75, QAIRT 2.51). Mul and Add are taken in all.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.batch_norm import affine_of
from edgeport.passes.graph import Editor, nodes_of, shape_of
from edgeport.types import PassResult

NAME = "BatchNormalization to Mul, Add"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3] x) => (float[1, 2, 3] y)
<float[2] scale = {1.0, 2.0}, float[2] bias = {0.1, 0.2},
 float[2] mean = {0.5, -0.5}, float[2] variance = {1.0, 4.0}> {
  y = BatchNormalization(x, scale, bias, mean, variance)
}
"""


def batch_norm_to_affine(model: ir.Model) -> PassResult:
    """Returns the model with Mul and Add; refuses one whose statistics are not constant."""
    editor = Editor(model)
    for node in nodes_of(model, "BatchNormalization"):
        affine, shape, value = affine_of(node), shape_of(node.inputs[0]), node.inputs[0]
        if affine is None or shape is None or value is None or value.dtype is None:
            editor.refuse(node, "its statistics are not constant, or its shape is not known")
            continue
        column = (-1, *(1,) * (len(shape) - 2))
        multiplier, summand = (
            editor.constant(node, vector.reshape(column).astype(value.dtype.numpy()), name)
            for name, vector in zip(("multiplier", "summand"), affine)
        )
        product = editor.add(node, "Mul", [value, multiplier])
        editor.replace(node.outputs[0], editor.add(node, "Add", [product, summand]))
    return editor.result(NAME)
