"""Replaces operators above rank 4, where GPU delegates stop, with the same on merged axes.

Of torch's attention the view of queries, keys and values has five axes, one of size 1.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from edgeport.passes.rank import EXAMPLE as EXAMPLE
from edgeport.passes.rank import reduce_rank
from edgeport.types import PassResult

NAME = "reduce rank to 4"
GPU_RANK = 4


def reduce_rank_for_gpu(model: ir.Model) -> PassResult:
    """Returns the model without operators above rank `GPU_RANK`; refuses as `reduce_rank` does."""
    return dataclasses.replace(reduce_rank(model, GPU_RANK), name=NAME)
