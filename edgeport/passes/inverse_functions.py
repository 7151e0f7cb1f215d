"""Replaces Sinh, Cosh, Asin, Acos, Asinh, Acosh and Atanh with Exp, Log, Sqrt and Atan.

Why: Qualcomm's HTP has none of them in fp16, and only Asin where it is quantized (v75, QAIRT 2.51).

    sinh, cosh   (exp(x) -+ exp(-x)) / 2                60 / 56 / 20 dB in fp16, w8a16 and w8a8
    asin         2 atan(x / (1 + sqrt(1 - x^2)))        58 / 67 / 42
    acos         pi / 2 - asin(x)                       66 / 76 / 49
    asinh        sign(x) log(|x| + sqrt(x^2 + 1))       69 / 70 / 33
    acosh        log(x + sqrt(x^2 - 1))                 68 / 74 / 48
    atanh        (log(1 + x) - log(1 - x)) / 2          65 / 83 / 39

In w8a16 asinh and acosh have these figures where the grid of Log's output spans 4 or more: below,
the HTP computes a 16-bit Log wrongly.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, nodes_of
from edgeport.types import PassResult

NAME = "hyperbolic and inverse functions to parts"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 3] x) => (float[2, 3] y) {
  a = Sinh(x)
  y = Asinh(a)
}
"""


class _Terms:
    """Writes scalar expressions of one tensor before a node."""

    def __init__(self, editor: Editor, node: ir.Node, x: ir.Value) -> None:
        assert x.dtype is not None
        self.x, self._editor, self._node, self._kind = x, editor, node, x.dtype.numpy()

    def __call__(self, operator: str, *terms: ir.Value | float) -> ir.Value:
        """Returns the operator's output; numbers become constants of x's type."""
        inputs = [
            term
            if isinstance(term, ir.Value)
            else self._editor.constant(self._node, np.array(term, self._kind), "number")
            for term in terms
        ]
        return self._editor.add(self._node, operator, inputs)


def functions_to_parts(model: ir.Model) -> PassResult:
    """Returns the model without these functions; refuses an input of unknown type."""
    editor = Editor(model)
    for node in nodes_of(model, *_PARTS):
        x = node.inputs[0]
        if x is None or x.dtype is None:
            editor.refuse(node, "the type of its input is not known")
            continue
        editor.replace(node.outputs[0], _PARTS[node.op_type](_Terms(editor, node, x)))
    return editor.result(NAME)


def _hyperbolic(terms: _Terms, operator: str) -> ir.Value:
    rising, falling = terms("Exp", terms.x), terms("Exp", terms("Neg", terms.x))
    return terms("Mul", terms(operator, rising, falling), 0.5)


def _asin(terms: _Terms) -> ir.Value:
    """The tangent of half the angle never divides by zero."""
    cosine = terms("Sqrt", terms("Sub", 1.0, terms("Mul", terms.x, terms.x)))
    half = terms("Atan", terms("Div", terms.x, terms("Add", cosine, 1.0)))
    return terms("Add", half, half)


def _root(terms: _Terms, operator: str) -> ir.Value:
    return terms("Sqrt", terms(operator, terms("Mul", terms.x, terms.x), 1.0))


def _asinh(terms: _Terms) -> ir.Value:
    size = terms("Log", terms("Add", terms("Abs", terms.x), _root(terms, "Add")))
    return terms("Mul", size, terms("Sign", terms.x))


def _acosh(terms: _Terms) -> ir.Value:
    return terms("Log", terms("Add", terms.x, _root(terms, "Sub")))


def _atanh(terms: _Terms) -> ir.Value:
    above = terms("Log", terms("Add", terms.x, 1.0))
    below = terms("Log", terms("Sub", 1.0, terms.x))
    return terms("Mul", terms("Sub", above, below), 0.5)


_PARTS = {
    "Sinh": lambda terms: _hyperbolic(terms, "Sub"),
    "Cosh": lambda terms: _hyperbolic(terms, "Add"),
    "Asin": _asin,
    "Acos": lambda terms: terms("Sub", math.pi / 2, _asin(terms)),
    "Asinh": _asinh,
    "Acosh": _acosh,
    "Atanh": _atanh,
}
