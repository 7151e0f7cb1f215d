"""Replaces a convolution of a single pixel, seen at rank 5 or more, with a Gemm.

Why: in fp16 Qualcomm's HTP compiler gives up with "Failed to finalize QNN graph. Error:
QNN_COMMON_ERROR_MEM_ALLOC" (v75, QAIRT 2.51) where views alone stand between such a convolution and
a tensor of rank 5, as selective kernels weigh their branches. With a Gemm it compiles, and the
emulator gives 69 dB.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, is_operator, nodes_of, shape_of
from edgeport.passes.shapes import view
from edgeport.types import PassResult

NAME = "single-pixel Conv to Gemm"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 3, 1, 1] x) => (float[1, 2, 1, 1, 1] y)
<float[2, 3, 1, 1] weight = {1.0, 2.0, 3.0, -1.0, 0.5, 2.0}, float[2] bias = {0.5, -0.5},
 int64[5] branches = {1, 2, 1, 1, 1}> {
  weighed = Conv (x, weight, bias)
  y = Reshape (weighed, branches)
}
"""
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
_RANK = 5  # from here on the compiler gives up


def point_conv_to_gemm(model: ir.Model) -> PassResult:
    """Returns the model with a Gemm for each such Conv; refuses those of several groups."""
    editor = Editor(model)
    for node in nodes_of(model, "Conv"):
        sizes, shape = shape_of(node.inputs[0]), shape_of(node.outputs[0])
        weight = array_of(node.inputs[1])
        if sizes is None or shape is None or weight is None or weight[0, 0].size != 1:
            continue
        if any(size != 1 for size in (*sizes[2:], *shape[2:])) or not _seen_high(node.outputs[0]):
            continue
        if attribute(node, "group", 1) != 1:
            editor.refuse(node, "a convolution of one pixel in groups, seen at rank 5")
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        row = view(editor, node, node.inputs[0], sizes[:2])
        matrix = editor.constant(node, weight.reshape(weight.shape[:2]), "matrix")
        inputs = [row, matrix, *([] if bias is None else [bias])]
        product = editor.add(node, "Gemm", inputs, transB=1)
        editor.replace(node.outputs[0], view(editor, node, product, shape))
    return editor.result(NAME)


def _seen_high(value: ir.Value) -> bool:
    """Returns whether views alone lead from `value` to a tensor of rank 5 or more."""
    for use in value.uses():
        shown = use.node.outputs[0]
        if not is_operator(use.node, *_VIEWS) or use.idx != 0:
            continue
        if (shown.shape is not None and len(shown.shape) >= _RANK) or _seen_high(shown):
            return True
    return False
