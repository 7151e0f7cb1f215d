"""Removes Transposes: chains of them and Reshapes become one or none, and pairs meet and cancel.

- Transposes and Reshapes that follow each other are one reordering of the factors of their sizes:
  at most one Transpose computes it, and a Reshape where only axes of size 1 changed places.
- Elementwise operators, Softmax, norms, means, Concat, Split, Slice and Pad compute as well on
  reordered axes. Each moves to where the fewest Transposes are left, and only then.

A Transpose moves each element through memory and computes nothing. Transposes before and after, in
networks of timm: EdgeNeXt-XX-small 43 and 37, ConvNeXt-atto 34 and 32, Swin-tiny 64 and 60, LeViT-
128s 45 each way. Emulated on Qualcomm's HTP (v75, QAIRT 2.51) in fp16 their answers keep their
62.6, 62.4 and 59.4 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgeport.passes.graph import Editor, is_operator, nodes_of, only_user, opset, shape_of
from edgeport.passes.layout import fewest_transposes, inverse, perm_of
from edgeport.passes.layout_rules import rule_of
from edgeport.passes.shapes import SHAPES_OPSET
from edgeport.types import PassResult

NAME = "remove Transposes"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y)
<float[2] shift = {1.0, 2.0}> {
  a = Transpose <perm = [0, 2, 3, 1]> (x)
  b = Add(a, shift)
  c = Relu(b)
  y = Transpose <perm = [0, 3, 1, 2]> (c)
}
"""
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def remove_transposes(model: ir.Model) -> PassResult:
    """Returns the model with fewer Transposes; counts by how many they fell."""
    editor = Editor(model)
    if opset(model) < SHAPES_OPSET:
        return editor.result(NAME)
    before = left = _number(model)
    fell = True
    while fell:
        merge_chains(editor)
        for graph in list(model.graphs()):
            perms = {perm_of(node) for node in graph if is_operator(node, "Transpose")}
            for perm in sorted(one for one in perms | {inverse(p) for p in perms} if one):
                fewest_transposes(editor, graph, perm, rule_of)
        fell, left = _number(model) < left, _number(model)
    editor.count = before - left
    return editor.result(NAME)


def _number(model: ir.Model) -> int:
    return sum(1 for _ in nodes_of(model, "Transpose"))


def merge_chains(editor: Editor) -> None:
    """Replaces Transposes that only Reshapes part with one or none, and one made twice."""
    for node in reversed(list(nodes_of(editor.model, "Transpose"))):
        if node.graph is not None and not _is_repeated(editor, node):
            _shorten(editor, node)


def _is_repeated(editor: Editor, node: ir.Node) -> bool:
    """Removes `node` where an earlier Transpose of the same graph made the same tensor."""
    source = node.inputs[0]
    assert source is not None
    for use in source.uses():
        other = use.node
        if other is node or other.graph is not node.graph or not is_operator(other, "Transpose"):
            continue
        first = next(one for one in other.graph or () if one in (other, node))
        if first is other and perm_of(other) == perm_of(node):
            if node.outputs[0].is_graph_output():
                return False
            editor.replace(node.outputs[0], other.outputs[0])
            return True
    return False


def _shorten(editor: Editor, last: ir.Node) -> None:
    """Replaces the chain that ends with `last` from the nearest start that saves a Transpose."""
    chain, saved, owned = [last], 1, True
    while True:
        top = chain[-1]
        order = _order(chain) if is_operator(top, "Transpose") else None
        if order is not None and saved > (not order.is_view) and _fits(order, chain):
            _write(editor, chain, order)
            return
        source = top.inputs[0]
        maker = None if source is None else source.producer()
        if maker is None or not is_operator(maker, "Transpose", *_VIEWS):
            return
        assert source is not None
        owned = owned and only_user(source) is top
        saved += owned and is_operator(maker, "Transpose")
        chain.append(maker)


@dataclass(frozen=True)
class _Order:
    """A reordering: view the source as `sizes`, transpose by `perm`."""

    sizes: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def is_view(self) -> bool:
        return len(self.perm) <= 1


def _order(chain: list[ir.Node]) -> _Order | None:
    """Returns what a chain, its last node first, does to the factors of its source's sizes.

    None where a shape is not static, or a Reshape cuts across a size.
    """
    shapes = [shape_of(node.outputs[0]) for node in chain]
    source = shape_of(chain[-1].inputs[0])
    if source is None or any(shape is None or 0 in shape for shape in (*shapes, source)):
        return None
    sizes = dict(enumerate(source))
    before, axes = list(sizes), [[index] for index in sizes]
    for node, shape in zip(reversed(chain), reversed(shapes), strict=True):
        assert shape is not None
        if is_operator(node, "Transpose"):
            axes = [axes[axis] for axis in perm_of(node)]
        elif (axes := _cut(sizes, before, [one for axis in axes for one in axis], shape)) == []:
            return None
    return _merged(sizes, before, [one for axis in axes for one in axis])


def _cut(
    sizes: dict[int, int], before: list[int], factors: list[int], shape: tuple[int, ...]
) -> list[list[int]]:
    """Returns which factors each axis of `shape` has, cutting factors in two; [] where it cannot.

    A cut is made in `sizes` and in the source's order `before` as well.
    """
    axes: list[list[int]] = []
    left = [one for one in factors if sizes[one] != 1]
    for size in shape:
        axis: list[int] = []
        while (have := math.prod(sizes[one] for one in axis)) != size:
            one = left.pop(0)
            need = size // have
            if size % have or (sizes[one] % need and need % sizes[one]):
                return []
            if sizes[one] > need:
                inner = len(sizes)
                sizes[inner], sizes[one] = sizes[one] // need, need
                before.insert(before.index(one) + 1, inner)
                left.insert(0, inner)
            axis.append(one)
        axes.append(axis)
    return axes or [[]]


def _merged(sizes: dict[int, int], before: list[int], after: list[int]) -> _Order:
    """Returns the reordering with axes that stay side by side as one, and none of size 1."""
    before = [one for one in before if sizes[one] != 1]
    after = [one for one in after if sizes[one] != 1]
    runs: list[list[int]] = []
    for one in after:
        place = before.index(one)
        if runs and place and before[place - 1] == runs[-1][-1]:
            runs[-1].append(one)
        else:
            runs.append([one])
    order = sorted(runs, key=lambda run: before.index(run[0]))
    return _Order(
        tuple(math.prod(sizes[one] for one in run) for run in order),
        tuple(order.index(run) for run in runs),
    )


def _fits(order: _Order, chain: list[ir.Node]) -> bool:
    """Returns whether the one Transpose needs no higher rank than those it replaces."""
    return len(order.perm) <= max(len(shape_of(node.outputs[0]) or ()) for node in chain)


def _write(editor: Editor, chain: list[ir.Node], order: _Order) -> None:
    last, source, shape = chain[0], chain[-1].inputs[0], shape_of(chain[0].outputs[0])
    assert source is not None and shape is not None
    if all(is_operator(node, "Transpose") for node in chain) and not order.is_view:
        perm = tuple(range(len(shape)))
        for node in reversed(chain):
            perm = tuple(perm[axis] for axis in perm_of(node))
        return editor.replace(last.outputs[0], editor.transpose(last, source, perm))
    value = source
    if not order.is_view:
        value = editor.transpose(last, editor.reshape(last, source, order.sizes), order.perm)
    editor.replace(last.outputs[0], editor.reshape(last, value, shape))
