"""Exact graph rewrites on ONNX IR, one file each; composition is a tuple.

A pass takes an `onnx_ir.Model` and returns a `PassResult`; a second run counts 0.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgeport.passes.fold import fold_constants
from edgeport.passes.reciprocal import reciprocal_to_div
from edgeport.passes.simplify import simplify
from edgeport.types import PassResult

Pass = Callable[[ir.Model], PassResult]

EXACT: tuple[Pass, ...] = (
    fold_constants,  # first: the others match patterns, and constants hide them
    simplify,  # shape arithmetic that only becomes constant once shapes are inferred
    reciprocal_to_div,  # after folding, so that no constant Reciprocal is rewritten
)
