"""Puts Clip(x, -65504, 65504) between a convolution or matrix product and its activation.

Why: Qualcomm's HTP fuses the two in fp16, and the fused activation is coarse. A Clip at the ends of
fp16 changes no fp16 number and keeps them apart. Conv and activation, dB against fp32 on N(0, 1)
(emulated, v75, QAIRT 2.51), fused and apart: Sigmoid 47.9 and 66.7, SiLU 48.7 and 64.2, Gelu 51.8
and 64.2, Tanh 43.7 and 68.5; MatMul with Gelu 54.8, with SiLU 49.2. In whole networks with random
weights: EfficientNet-B0 14.9 and 42.3, MobileViT-XS 28.5 and 49.5, DeiT-Tiny 40.7 and 56.5.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, nodes_of, opset, producer_of
from edgeport.types import PassResult

NAME = "separate activation"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {0.5, 0.25, -0.5, 1.0}> {
  convolved = Conv(x, w)
  gate = Sigmoid(convolved)
  y = Mul(convolved, gate)
}
"""
ACTIVATIONS = ("Sigmoid", "Tanh", "Gelu")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST_FP16 = 65504.0
_CLIP_HAS_INPUTS = 11  # the opset


def separate_activation(model: ir.Model) -> PassResult:
    """Returns the model with a Clip before each activation that follows a product."""
    editor = Editor(model)
    for node in nodes_of(model, *ACTIVATIONS):
        value = node.inputs[0]
        if value is None or not _is_product(value) or value.is_graph_output():
            continue
        if opset(model) < _CLIP_HAS_INPUTS:
            editor.refuse(node, f"Clip takes its limits as inputs from opset {_CLIP_HAS_INPUTS} on")
        elif value.dtype is None:
            editor.refuse(node, "the type of its input is not known")
        else:
            _clip(editor, node, value)
    return editor.result(NAME)


def _is_product(value: ir.Value) -> bool:
    """Returns whether a product makes `value`, with or without a bias added to it."""
    if producer_of(value, *_PRODUCTS) is not None:
        return True
    add = producer_of(value, "Add")
    if add is None:
        return False
    products = [one for one in add.inputs if producer_of(one, *_PRODUCTS) is not None]
    return bool(products) and any(array_of(one) is not None for one in add.inputs)


def _clip(editor: Editor, node: ir.Node, value: ir.Value) -> None:
    """Lets everything that read `value` read it clipped; only then the Clip costs nothing."""
    assert value.dtype is not None
    maker, readers = value.producer(), list(value.uses())
    assert maker is not None and maker.graph is not None
    after = next(one for one in maker.graph if any(one is use.node for use in readers))
    limits = [
        editor.constant(node, np.array(limit, value.dtype.numpy()), hint)
        for hint, limit in (("least", -_LARGEST_FP16), ("largest", _LARGEST_FP16))
    ]
    clipped = editor.add(after, "Clip", [value, *limits])
    for use in readers:
        use.node.replace_input_with(use.idx, clipped)
    editor.count += 1
