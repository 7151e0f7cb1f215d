"""Replaces a depthwise Conv of a large kernel with a sum of ones of at most 7 x 7.

Each part of the kernel reads the input from its own offset, so its padding is the whole one's less
what the offset takes; where none is left, the input is sliced. 11 x 11 become four: 6 and 5 each
way. Some GPU delegates have no path for large kernels. Qualcomm's HTP takes 11 x 11 as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, nodes_of, opset, shape_of
from edgeport.passes.shapes import SHAPES_OPSET, cut
from edgeport.types import PassResult

NAME = "split large kernels"
EXAMPLE = f"""
<ir_version: 10, opset_import: ["" : 21]>
example (float[1, 1, 12, 6] x) => (float[1, 1, 12, 6] y)
<float[1, 1, 9, 1] w = {{{", ".join(str(tap / 8) for tap in range(1, 10))}}}>
{{ y = Conv <pads = [4, 0, 4, 0]> (x, w) }}
"""
MAX_KERNEL = 7  # ConvNeXt's; a delegate's own limit goes in as the argument


def split_large_kernels(model: ir.Model, limit: int = MAX_KERNEL) -> PassResult:
    """Returns the model with depthwise kernels of at most `limit` taps along each axis.

    Refuses a computed kernel, shapes that are not static and automatic padding.
    """
    editor = Editor(model)
    for node in nodes_of(model, "Conv") if opset(model) >= SHAPES_OPSET else ():
        kernel = shape_of(node.inputs[1])
        if kernel is None or len(kernel) < 3 or max(kernel[2:]) <= limit:
            continue
        if kernel[1] == 1 and kernel[0] % attribute(node, "group", 1) == 0:
            _split(editor, node, limit)
    return editor.result(NAME)


def _split(editor: Editor, node: ir.Node, limit: int) -> None:
    kernel, shape = array_of(node.inputs[1]), shape_of(node.inputs[0])
    if kernel is None or shape is None:
        return editor.refuse(node, "its kernel is computed, or its input's shape is not static")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return editor.refuse(node, "automatic padding")
    rank = kernel.ndim - 2
    steps = attribute(node, "dilations", [1] * rank)
    pads = np.reshape(attribute(node, "pads", [0] * 2 * rank), (2, rank))
    attributes = {name: one.value for name, one in node.attributes.items()}
    attributes.pop("auto_pad", None)
    total = None
    for part in product(*(_parts(size, limit) for size in kernel.shape[2:])):
        before = pads[0] - [start * step for (start, _), step in zip(part, steps, strict=True)]
        after = pads[1] - [
            (size - stop) * step
            for size, (_, stop), step in zip(kernel.shape[2:], part, steps, strict=True)
        ]
        value = node.inputs[0]
        assert value is not None
        for axis in range(rank):
            size = shape[axis + 2]
            start, stop = max(0, -before[axis]), size - max(0, -after[axis])
            if (start, stop) != (0, size):
                value = cut(editor, node, value, axis + 2, int(start), int(stop))
        taps = kernel[(slice(None), slice(None), *(slice(*ends) for ends in part))]
        inputs = [value, editor.constant(node, taps, "part")]
        attributes["kernel_shape"] = list(taps.shape[2:])
        attributes["pads"] = [int(pad) for pad in np.maximum([before, after], 0).reshape(-1)]
        bias = node.inputs[2:] if total is None else ()
        made = editor.add(node, "Conv", [*inputs, *bias], **attributes)
        total = made if total is None else editor.add(node, "Add", [total, made])
    assert total is not None
    editor.replace(node.outputs[0], total)


def _parts(size: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yields the ends of the fewest parts of `size` that `limit` allows, as even as they go."""
    count = -(-size // limit)
    for index in range(count):
        yield size * index // count, size * (index + 1) // count
