"""Replaces Trilu(x) with Where(triangle, x, 0) where the diagonal and the sizes are known.

onnxruntime's QNN provider has no Trilu, in any precision. Emulated for Qualcomm's HTP (v75, QAIRT
2.51): 74 dB in fp16 and in w8a16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, attribute, nodes_of, scalar_of, shape_of
from edgeport.types import PassResult

NAME = "Trilu to Where"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[3, 3] x) => (float[3, 3] y) { y = Trilu <upper = 0> (x) }
"""


def trilu_to_where(model: ir.Model) -> PassResult:
    """Returns the model without Trilu; refuses a diagonal that is computed."""
    editor = Editor(model)
    for node in nodes_of(model, "Trilu"):
        source, shape = node.inputs[0], shape_of(node.inputs[0])
        stated = node.inputs[1] if len(node.inputs) > 1 else None
        diagonal = 0.0 if stated is None else scalar_of(stated)
        if source is None or source.dtype is None or shape is None or 0 in shape:
            continue
        if diagonal is None:
            editor.refuse(node, "its diagonal is computed")
            continue
        keep = np.tri(shape[-2], shape[-1], k=int(diagonal), dtype=bool)
        if attribute(node, "upper", 1):
            keep = ~np.tri(shape[-2], shape[-1], k=int(diagonal) - 1, dtype=bool)
        triangle = editor.constant(node, keep, "triangle")
        zero = editor.constant(node, np.zeros((), source.dtype.numpy()), "zero")
        editor.replace(node.outputs[0], editor.add(node, "Where", [triangle, source, zero]))
    return editor.result(NAME)
