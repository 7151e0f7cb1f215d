"""What fixes a node that the NPU refuses, computes wrongly, or crashes on: one table.

A row names no pass: whether a pass of edgeport's does it is seen by running them (`doctor.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Trouble = Literal["refused", "wrong", "crash"]

UNKNOWN = "none known: rewrite the layer with other operators, or leave it on the CPU"


@dataclass(frozen=True)
class Fix:
    """A sentence for the operators and reasons that two regular expressions match in full."""

    trouble: Trouble
    ops: str
    reason: str
    sentence: str


FIXES: tuple[Fix, ...] = (
    Fix(
        "refused", "Einsum", ".*", "write it as MatMul with Transpose and Reshape around it (exact)"
    ),
    Fix(
        "refused", "DFT|STFT", ".*", "write it as two MatMuls with cosine and sine matrices (exact)"
    ),
    Fix(
        "refused",
        "Erf|Sinh|Cosh|Asinh|Acosh|Atanh|Asin|Acos|ReduceProd|ReduceL1|ReduceLogSumExp",
        ".*",
        "write it with Exp, Log, Tanh, Sqrt and sums (exact)",
    ),
    Fix(
        "refused",
        "BatchNormalization",
        ".*",
        "fold it into the convolution or Linear before it, or write it as Mul and Add (exact)",
    ),
    Fix(
        "refused",
        "LayerNormalization",
        ".*",
        "quantize its weight as uint8: an int8 one beside 16-bit activations is refused",
    ),
    Fix(
        "refused",
        "Scatter.*",
        ".*",
        "write it as a one-hot MatMul where the indices are constant or few (exact); a splat with a"
        " bounded reach with edgeport.rewrites.warp.bounded_splat (exact)",
    ),
    Fix(
        "refused",
        "Gather.*|TopK|ArgMax|ArgMin",
        ".*",
        "write it as a one-hot MatMul (exact, static sizes)",
    ),
    Fix(
        "refused",
        "GridSample",
        ".*",
        "sample bilinearly or by the nearest; where pixels move by a few at most:"
        " edgeport.rewrites.warp.bounded_warp",
    ),
    Fix("refused", "Expand", ".*", "write it as Concat, or a MatMul with ones (exact)"),
    Fix(
        "refused",
        "NonZero|NonMaxSuppression|Unique|Compress",
        ".*",
        "its output's size depends on the data: keep a fixed number with a mask, or run it after"
        " the network, on the CPU",
    ),
    Fix(
        "refused",
        "Loop|Scan|If",
        ".*",
        "unroll it with a fixed number of steps, or export one step",
    ),
    Fix(
        "refused",
        "Cast|CastLike",
        ".*",
        "drop the Cast: use float32 and int32 throughout; float64 and int64 have no NPU kernel",
    ),
    Fix(
        "refused",
        "QuantizeLinear|DequantizeLinear",
        ".*",
        "it fell with the operator beside it: fix that one",
    ),
    Fix(
        "refused",
        "Reshape|Unsqueeze|Squeeze|Transpose|Add|Sub|Mul|Div|Expand|Concat|Slice",
        ".*rank.*",
        "keep tensors at rank 5 or less: fold neighbouring axes, or the batch, into one (exact)",
    ),
    Fix(
        "refused",
        "Conv|ConvTranspose",
        ".*NHWC.*",
        "choose w8a8 or w8a16: this chip does not compute a convolution in this precision",
    ),
    Fix("refused", ".*", ".*ran out of memory.*", "give the compiler more memory (--memory)"),
    Fix(
        "refused",
        ".*",
        "onnxruntime's QNN provider has no such operator",
        "rewrite it with basic operators (MatMul, Conv, elementwise); no operator of the NPU is"
        " mapped to it",
    ),
    Fix(
        "wrong",
        "Scatter.*",
        ".*",
        "its reduction is computed wrongly: write it as a one-hot MatMul, or a gather (exact)",
    ),
    Fix(
        "wrong",
        "Reciprocal",
        ".*",
        "write 1 / x as Div: a 16-bit Reciprocal is wrong where its result exceeds 1 (exact)",
    ),
    Fix(
        "wrong",
        "AveragePool|GlobalAveragePool",
        ".*",
        "write it as a depthwise convolution of constant weights, or a product per axis (exact)",
    ),
    Fix("wrong", "Pad", ".*", "write it as a Concat with the border (exact)"),
    Fix("wrong", "CumSum", ".*", "write it as a product with a triangular matrix (exact)"),
    Fix(
        "wrong",
        "Log",
        ".*",
        "in 16 bits the range of its output must span 4 or more: widen it, or keep it in float",
    ),
    Fix(
        "wrong",
        "Pow",
        ".*",
        "write x^n as multiplications, and a^x as Exp(x ln a) (exact)",
    ),
    Fix(
        "wrong",
        "MatMul",
        ".*",
        "of a 16-bit second operand the NPU reads 8 bits: store it as int16 (v73 and later)",
    ),
    Fix(
        "wrong",
        "Resize",
        ".*",
        "write it as a MatMul of constant weights per axis (exact)",
    ),
    Fix(
        "wrong",
        ".*",
        ".*",
        "keep this operator in a wider type (w8a16 instead of w8a8, or float), or rewrite it",
    ),
    Fix(
        "crash",
        "Conv",
        ".*depthwise 1x1.*",
        "write the depthwise 1x1 convolution as Mul and Add (exact), or give its weight one scale:"
        " beyond 256 channels, with 16-bit activations and a scale a channel, the compiler fails",
    ),
    Fix(
        "crash",
        ".*Gather.*Transpose.*",
        ".*",
        "replace the Gather by Reshape where its constant indices count up: as_strided is exported"
        " so, and the compiler aborts on the Transpose behind it",
    ),
    Fix(
        "crash",
        "PRelu",
        ".*",
        "write it as Relu(x) - slope Relu(-x): with a slope a channel and 16-bit activations the"
        " compiler fails (exact)",
    ),
    Fix("crash", ".*", "timeout:.*", "give the compiler more time (--timeout), or smaller tensors"),
    Fix("crash", ".*", "memory:.*", "give the compiler more memory (--memory), or smaller tensors"),
)


def find_fix(trouble: Trouble, op: str, reason: str) -> str:
    """Returns what fixes it in one sentence; UNKNOWN, which says so, where nothing is known.

    For a crash `op` are the operators of the smallest subgraph, separated by spaces.
    """
    for fix in FIXES:
        if (
            fix.trouble == trouble
            and re.fullmatch(fix.ops, op)
            and re.fullmatch(fix.reason, reason)
        ):
            return fix.sentence
    return UNKNOWN
