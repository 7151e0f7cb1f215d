"""Exact graph rewrites on ONNX IR, one file each; composition is a tuple.

A pass takes an `onnx_ir.Model` and returns a `PassResult`; a second run counts 0. Its file states
NAME, EXAMPLE (a minimal model, in ONNX's text format, to which it applies) and, where its answer is
less than bit-near, TOLERANCE_DB. `apply.apply_passes` proves each on real inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, get_args

import onnx_ir as ir

from edgeport.passes.activation import fuse_activations
from edgeport.passes.activation_parts import activation_to_parts
from edgeport.passes.average_pools import average_pools
from edgeport.passes.batch_norm import fold_batch_norm
from edgeport.passes.batch_norm_affine import batch_norm_to_affine
from edgeport.passes.bounded_warp import bounded_warp
from edgeport.passes.constant_base import power_of_constant_to_exp
from edgeport.passes.corner_pads import pad_corner_by_concat
from edgeport.passes.cumulative_sums import cumsum_to_matmul
from edgeport.passes.dft import dft_to_matmul
from edgeport.passes.early_mean import mean_before_view
from edgeport.passes.einsum import einsum_to_matmul
from edgeport.passes.erf_parts import erf_to_tanh
from edgeport.passes.expand_parts import expand_to_parts
from edgeport.passes.expands import drop_expands
from edgeport.passes.flat_convolutions import flat_convolutions
from edgeport.passes.fold import fold_constants
from edgeport.passes.fold_columns import fold_columns
from edgeport.passes.gather_view import gather_to_view
from edgeport.passes.gathers import flatten_gathers
from edgeport.passes.group_norm import group_norm_to_instance_norm
from edgeport.passes.group_norm_batch import group_norm_of_batch
from edgeport.passes.inline import inline_functions
from edgeport.passes.inverse_functions import functions_to_parts
from edgeport.passes.inverse_roots import div_by_root_to_rsqrt
from edgeport.passes.large_kernels import split_large_kernels
from edgeport.passes.layer_norm import fuse_layer_norm
from edgeport.passes.layer_norm_axes import layer_norm_over_one_axis
from edgeport.passes.linear_conv import linear_to_conv
from edgeport.passes.log_quotient import split_log_of_quotient
from edgeport.passes.low_silu import low_silu_apart
from edgeport.passes.masks import finite_masks
from edgeport.passes.merge_identity import merge_identity
from edgeport.passes.pads import pad_by_concat
from edgeport.passes.parallel_conv import merge_parallel_convolutions
from edgeport.passes.point_conv import point_conv_to_gemm
from edgeport.passes.pointwise_conv import depthwise_point_to_mul
from edgeport.passes.powers import power_to_mul
from edgeport.passes.prelu_parts import prelu_to_parts
from edgeport.passes.raise_opset import raise_opset
from edgeport.passes.rank import reduce_rank
from edgeport.passes.rank_gpu import reduce_rank_for_gpu
from edgeport.passes.reciprocal import reciprocal_to_div
from edgeport.passes.reductions import reductions_to_parts
from edgeport.passes.resizes import resize_to_matmul
from edgeport.passes.scatters import scatter_to_matmul
from edgeport.passes.select_branches import select_branches
from edgeport.passes.separate_activation import separate_activation
from edgeport.passes.simplify import simplify
from edgeport.passes.softplus import fuse_softplus
from edgeport.passes.softplus_parts import softplus_to_parts
from edgeport.passes.transposes import remove_transposes
from edgeport.passes.triangles import trilu_to_where
from edgeport.types import PassResult

Pass = Callable[[ir.Model], PassResult]
Target = Literal["any", "npu float", "npu integer", "gpu", "shaders", "kept"]
"""What passes are for: any runtime, the HTP computing fp16 or quantized, or a GPU delegate.

"shaders" are GPU delegates with less: no path for large kernels.

"kept" is a graph that stays as it is: one that is quantized already, whose answers would change by
a step of its grids with almost any rewrite."""

EXACT_DB = 80.0  # float32 rounding stays above 100 dB here; a wrong graph is far below 80

EXACT: tuple[Pass, ...] = (
    inline_functions,  # first: no pass looks into functions
    raise_opset,  # before the others: they write the operators that the opset has
    fold_constants,  # before the others: they match patterns, and constants hide them
    simplify,  # shape arithmetic that only becomes constant once shapes are inferred
    reciprocal_to_div,  # after folding, so that no constant Reciprocal is rewritten
    gather_to_view,  # as_strided as a Gather hides that it is a view
    fold_batch_norm,  # onnxsim has done those after a Conv; these are the others
    merge_parallel_convolutions,  # after it: each branch has its own BatchNormalization
    fuse_layer_norm,  # after reciprocal_to_div: it looks for the division
    fuse_activations,  # after folding: it looks for scalars
    drop_expands,  # after the norms, which match shapes as they are written
    remove_transposes,  # last: fused operators are the ones that it knows how to move
)
"""For every target: the graph becomes smaller or simpler, and no slower on any."""

HTP: tuple[Pass, ...] = (
    einsum_to_matmul,  # no equation but plain attention's is taken
    activation_to_parts,  # its provider has neither Celu nor Softsign
    functions_to_parts,  # it has no Sinh, Cosh, Acos ...
    erf_to_tanh,  # what no Gelu took in: it has no Erf
    reductions_to_parts,  # no ReduceProd, no ReduceL1
    dft_to_matmul,  # no NPU has the operator
    finite_masks,  # a mask of -1e9 leaves a quantized score no step; -inf is refused
    power_to_mul,  # x^3 has 13 dB in w8a16
    trilu_to_where,  # its provider has no Trilu
    resize_to_matmul,  # no antialiasing, and wrong at any rank but 4
    fold_columns,  # its provider has no Col2Im
    scatter_to_matmul,  # refused with "add" in fp16, wrong where it is quantized
    pad_by_concat,  # no "wrap", and "edge" is wrong in fp16
    flat_convolutions,  # dilated lines are wrong in fp16; MaxPool has two dimensions at most
    average_pools,  # windows that overhang, volumes and even tiles are wrong
    layer_norm_over_one_axis,  # none over several axes is taken
    group_norm_of_batch,  # wrong, or the compiler fails, unless it is one picture
    linear_to_conv,  # before what changes ranks: it looks for pictures of rank 4
    flatten_gathers,  # before what merges axes: it writes views of high rank
    select_branches,  # before it too: a selection from a 5-D view needs none of its axes
    reduce_rank,  # last: it takes the ranks that the others leave
)
"""After EXACT where the NPU is a target, in every precision: what its compiler does not take."""

HTP_FLOAT: tuple[Pass, ...] = (
    merge_identity,  # the branch that merge_parallel_convolutions leaves alone
    point_conv_to_gemm,  # seen at rank 5, it ends the compiler in fp16
    softplus_to_parts,  # Softplus loses 25 dB in fp16, its parts nothing
    separate_activation,  # last: what stands between a product and its activation is settled
)
"""After HTP where the NPU computes fp16."""

HTP_INTEGER: tuple[Pass, ...] = (
    split_log_of_quotient,  # the quotient's range leaves nothing of what is small
    power_of_constant_to_exp,  # wrong where the exponent is the tensor
    cumsum_to_matmul,  # wrong in 8 bits but along the last axis
    fuse_softplus,  # Exp loses what is small in 8 bits
    batch_norm_to_affine,  # not taken in every element type
    depthwise_point_to_mul,  # quantized, it ends the compiler
    mean_before_view,  # over transposed tokens it is wrong in 16 bits
    low_silu_apart,  # of 9 to 12 rows it is wrong in 16 bits
    prelu_to_parts,  # a slope per channel ends the compiler where activations have 16 bits
    pad_corner_by_concat,  # wrong at the right and lower edge alone
    group_norm_to_instance_norm,  # quantized, it ends the compiler's session
)
"""After HTP where the NPU computes on quantized tensors."""


GPU: tuple[Pass, ...] = (
    linear_to_conv,  # pictures stay channels-first, without Transposes
    bounded_warp,  # delegates have no GridSample
    select_branches,  # delegates stop at rank 4: a 5-D view of q, k and v is refused
    expand_to_parts,  # LiteRT's delegate refuses BROADCAST_TO
    div_by_root_to_rsqrt,  # no CPU kernel divides integers fast
    reduce_rank_for_gpu,  # last, as for the NPU: it takes the ranks that the others leave
)
"""After EXACT for the GPU delegates of LiteRT and others, which HTP's compiler has no use for.

The same file runs with XNNPACK where there is no GPU, so none may cost time there."""

SHADERS: tuple[Pass, ...] = (
    split_large_kernels,  # XNNPACK: PADRe-3's 11 x 11 in four parts take 298 ms, whole 249 ms
)
"""After GPU for delegates that have no path for depthwise kernels above 7 x 7."""


def passes_for(target: Target) -> tuple[Pass, ...]:
    """Returns the passes for a target, in their order."""
    if target == "kept":
        return ()
    if target == "any":
        return EXACT
    if target in ("gpu", "shaders"):
        return (*EXACT, *GPU, *(SHADERS if target == "shaders" else ()))
    return (*EXACT, *HTP, *(HTP_FLOAT if target == "npu float" else HTP_INTEGER))


def all_passes() -> tuple[Pass, ...]:
    """Returns every pass of every target, once."""
    return tuple(dict.fromkeys((*EXACT, *HTP, *HTP_FLOAT, *HTP_INTEGER, *GPU, *SHADERS)))


def targets_of(one: Pass) -> tuple[Target, ...]:
    """Returns the targets whose tuples hold this pass."""
    return tuple(target for target in get_args(Target) if one in passes_for(target))


def module_of(one: Pass) -> Any:
    """Returns the module that states a pass's NAME, EXAMPLE and TOLERANCE_DB."""
    return sys.modules[one.__module__]  # as an attribute, the function may hide its module


def tolerance_db(one: Pass, exact_db: float) -> float:
    """Returns the pass's own TOLERANCE_DB, or `exact_db` where its file states none."""
    return float(getattr(module_of(one), "TOLERANCE_DB", exact_db))
