"""Replaces Einsum of one or two tensors with Transpose, Reshape and MatMul, Mul or ReduceSum.

Why: no equation but a few of plain attention is taken by Qualcomm's HTP ("Einsum unsupported
equation", every precision, v75, QAIRT 2.51).

Of two operands, labels are of four kinds: in both and in the result (batch), in both and not in the
result (summed), and in one of them only (left, right). With the labels of each kind merged into one
axis, the equation is bls,bsr->blr: a MatMul; without summed labels it is the product of
[b, l, 1] and [b, 1, r].
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of, opset, shape_of
from edgeport.types import PassResult

NAME = "Einsum to MatMul"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3, 4] x, float[3, 5, 4] w) => (float[1, 2, 3, 5] y) {
  y = Einsum <equation = "bhwc,wkc->bhwk"> (x, w)
}
"""


@dataclass(frozen=True)
class Operand:
    """A tensor with a label for each axis, and every label's size."""

    value: ir.Value
    labels: str


@dataclass(frozen=True)
class Place:
    """Where new nodes go, and the sizes of all labels."""

    editor: Editor
    node: ir.Node
    sizes: dict[str, int]
    opset: int


class _RefusedError(Exception):
    """Carries the sentence why an equation is left as it is."""


def einsum_to_matmul(model: ir.Model) -> PassResult:
    """Returns the model without such Einsums; refuses diagonals and more than two operands."""
    editor = Editor(model)
    for node in nodes_of(model, "Einsum"):
        try:
            operands, result, sizes = _parse(node)
        except _RefusedError as why:
            editor.refuse(node, str(why))
            continue
        place = Place(editor, node, sizes, opset(model))
        others = [*(one.labels for one in operands[1:]), result]
        first = _sum_out(place, operands[0], set("".join(others)))
        if len(operands) == 2:
            second = _sum_out(place, operands[1], set(first.labels + result))
            first = _contract(place, first, second, result)
        editor.replace(node.outputs[0], _arrange(place, first, result, _shape(place, result)))
    return editor.result(NAME)


def _parse(node: ir.Node) -> tuple[list[Operand], str, dict[str, int]]:
    """Returns the operands, the result's labels and each label's size, without ellipses."""
    equation = str(attribute(node, "equation")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not 1 <= len(terms) <= 2:
        raise _RefusedError(f"{equation} has {len(terms)} operands: only one or two are rewritten")
    shapes = [shape_of(value) for value in node.inputs]
    if any(shape is None or 0 in shape for shape in shapes):
        raise _RefusedError(f"{equation}: its shapes are not static")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    widths = [len(shape or ()) - len(term.replace("...", "")) for term, shape in zip(terms, shapes)]
    wide = max([w for w, term in zip(widths, terms) if "..." in term], default=0)
    dots = free[:wide]
    expanded = [
        term.replace("...", "".join(dots[len(dots) - width :]))
        for term, width in zip(terms, widths)
    ]
    sizes: dict[str, int] = {}
    for term, shape in zip(expanded, shapes):
        if len(set(term)) != len(term):
            raise _RefusedError(f"{equation} takes a diagonal")
        for label, size in zip(term, shape or ()):
            if sizes.setdefault(label, size) != size:
                raise _RefusedError(f"{equation} broadcasts an axis of size 1")
    operands = [Operand(value, term) for value, term in zip(node.inputs, expanded) if value]
    return operands, result.replace("...", "".join(dots)), sizes


def _shape(place: Place, labels: str) -> tuple[int, ...]:
    return tuple(place.sizes[label] for label in labels)


def _merged(place: Place, labels: str) -> int:
    return math.prod(_shape(place, labels))


def _sum_out(place: Place, operand: Operand, needed: set[str]) -> Operand:
    """Returns the operand summed over the labels that nothing else has."""
    axes = [axis for axis, label in enumerate(operand.labels) if label not in needed]
    if not axes:
        return operand
    editor, node = place.editor, place.node
    if place.opset < 13:
        total = editor.add(node, "ReduceSum", [operand.value], axes=axes, keepdims=0)
    else:
        which = editor.constant(node, np.array(axes), "axes")
        total = editor.add(node, "ReduceSum", [operand.value, which], keepdims=0)
    return Operand(total, "".join(label for label in operand.labels if label in needed))


def _contract(place: Place, one: Operand, two: Operand, result: str) -> Operand:
    """Returns the product of both, summed over the labels that the result has not."""
    both = [label for label in one.labels if label in two.labels]
    batch = "".join(label for label in both if label in result)
    summed = "".join(label for label in both if label not in result)
    left = "".join(label for label in one.labels if label not in both)
    right = "".join(label for label in two.labels if label not in both)
    b, m = _merged(place, batch), _merged(place, left)
    k, n = _merged(place, summed), _merged(place, right)
    outer = (b,) if batch else ()  # with no batch, plain matrices
    first = _arrange(place, one, batch + left + summed, (*outer, m, k))
    second = _arrange(place, two, batch + summed + right, (*outer, k, n))
    product = place.editor.add(place.node, "MatMul" if summed else "Mul", [first, second])
    labels = batch + left + right
    return Operand(place.editor.reshape(place.node, product, _shape(place, labels)), labels)


def _arrange(place: Place, operand: Operand, labels: str, shape: tuple[int, ...]) -> ir.Value:
    """Returns the operand with its axes in the order of `labels`, in this shape."""
    perm = [operand.labels.index(label) for label in labels]
    value = place.editor.transpose(place.node, operand.value, perm)
    return place.editor.reshape(place.node, value, shape)
