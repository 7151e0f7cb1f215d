"""Replaces Celu(x) with alpha Elu(x / alpha), and Softsign(x) with x / (1 + |x|).

Why: onnxruntime's provider for Qualcomm's HTP has neither operator, in any precision. The parts
give 68 and 66 dB in fp16, 82 and 72 in w8a16, 38 and 37 in w8a8 (v75, QAIRT 2.51, inputs of
standard deviation 2).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of
from edgeport.types import PassResult

NAME = "Celu, Softsign to parts"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) {
  soft = Softsign(x)
  y = Celu <alpha = 2.0> (soft)
}
"""


def activation_to_parts(model: ir.Model) -> PassResult:
    """Returns the model without Celu and Softsign; refuses an input of unknown type."""
    editor = Editor(model)
    for node in nodes_of(model, "Celu", "Softsign"):
        x = node.inputs[0]
        if x is None or x.dtype is None:
            editor.refuse(node, "the type of its input is not known")
            continue
        number = float(attribute(node, "alpha", 1.0)) if node.op_type == "Celu" else 1.0
        constant = editor.constant(node, np.array(number, x.dtype.numpy()), "number")
        if node.op_type == "Softsign":
            below = editor.add(node, "Add", [editor.add(node, "Abs", [x]), constant])
            value = editor.add(node, "Div", [x, below])
        else:
            value = editor.add(node, "Elu", [editor.add(node, "Div", [x, constant])])
            value = editor.add(node, "Mul", [value, constant])
        editor.replace(node.outputs[0], value)
    return editor.result(NAME)
