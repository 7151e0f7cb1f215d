"""Replaces BatchNormalization(x) + Conv(x, w) with Conv(x, w + diagonal).

Why: the identity branch of a block that is trained with parallel branches (RepVGG, MobileOne) is
one more linear map of its input. Only for float: beside a diagonal near 1 an 8-bit weight leaves
few steps for the others (FastViT-T8 in w8a16: 37 dB with the branches apart, 30 dB with them
merged, onnxruntime on the host, random weights).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.batch_norm import affine_of
from edgeport.passes.graph import Editor, nodes_of, only_user, producer_of, shape_of
from edgeport.passes.parallel_conv import Branch, branch_of, merge
from edgeport.types import PassResult

NAME = "merge identity"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {0.5, 0.25, -0.5, 1.0}, float[2] scale = {1.0, 2.0},
 float[2] shift = {0.5, 0.0}, float[2] mean = {0.25, 0.0}, float[2] variance = {1.0, 4.0}> {
  convolved = Conv(x, w)
  same = BatchNormalization(x, scale, shift, mean, variance)
  y = Add(convolved, same)
}
"""


def merge_identity(model: ir.Model) -> PassResult:
    """Returns the model with each such sum in one convolution."""
    editor = Editor(model)
    for node in nodes_of(model, "Add"):
        for left, right in (tuple(node.inputs), tuple(reversed(node.inputs))):
            branch = branch_of(producer_of(left, "Conv"))
            # The BatchNormalization may have other readers: it costs the convolution nothing.
            if branch is None or left is None or only_user(left) is not node:
                continue
            identity = _identity(producer_of(right, "BatchNormalization"), branch)
            if identity is not None:
                merge(editor, node, branch, identity)
                break
    return editor.result(NAME)


def _identity(node: ir.Node | None, like: Branch) -> Branch | None:
    """Returns a BatchNormalization as a convolution of one point with the groups of `like`."""
    affine = affine_of(node) if node is not None else None
    if node is None or affine is None or node.inputs[0] is not like.x:
        return None
    channels, axes = len(affine[0]), like.weight.ndim - 2
    shape = shape_of(like.x)
    if shape is None or shape[1] != channels or len(like.weight) != channels:
        return None
    width = channels // like.groups
    weight = np.zeros((channels, width))
    weight[np.arange(channels), np.arange(channels) % width] = affine[0]
    weight = weight.reshape(channels, width, *(1,) * axes)
    return Branch(like.x, weight, affine[1], (0,) * (2 * axes), (1,) * axes, like.groups)
