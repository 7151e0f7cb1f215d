"""Replaces operators that together compute GELU, hard-swish or Mish with the one operator.

Why, for Qualcomm's HTP (v75, QAIRT 2.51, inputs of standard deviation 2, dB against float32):

    GELU as Erf           its Erf falls to the CPU in w8a16 and w8a8; Gelu 69 and 39 dB
    GELU as Tanh          35 dB in w8a8, nine operators; Gelu 38 dB, one
    x * HardSigmoid(x)    -9 dB in fp16 (slope 1/6: a fusion of the compiler); HardSwish 65 dB
    Mish as its parts     36 dB in w8a8; Mish 47 dB
    x * Sigmoid(x)        66, 85 and 38 dB (fp16, w8a16, w8a8): stays

A function is recognised by its values on a grid, so every order of factors and both of Div by 2 and
Mul by 0.5 are found.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor
from edgeport.passes.pointwise import Function, Points, fuse_functions
from edgeport.types import PassResult

NAME = "fuse activations"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}> {
  scaled = Div(x, root)
  error = Erf(scaled)
  gate = Add(error, one)
  product = Mul(x, gate)
  y = Mul(product, half)
}
"""


def _gelu(x: Points) -> Points:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _gelu_tanh(x: Points) -> Points:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


FUNCTIONS = (
    Function("Gelu", 20, ("Erf",), _gelu),
    Function("Gelu", 20, ("Tanh", "Sigmoid"), _gelu_tanh, (("approximate", "tanh"),)),
    Function(
        "HardSwish", 14, ("HardSigmoid", "Clip", "Min"), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    ),
    Function("Mish", 18, ("Tanh",), lambda x: x * np.tanh(np.logaddexp(x, 0.0))),
)


def fuse_activations(model: ir.Model) -> PassResult:
    """Returns the model with one operator for each such function that its opset has."""
    editor = Editor(model)
    fuse_functions(editor, FUNCTIONS)
    return editor.result(NAME)
