"""Replaces Col2Im (torch's fold) with a ConvTranspose of one-hot kernels.

onnxruntime's QNN provider has no Col2Im, in any precision; VOLO's outlook attention needs it. Each
kernel position of a column is one channel that is added at its offset, which is what a transposed
convolution of C groups with identity kernels does. Emulated for Qualcomm's HTP (v75, QAIRT 2.51):
66 dB or more in fp16, 48 dB or more in w8a16.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, shape_of
from edgeport.types import PassResult

NAME = "Col2Im to ConvTranspose"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 8, 9] x) => (float[1, 2, 4, 4] y)
<int64[2] image = {4, 4}, int64[2] block = {2, 2}>
{ y = Col2Im(x, image, block) }
"""


def fold_columns(model: ir.Model) -> PassResult:
    """Returns the model without two-dimensional Col2Im; refuses those whose sizes are not known."""
    editor = Editor(model)
    for node in nodes_of(model, "Col2Im"):
        image, block = array_of(node.inputs[1]), array_of(node.inputs[2])
        shape = shape_of(node.inputs[0])
        if image is None or block is None or shape is None or len(image) != 2:
            editor.refuse(node, "Col2Im of other than two known dimensions")
        else:
            _replace(editor, node, shape, image.tolist(), block.tolist())
    return editor.result(NAME)


def _replace(
    editor: Editor, node: ir.Node, shape: tuple[int, ...], image: list[int], block: list[int]
) -> None:
    strides, dilations = (attribute(node, name, [1, 1]) for name in ("strides", "dilations"))
    pads = list(attribute(node, "pads", [0] * 4))
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, block, strict=True)]
    counts, rest = [], []
    for axis in range(2):
        room = image[axis] + pads[axis] + pads[axis + 2] - reach[axis]
        counts.append(room // strides[axis] + 1)
        rest.append(room % strides[axis])  # pixels at the end that no block reaches
    taps = math.prod(block)
    channels = shape[1] // taps
    columns = editor.constant(node, np.array([shape[0], shape[1], *counts], np.int64), "shape")
    source = node.inputs[0]
    assert source is not None and source.dtype is not None
    kernels = np.tile(np.eye(taps, dtype=source.dtype.numpy()), (channels, 1))
    result = editor.add(
        node,
        "ConvTranspose",
        [
            editor.add(node, "Reshape", [source, columns]),
            editor.constant(node, kernels.reshape(-1, 1, *block), "taps"),
        ],
        group=channels,
        strides=list(strides),
        dilations=list(dilations),
        pads=pads,
        output_padding=rest,
    )
    editor.replace(node.outputs[0], result)
