"""Replaces x * Sigmoid(x) of a map of 9 to 12 rows with (x * 1) * Sigmoid(x).

Why: Qualcomm's HTP computes this SiLU wrongly on 16-bit tensors of 9, 10, 11 or 12 rows, behind a
convolution or a gate (v75, QAIRT 2.51, emulated in w8a16: -1 to 6 dB, with any number of columns
and channels, and not the same in two runs). Maps of 4 to 8 and of 13 to 44 rows have 45 dB, as fp16
has at 12 rows; w8a8 has 34. The product with 1 keeps the compiler from fusing the three: 45 dB. A
network of 192 or 384 pixels has such maps.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of, producer_of, shape_of
from edgeport.types import PassResult

NAME = "SiLU of few rows apart"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 10, 2] x) => (float[1, 1, 10, 2] y) <float[1, 1, 1, 1] weight = {2.0}> {
  rows = Conv (x, weight)
  gate = Sigmoid (rows)
  y = Mul (rows, gate)
}
"""
_ROWS = range(9, 13)


def low_silu_apart(model: ir.Model) -> PassResult:
    """Returns the model with a Mul by 1 in each such SiLU."""
    editor = Editor(model)
    for node in nodes_of(model, "Mul"):
        factors = node.inputs
        gate = next((one for value in factors if (one := producer_of(value, "Sigmoid"))), None)
        value = gate.inputs[0] if gate is not None else None
        shape = shape_of(value)
        if value is None or value not in factors or shape is None or len(shape) != 4:
            continue
        if shape[2] not in _ROWS:
            continue
        assert value.dtype is not None
        unit = editor.constant(node, np.ones((), value.dtype.numpy()), "one")
        node.replace_input_with(factors.index(value), editor.add(node, "Mul", [value, unit]))
        editor.count += 1
    return editor.result(NAME)
