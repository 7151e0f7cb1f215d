"""Replaces Log(a / b) of what is never negative with Log(a) - Log(b).

The quotient of two numbers between 0.001 and 1 needs a range up to 1000, whose steps leave nothing
of what is small: the inverse of a sigmoid, as detection transformers have it, gives 23 dB in w8a16
and -6 in w8a8 on Qualcomm's HTP (v75, QAIRT 2.51, emulated), the difference 69 and 32.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, nodes_of, only_user, producer_of, scalar_of
from edgeport.types import PassResult

NAME = "Log of a quotient"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) {
  a = Sigmoid(x)
  b = Exp(x)
  odds = Div(a, b)
  y = Log(odds)
}
"""
_NEVER_NEGATIVE = ("Sigmoid", "Exp", "Softmax", "Softplus", "Relu", "Abs", "Sqrt", "HardSigmoid")


def split_log_of_quotient(model: ir.Model) -> PassResult:
    """Returns the model with a difference of logarithms; the quotient must have no other reader."""
    editor = Editor(model)
    for node in nodes_of(model, "Log"):
        quotient = producer_of(node.inputs[0], "Div")
        if quotient is None or only_user(quotient.outputs[0]) is not node:
            continue
        if not all(_is_never_negative(value) for value in quotient.inputs):
            continue
        logarithms = [editor.add(node, "Log", [value]) for value in quotient.inputs]
        editor.replace(node.outputs[0], editor.add(node, "Sub", logarithms))
    return editor.result(NAME)


def _is_never_negative(value: ir.Value | None) -> bool:
    if (array := array_of(value)) is not None:
        return bool((array >= 0).all())
    if (clip := producer_of(value, "Clip")) is not None:
        least = scalar_of(clip.inputs[1]) if len(clip.inputs) > 1 else None
        return least is not None and least >= 0
    if (total := producer_of(value, "Add", "Mul")) is not None:
        return all(_is_never_negative(one) for one in total.inputs)
    return producer_of(value, *_NEVER_NEGATIVE) is not None
