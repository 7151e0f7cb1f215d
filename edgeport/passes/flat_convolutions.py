"""Replaces what Qualcomm's HTP lacks among convolutions and pools with forms that it has.

- A dilated Conv along the width of a picture of height 1, which every Conv1d is to it, it computes
  wrongly in fp16 (length 16, dilation 4: 3 dB; 49 dB in w8a16; emulated, v75, QAIRT 2.51). Along
  the height of a picture of width 1: 69 and 51 dB.
- A dilated ConvTranspose, which it refuses, becomes one whose kernel has the zeros in it.
- A MaxPool of three dimensions, which it refuses, becomes two of two dimensions: 74 dB.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import SHAPES_OPSET, view
from edgeport.types import PassResult

NAME = "convolutions of two dimensions"
EXAMPLE = """
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 8] x) => (float[1, 1, 8] y)
<float[1, 1, 3] w = {1.0, 2.0, 3.0}>
{ y = Conv <dilations = [2], pads = [2, 2]> (x, w) }
"""


def flat_convolutions(model: ir.Model) -> PassResult:
    """Returns the model with those three forms replaced; refuses what it cannot rewrite."""
    editor = Editor(model)
    if opset(model) < SHAPES_OPSET:
        return editor.result(NAME)
    for node in nodes_of(model, "Conv"):
        shape = shape_of(node.inputs[0])
        if shape is not None and _lies(shape) and attribute(node, "dilations", [1])[-1] != 1:
            _stand(editor, node, shape)
    for node in nodes_of(model, "ConvTranspose"):
        if set(attribute(node, "dilations", [1])) != {1}:
            _fill_kernel(editor, node)
    for node in nodes_of(model, "MaxPool"):
        shape = shape_of(node.inputs[0])
        if shape is not None and len(shape) == 5 and shape_of(node.outputs[0]) is not None:
            _pool_by_axes(editor, node, shape)
    return editor.result(NAME)


def _lies(shape: tuple[int, ...]) -> bool:
    """Returns whether the input is a line along the last axis, to HTP a picture of height 1."""
    flat = len(shape) == 3 or (len(shape) == 4 and shape[2] == 1)
    return flat and shape[-1] != 1 and 0 not in shape


def _stand(editor: Editor, node: ir.Node, shape: tuple[int, ...]) -> None:
    """Replaces a Conv along the last axis with one along the height of a picture of width 1."""
    result, kernel = shape_of(node.outputs[0]), shape_of(node.inputs[1])
    if result is None or kernel is None or (len(shape) == 4 and kernel[2] != 1):
        return
    known = array_of(node.inputs[1])
    taps = (*kernel[:2], kernel[-1], 1)
    if known is not None:
        filters = editor.constant(node, known.reshape(taps), "kernel")
    else:
        filters = view(editor, node, node.inputs[1], taps)
    attributes = {name: one.value for name, one in node.attributes.items()}
    for name in ("dilations", "strides", "kernel_shape"):
        if name in attributes:
            attributes[name] = [attributes[name][-1], 1]
    if "pads" in attributes:
        pads = attributes["pads"]
        if len(pads) == 4 and (pads[0] or pads[2]):
            return
        attributes["pads"] = [pads[len(pads) // 2 - 1], 0, pads[-1], 0]
    image = view(editor, node, node.inputs[0], (*shape[:2], shape[-1], 1))
    value = editor.add(node, "Conv", [image, filters, *node.inputs[2:]], **attributes)
    editor.replace(node.outputs[0], view(editor, node, value, result))


def _fill_kernel(editor: Editor, node: ir.Node) -> None:
    kernel, dilations = array_of(node.inputs[1]), attribute(node, "dilations")
    if kernel is None:
        return editor.refuse(node, "its kernel is computed, so zeros cannot be put into it")
    sizes = [(size - 1) * step + 1 for size, step in zip(kernel.shape[2:], dilations, strict=True)]
    filled = np.zeros((*kernel.shape[:2], *sizes), kernel.dtype)
    filled[(slice(None), slice(None), *(slice(None, None, int(d)) for d in dilations))] = kernel
    attributes = {name: one.value for name, one in node.attributes.items()}
    attributes.pop("dilations")
    attributes["kernel_shape"] = sizes
    inputs = [node.inputs[0], editor.constant(node, filled, "kernel"), *node.inputs[2:]]
    editor.replace(node.outputs[0], editor.add(node, "ConvTranspose", inputs, **attributes))


def _pool_by_axes(editor: Editor, node: ir.Node, shape: tuple[int, ...]) -> None:
    """Replaces a maximum over a box with one over its faces, then one along its depth."""
    result = shape_of(node.outputs[0])
    assert result is not None
    if len(node.outputs) > 1 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return editor.refuse(node, "MaxPool with indices or automatic padding")
    plain = {"strides": [1] * 3, "dilations": [1] * 3, "pads": [0] * 6}
    kernel = attribute(node, "kernel_shape")
    strides, dilations, pads = (attribute(node, name, unset) for name, unset in plain.items())
    ceil = attribute(node, "ceil_mode", 0)
    batch, channels, depth, height, width = shape
    faces = view(editor, node, node.inputs[0], (batch, channels * depth, height, width))
    faces = editor.add(
        node,
        "MaxPool",
        [faces],
        kernel_shape=kernel[1:],
        strides=strides[1:],
        dilations=dilations[1:],
        pads=[*pads[1:3], *pads[4:6]],
        ceil_mode=ceil,
    )
    stack = view(editor, node, faces, (batch, channels, depth, math.prod(result[3:])))
    stack = editor.add(
        node,
        "MaxPool",
        [stack],
        kernel_shape=[kernel[0], 1],
        strides=[strides[0], 1],
        dilations=[dilations[0], 1],
        pads=[pads[0], 0, pads[3], 0],
        ceil_mode=ceil,
    )
    editor.replace(node.outputs[0], view(editor, node, stack, result))
