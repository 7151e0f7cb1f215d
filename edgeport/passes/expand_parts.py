"""Replaces Expand with a Concat of up to 8 copies, or with a multiplication by ones.

LiteRT's GPU delegate refuses Expand (BROADCAST_TO) on computed tensors, at any rank, and takes both
of these (google-ai-edge/LiteRT, issue 9191). The ones have the shape of the result, so that only
one side is broadcast. Qualcomm's HTP needs neither: in fp16 it has 71.7 dB each way.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, nodes_of, opset, shape_of
from edgeport.passes.shapes import SHAPES_OPSET, view
from edgeport.types import PassResult

NAME = "Expand in parts"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[2, 1] x) => (float[2, 3] y)
<int64[2] shape = {2, 3}> { y = Expand(x, shape) }
"""
_MOST_COPIES = 8


def expand_to_parts(model: ir.Model) -> PassResult:
    """Returns the model without Expand; refuses unknown shapes and element types with no product.

    An Expand that expands nothing becomes a Reshape or goes.
    """
    editor = Editor(model)
    for node in nodes_of(model, "Expand") if opset(model) >= SHAPES_OPSET else ():
        source, wanted = shape_of(node.inputs[0]), shape_of(node.outputs[0])
        if array_of(node.inputs[0]) is not None:
            continue  # a constant: folding is no rewrite of this pass
        if source is None or wanted is None or 0 in (*source, *wanted):
            editor.refuse(node, "its shapes are not static, or empty")
        else:
            _replace(editor, node, source, wanted)
    return editor.result(NAME)


def _replace(
    editor: Editor, node: ir.Node, source: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    tall = (1,) * (len(wanted) - len(source)) + source
    axes = [axis for axis, size in enumerate(tall) if size != wanted[axis]]
    few = len(axes) == 1 and wanted[axes[0]] <= _MOST_COPIES
    if axes and not few and (dtype is None or dtype.numpy().kind not in "fiu"):
        return editor.refuse(node, f"nothing multiplies elements of type {dtype}")
    value = view(editor, node, node.inputs[0], tall)
    if few:
        value = editor.add(node, "Concat", [value] * wanted[axes[0]], axis=axes[0])
    elif axes:
        assert dtype is not None
        ones = editor.constant(node, np.ones(wanted, dtype.numpy()), "ones")
        value = editor.add(node, "Mul", [value, ones])
    editor.replace(node.outputs[0], value)
