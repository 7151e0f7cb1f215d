"""The passes for GPU delegates: cases that their examples miss."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_passes_htp import HEAD, applied, gaussian, operators

from edgeport.passes import passes_for
from edgeport.passes.bounded_warp import bounded_warp
from edgeport.passes.expand_parts import expand_to_parts
from edgeport.passes.inverse_roots import div_by_root_to_rsqrt
from edgeport.passes.large_kernels import split_large_kernels
from edgeport.passes.rank_gpu import reduce_rank_for_gpu

SIZES = (6, 9)


def warp(bounded: str, aligned: int, attributes: str = "", scale: float = 1.0) -> str:
    """Returns a warp of a picture of SIZES as text: a base grid plus `bounded` of z times scale."""
    axes = [
        np.linspace(-1, 1, size) if aligned else (np.arange(size) * 2 + 1) / size - 1
        for size in SIZES
    ]
    base = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], axis=-1)[None]
    numbers = ", ".join(f"{number:.9f}" for number in base.reshape(-1))
    return f"""example (float[1, 2, 6, 9] x, float[1, 2, 6, 9] z) => (float[1, 2, 6, 9] y)
    <float[1, 6, 9, 2] base = {{{numbers}}}, float low = {{-0.4}}, float high = {{0.3}},
     float[2] unit = {{{scale * 0.2}, {scale * 0.3}}}> {{
      flow = Transpose <perm = [0, 2, 3, 1]> (z)
      bounded = {bounded}
      grid = Add(bounded, base)
      y = GridSample <align_corners = {aligned}{attributes}> (x, grid)
    }}"""


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("bounded", ["Clip(flow, low, high)", "Mul(tanh, unit)"])
def test_a_bounded_warp_is_a_sum_of_shifts(bounded: str, aligned: int) -> None:
    text = warp(bounded, aligned).replace("bounded =", "tanh = Tanh(flow)\n bounded =")
    result = applied(bounded_warp, text, 100.0, x=gaussian(1, 2, 6, 9), z=2 * gaussian(1, 2, 6, 9))
    assert result.count == 1 and "GridSample" not in operators(result)


@pytest.mark.parametrize(
    ("bounded", "attributes", "why"),
    [
        ("Sin(flow)", "", "bounds its displacements"),
        ("Mul(flow, unit)", "", "bounds its displacements"),
        ("Clip(flow, low)", "", "bounds its displacements"),
        ("Tanh(flow)", "", "may move pixels by 5"),
        ("Clip(flow, low, high)", ', mode = "nearest"', "interpolate"),
        ("Clip(flow, low, high)", ', padding_mode = "border"', "pads"),
    ],
)
def test_a_warp_without_a_proof_is_refused(bounded: str, attributes: str, why: str) -> None:
    feed = {"x": gaussian(1, 2, 6, 9), "z": gaussian(1, 2, 6, 9)}
    result = applied(bounded_warp, warp(bounded, 0, attributes), **feed)
    assert (result.count, len(result.refused)) == (0, 1)
    assert why in result.refused[0]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ("11, 11", "pads = [5, 5, 5, 5]"),
        ("11, 11", ""),
        ("3, 15", "pads = [0, 2, 3, 9], strides = [1, 2]"),
        ("5, 4", "dilations = [2, 3], pads = [1, 1, 8, 8]"),
    ],
)
def test_a_large_kernel_is_a_sum_of_small_ones(kernel: str, attributes: str) -> None:
    parameters = ", ".join(filter(None, ["group = 3", attributes]))
    text = f"""example (float[2, 3, 19, 21] x) => (float[n, c, h, w] y)
    <float[3, 1, {kernel}] w, float[3] b = {{1, 2, 3}}> {{ y = Conv <{parameters}> (x, w, b) }}"""
    sizes = [int(size) for size in kernel.split(",")]
    numbers = ", ".join(map(str, gaussian(3, *sizes).reshape(-1)))
    text = text.replace("] w,", f"] w = {{{numbers}}},")
    result = applied(lambda model: split_large_kernels(model, 3), text, x=gaussian(2, 3, 19, 21))
    assert result.count == 1
    kernels = [
        node.attributes["kernel_shape"].value
        for node in result.model.graph
        if node.op_type == "Conv"
    ]
    assert len(kernels) > 1 and max(max(one) for one in kernels) <= 3
    assert split_large_kernels(result.model, 3).count == 0


@pytest.mark.parametrize(
    ("source", "wanted", "operator"),
    [("2, 1", "2, 3", "Concat"), ("1", "2, 12", "Mul"), ("1, 3", "20, 3", "Mul")],
)
def test_an_expand_is_copies_or_a_product(source: str, wanted: str, operator: str) -> None:
    text = f"""example (float[{source}] x) => (float[{wanted}] y)
    <int64[2] shape = {{{wanted}}}> {{ y = Expand(x, shape) }}"""
    result = applied(expand_to_parts, text, x=gaussian(*map(int, source.split(","))))
    assert operators(result)[-1] == operator


def test_booleans_are_refused() -> None:
    text = """example (bool[1, 3] x) => (bool[20, 3] y)
    <int64[2] shape = {20, 3}> { y = Expand(x, shape) }"""
    result = applied(expand_to_parts, text, x=np.array([[True, False, True]]))
    assert result.count == 0 and "nothing multiplies" in result.refused[0]


@pytest.mark.parametrize(
    ("form", "after"),
    [
        ("one = {1}", ["Abs", "Pow"]),
        ("one = {2}", ["Abs", "Pow", "Mul"]),
        ("one = {1}, float[1, 1] wide = {1}", ["Abs", "Pow", "Mul"]),
    ],
)
def test_an_inverse_root_is_a_power(form: str, after: list[str]) -> None:
    above = "wide" if "wide" in form else "one"
    text = f"""example (float[3] x) => (float[{"1, 3" if "wide" in form else "3"}] y)
    <float[1] {form}> {{ a = Abs(x)\n r = Sqrt(a)\n y = Div({above}, r) }}"""
    result = applied(div_by_root_to_rsqrt, text, x=gaussian(3))
    assert result.count == 1 and operators(result) == after


def test_no_rank_above_four_is_left_for_a_gpu() -> None:
    """Queries, keys and values as torch's attention parts them: five axes, one of size 1."""
    text = """example (float[1, 65, 24] x) => (float[3, 65, 1, 8] y)
    <int64[5] parts = {1, 65, 1, 3, 8}, int64[4] merged = {3, 65, 1, 8}> {
      a = Reshape(x, parts)
      b = Transpose <perm = [3, 1, 2, 0, 4]> (a)
      y = Reshape(b, merged)
    }"""
    result = applied(reduce_rank_for_gpu, text, x=gaussian(1, 65, 24))
    shapes = [value.shape for node in result.model.graph for value in node.outputs]
    assert result.count and max(len(shape) for shape in shapes if shape is not None) == 4


def test_the_gpu_tuple_follows_the_exact_one() -> None:
    assert passes_for("gpu")[: len(passes_for("any"))] == passes_for("any")
    assert bounded_warp in passes_for("gpu") and bounded_warp not in passes_for("npu float")
    assert onnx.parser.parse_model(HEAD + warp("Tanh(flow)", 0)).graph.node
