"""Replaces Pow(c, x) of a constant c above 0 with Exp(x log c).

A quantized Pow whose exponent is the tensor is wrong on Qualcomm's HTP (2^x: 1 dB in w8a16, -10 in
w8a8, v75, QAIRT 2.51, emulated); as Exp it has 70 and 29 dB. In fp16 the Pow is right.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, scalar_of
from edgeport.types import PassResult

NAME = "Pow of a constant to Exp"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) <float two = {2.0}> { y = Pow(two, x) }
"""


def power_of_constant_to_exp(model: ir.Model) -> PassResult:
    """Returns the model without such Pow; both types must be the same floating-point one."""
    editor = Editor(model)
    for node in nodes_of(model, "Pow"):
        base, exponent = node.inputs
        number = scalar_of(base)
        if number is None or number <= 0 or base is None or exponent is None:
            continue
        if exponent.dtype is None or exponent.dtype != base.dtype or base.shape is None:
            continue
        if exponent.shape is None or len(base.shape) > len(exponent.shape):
            continue  # a base of more axes gives them to the result
        if not exponent.dtype.is_floating_point():
            continue
        factor = np.array(math.log(number), exponent.dtype.numpy())
        scaled = editor.add(node, "Mul", [exponent, editor.constant(node, factor, "factor")])
        editor.replace(node.outputs[0], editor.add(node, "Exp", [scaled]))
    return editor.result(NAME)
