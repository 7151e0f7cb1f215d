"""The passes for what the HTP refuses or computes wrongly: cases that their examples miss."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeport.compare import sqnr_db
from edgeport.passes.early_mean import mean_before_view
from edgeport.passes.fold_columns import fold_columns
from edgeport.passes.gathers import flatten_gathers
from edgeport.passes.low_silu import low_silu_apart
from edgeport.passes.masks import finite_masks
from edgeport.passes.pads import pad_by_concat
from edgeport.passes.point_conv import point_conv_to_gemm
from edgeport.passes.rank import reduce_rank
from edgeport.passes.resizes import resize_to_matmul
from edgeport.passes.scatters import scatter_to_matmul
from edgeport.passes.select_branches import select_branches
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def applied(one, text: str, least_db: float = 120.0, **feed: np.ndarray) -> PassResult:
    """Returns the pass's result on a model as text, after comparing the answers on `feed`."""
    proto = onnx.parser.parse_model(HEAD + text)
    reference = Session(proto.SerializeToString()).run(feed)
    result = one(ir.from_proto(proto))
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    for expected, actual in zip(
        reference, Session(after.SerializeToString()).run(feed), strict=True
    ):
        assert sqnr_db(expected, actual) > least_db
    return result


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def operators(result: PassResult) -> list[str]:
    return [node.op_type for node in result.model.graph]


def highest_rank(result: PassResult) -> int:
    outputs = [output for node in result.model.graph for output in node.outputs]
    return max(len(output.shape) for output in outputs if output.shape is not None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=5, max_size=7), st.randoms(), st.sampled_from([4, 5]))
def test_any_transpose_keeps_its_answer_within_the_limit(sizes, random, limit) -> None:
    perm = random.sample(range(len(sizes)), len(sizes))
    n = int(np.prod(sizes))
    text = f"""example (float[{n}] x) => (float[{n}] y)
    <int64[{len(sizes)}] view = {{{", ".join(map(str, sizes))}}}, int64[1] line = {{{n}}}> {{
      a = Reshape(x, view)
      b = Transpose <perm = {perm}> (a)
      y = Reshape(b, line)
    }}"""
    result = applied(lambda m: reduce_rank(m, limit), text, x=gaussian(n))
    assert highest_rank(result) <= limit
    assert reduce_rank(result.model, limit).count == 0


def test_decomposed_relative_positions_of_rank_6_lose_their_rank() -> None:
    text = """example (float[2, 12, 12] x, float[2, 3, 4, 3] h, float[2, 3, 4, 4] w)
      => (float[2, 12, 12] y)
    <int64[6] grid = {2, 3, 4, 3, 4, 1}, int64[6] rows = {2, 3, 4, 3, 1, 1},
     int64[6] columns = {2, 3, 4, 1, 4, 1}, int64[3] back = {2, 12, 12}> {
      a = Reshape(x, grid)
      b = Reshape(h, rows)
      c = Add(a, b)
      d = Reshape(w, columns)
      e = Add(c, d)
      y = Reshape(e, back)
    }"""
    feed = {"x": gaussian(2, 12, 12), "h": gaussian(2, 3, 4, 3), "w": gaussian(2, 3, 4, 4)}
    result = applied(reduce_rank, text, **feed)
    assert highest_rank(result) <= 4
    assert operators(result).count("Add") == 2


def test_a_mean_of_rank_6_over_two_places_keeps_its_axes() -> None:
    text = """example (float[2, 3, 2, 3, 2, 3] x) => (float[2, 2, 3, 3] y)
    <int64[2] axes = {1, 4}> { y = ReduceMean <keepdims = 0> (x, axes) }"""
    result = applied(reduce_rank, text, x=gaussian(2, 3, 2, 3, 2, 3))
    assert result.count == 1 and operators(result) == ["Reshape", "ReduceMean", "Reshape"]


def test_an_operator_whose_axes_do_not_merge_is_refused() -> None:
    sizes = "2, 3, 2, 3, 2, 3"
    text = f"""example (float[{sizes}] x, float[2, 1, 2, 1, 2, 1] z) => (float[{sizes}] y)
    {{ y = Add(x, z) }}"""
    feed = {"x": gaussian(2, 3, 2, 3, 2, 3), "z": gaussian(2, 1, 2, 1, 2, 1)}
    result = applied(reduce_rank, text, **feed)
    assert result.count == 0
    assert "6 axes that do not merge" in result.refused[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_qkv_branches_are_sliced_before_their_view(batch: int) -> None:
    text = f"""example (float[{batch}, 4, 12] x) => (float[{batch}, 2, 4, 2] y)
    <int64[5] view = {{{batch}, 4, 3, 2, 2}}, int64 q = {{0}}, int64 v = {{-1}}> {{
      a = Reshape(x, view)
      b = Transpose <perm = [2, 0, 3, 1, 4]> (a)
      c = Gather <axis = 0> (b, q)
      d = Gather <axis = 0> (b, v)
      y = Add(c, d)
    }}"""
    result = applied(select_branches, text, x=gaussian(batch, 4, 12))
    assert result.count == 2 and highest_rank(result) == 4


def test_points_with_negative_coordinates() -> None:
    text = """example (float[3, 4, 2] x) => (float[2, 2, 2] y)
    <int64[2, 2, 2] points = {0, -1, -3, 2, 2, 2, 1, -4}> { y = GatherND(x, points) }"""
    result = applied(flatten_gathers, text, x=gaussian(3, 4, 2))
    assert operators(result) == ["Reshape", "Gather", "Reshape"]


MASKED = """example (float[2, 3] x, float[3] z) => (float[2, 3] y)
<float[2, 3] mask = {0, MIN, MIN, 0, 0, LAST}> {
  a = Add(x, mask)
  p = Softmax(a)
  y = TAIL
}"""


@pytest.mark.parametrize("huge", ["-1.0e9", "-3.4e38"])
def test_a_mask_becomes_finite_where_it_only_masks(huge: str) -> None:
    text = MASKED.replace("MIN", huge).replace("LAST", huge)
    feed = {"x": gaussian(2, 3), "z": gaussian(3)}
    assert applied(finite_masks, text.replace("TAIL", "Mul(p, z)"), **feed).count == 1
    also_read = text.replace("TAIL", "Max(p, a)")
    assert applied(finite_masks, also_read, **feed).count == 0


def test_a_mask_with_a_closed_row_is_refused() -> None:
    text = MASKED.replace("{0, MIN", "{MIN, MIN").replace("MIN", "-1.0e9").replace("LAST", "0")
    result = applied(
        finite_masks, text.replace("TAIL", "Mul(p, z)"), x=gaussian(2, 3), z=gaussian(3)
    )
    assert (result.count, len(result.refused)) == (0, 1)
    assert result.refused[0].endswith("leaves nothing to attend to")


def test_scatter_add_at_computed_indices_also_from_the_end() -> None:
    text = """example (float[2, 4] x, int64[2, 3] at, float[2, 3] u) => (float[2, 4] y)
    { y = ScatterElements <axis = 1, reduction = "add"> (x, at, u) }"""
    at = np.array([[0, 0, -1], [3, -4, 2]])
    result = applied(scatter_to_matmul, text, x=gaussian(2, 4), at=at, u=gaussian(2, 3))
    assert result.count == 1 and "MatMul" in operators(result)


def test_a_plain_scatter_is_a_gather_and_a_repeated_index_is_refused() -> None:
    text = """example (float[4, 2] x, float[1, 2] u) => (float[4, 2] y)
    <int64[1, 2] at = {2, -4}> { y = ScatterElements(x, at, u) }"""
    feed = {"x": gaussian(4, 2), "u": gaussian(1, 2)}
    assert "Gather" in operators(applied(scatter_to_matmul, text, **feed))
    text = text.replace("[1, 2] at = {2, -4}", "[2, 1] at = {2, -2}").replace(
        "float[1, 2] u", "float[2, 1] u"
    )
    result = applied(scatter_to_matmul, text, x=feed["x"], u=np.ones((2, 1), np.float32))
    assert "repeat" in result.refused[0]


@pytest.mark.parametrize("mode", ["wrap", "edge"])
def test_pads_of_some_axes(mode: str) -> None:
    text = f"""example (float[1, 2, 3, 4] x) => (float[1, 2, 6, 6] y)
    <int64[4] pads = {{0, 1, 2, 2}}, int64[2] axes = {{3, -2}}>
    {{ y = Pad <mode = "{mode}"> (x, pads, , axes) }}"""
    result = applied(pad_by_concat, text, x=gaussian(1, 2, 3, 4))
    assert result.count == 1 and "Pad" not in operators(result)


@pytest.mark.parametrize("number", [1.5, -2.0])
def test_a_constant_is_padded_on_all_sides(number: float) -> None:
    text = f"""example (float[1, 2, 3, 4] x) => (float[1, 2, 6, 6] y)
    <int64[4] pads = {{0, 1, 2, 2}}, int64[2] axes = {{3, -2}}, float number = {{{number}}}>
    {{ y = Pad (x, pads, number, axes) }}"""
    result = applied(pad_by_concat, text, x=gaussian(1, 2, 3, 4))
    assert operators(result) == ["Concat", "Concat"]


@pytest.mark.parametrize("number", ["0", "-inf"])
def test_zeros_and_infinities_stay_padded(number: str) -> None:
    text = """example (float[1, 2] x) => (float[1, 4] y)
    <int64[4] pads = {0, 1, 0, 1}, float number> { y = Pad (x, pads, number) }"""
    proto = onnx.parser.parse_model(HEAD + text.replace(", float number>", ">"))
    filled = onnx.numpy_helper.from_array(np.array(float(number), np.float32), "number")
    proto.graph.initializer.append(filled)
    assert pad_by_concat(ir.from_proto(proto)).count == 0


def test_columns_that_leave_pixels_over() -> None:
    text = """example (float[1, 8, 4] x) => (float[1, 2, 6, 6] y)
    <int64[2] image = {6, 6}, int64[2] block = {2, 2}>
    { y = Col2Im <strides = [3, 3]> (x, image, block) }"""
    result = applied(fold_columns, text, x=gaussian(1, 8, 4))
    assert operators(result) == ["Reshape", "ConvTranspose"]


def test_trilinear_resize_by_scales() -> None:
    text = """example (float[1, 1, 2, 3, 4] x) => (float[1, 1, 4, 6, 8] y)
    <float[5] scales = {1, 1, 2, 2, 2}> { y = Resize <mode = "linear"> (x, , scales) }"""
    result = applied(resize_to_matmul, text, x=gaussian(1, 1, 2, 3, 4))
    assert operators(result).count("MatMul") == 3


@pytest.mark.parametrize(
    ("operators_between", "count"), [("Identity", 1), ("Squeeze", 1), ("Relu", 0)]
)
def test_a_convolution_of_one_pixel_behind_views(operators_between: str, count: int) -> None:
    text = f"""example (float[1, 4, 1, 1] x, float[1, 2, 3, 5, 5] z) => (float[1, 2, 3, 5, 5] y)
    <int64[5] branches = {{1, 2, 3, 1, 1}}, float[6, 4, 1, 1] w> {{
      c = Conv(x, w)
      d = {operators_between}(c)
      e = Reshape(d, branches)
      y = Mul(e, z)
    }}"""
    text = text.replace(", float[6, 4, 1, 1] w>", f", float[6, 4, 1, 1] w = {{{_numbers(24)}}}>")
    result = applied(point_conv_to_gemm, text, x=gaussian(1, 4, 1, 1), z=gaussian(1, 2, 3, 5, 5))
    assert (result.count, operators(result).count("Gemm")) == (count, count)


def test_a_convolution_of_one_pixel_in_groups_is_refused() -> None:
    text = f"""example (float[1, 4, 1, 1] x) => (float[1, 2, 2, 1, 1] y)
    <int64[5] branches = {{1, 2, 2, 1, 1}}, float[4, 2, 1, 1] w = {{{_numbers(8)}}}> {{
      c = Conv <group = 2> (x, w)
      y = Reshape(c, branches)
    }}"""
    result = applied(point_conv_to_gemm, text, x=gaussian(1, 4, 1, 1))
    assert result.count == 0 and "groups" in result.refused[0]


def _numbers(count: int) -> str:
    return ", ".join(f"{number / count - 0.4:.4f}" for number in range(count))


@pytest.mark.parametrize(("rows", "count"), [(8, 0), (9, 1), (12, 1), (13, 0)])
@pytest.mark.parametrize("order", ["c, s", "s, c"])
def test_a_silu_of_9_to_12_rows_is_kept_apart(rows: int, count: int, order: str) -> None:
    text = f"""example (float[1, 2, {rows}, 3] x) => (float[1, 2, {rows}, 3] y)
    <float[2, 2, 1, 1] w = {{{_numbers(4)}}}> {{
      c = Conv(x, w)
      s = Sigmoid(c)
      y = Mul({order})
    }}"""
    result = applied(low_silu_apart, text, x=gaussian(1, 2, rows, 3))
    assert (result.count, operators(result).count("Mul")) == (count, 1 + count)


@pytest.mark.parametrize(("axis", "keeps", "count"), [(3, 1, 1), (-1, 0, 1), (1, 1, 1), (2, 1, 0)])
def test_a_mean_over_transposed_tokens_is_taken_first(axis: int, keeps: int, count: int) -> None:
    shape = [2, 3, 1, 5]
    if keeps:
        shape[axis] = 1
    else:
        shape.pop(axis)
    text = f"""example (float[2, 5, 3] x) => (float{shape} y)
    <int64[1] height = {{2}}, int64[1] over = {{{axis}}}> {{
      t = Transpose <perm = [0, 2, 1]> (x)
      u = Unsqueeze(t, height)
      y = ReduceMean <keepdims = {keeps}> (u, over)
    }}"""
    result = applied(mean_before_view, text, x=gaussian(2, 5, 3))
    assert result.count == count and ("Unsqueeze" in operators(result)) == (not count)


def test_a_slice_of_a_view_of_rank_6_cuts_merged_axes() -> None:
    text = """example (float[8, 6] x) => (float[2, 2, 3] y)
    <int64[6] windows = {1, 2, 2, 2, 1, 6}, int64[2] start = {1, 0}, int64[2] stop = {4, 1},
     int64[2] axes = {-1, 1}, int64[3] heads = {2, 2, 3}> {
      a = Reshape(x, windows)
      b = Slice(a, start, stop, axes)
      y = Reshape(b, heads)
    }"""
    result = applied(reduce_rank, text, x=gaussian(8, 6))
    assert highest_rank(result) <= 5 and "Slice" in operators(result)
