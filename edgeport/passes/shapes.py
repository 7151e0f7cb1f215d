"""Reshapes and slices that passes write, with constant sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor

SHAPES_OPSET = 13  # from here on Slice, Squeeze, Unsqueeze and Split take axes and sizes as inputs


def view(
    editor: Editor, before: ir.Node, value: ir.Value | None, shape: tuple[int, ...]
) -> ir.Value:
    """Returns an input that must be there in another shape; no size is 0."""
    assert value is not None and 0 not in shape
    return editor.reshape(before, value, shape)


def cut(
    editor: Editor,
    before: ir.Node,
    value: ir.Value | None,
    axis: int,
    start: int,
    stop: int,
    step: int = 1,
) -> ir.Value:
    """Returns `value` from `start` to before `stop` along one axis; all of them are positive."""
    bounds = [
        editor.constant(before, np.array([number], np.int64), hint)
        for number, hint in ((start, "start"), (stop, "stop"), (axis, "axis"), (step, "step"))
    ]
    return editor.add(before, "Slice", [value, *bounds])
