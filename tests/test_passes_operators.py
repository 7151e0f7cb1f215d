"""The passes for single operators that the HTP refuses or computes wrongly: forms and refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from test_passes_htp import HEAD, applied, gaussian, operators

from edgeport.compare import sqnr_db
from edgeport.passes.average_pools import average_pools
from edgeport.passes.constant_base import power_of_constant_to_exp
from edgeport.passes.corner_pads import pad_corner_by_concat
from edgeport.passes.cumulative_sums import cumsum_to_matmul
from edgeport.passes.dft import dft_to_matmul
from edgeport.passes.erf_parts import erf_to_tanh
from edgeport.passes.group_norm_batch import group_norm_of_batch
from edgeport.passes.inverse_functions import functions_to_parts
from edgeport.passes.layer_norm_axes import layer_norm_over_one_axis
from edgeport.passes.log_quotient import split_log_of_quotient
from edgeport.passes.prelu_parts import prelu_to_parts
from edgeport.passes.raise_opset import raise_opset
from edgeport.passes.reductions import reductions_to_parts
from edgeport.runtimes.onnx import Session


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", [8, 9])
def test_overhanging_windows(size: int, pad: int, counted: int) -> None:
    out = -(-(size + 2 * pad - 3) // 2) + 1
    if (out - 1) * 2 >= size + pad:  # no window starts in the padding behind
        out -= 1
    text = f"""example (float[1, 2, {size}, {size}] x) => (float[1, 2, {out}, {out}] y)
    {{ y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1,
         pads = [{pad}, {pad}, {pad}, {pad}], count_include_pad = {counted}> (x) }}"""
    result = applied(average_pools, text, x=gaussian(1, 2, size, size))
    assert result.count == 1
    assert average_pools(result.model).count == 0


@pytest.mark.parametrize("counted", [0, 1])
def test_padded_boxes_become_two_pools(counted: int) -> None:
    text = f"""example (float[2, 3, 4, 6, 5] x) => (float[2, 3, 2, 3, 3] y)
    {{ y = AveragePool <kernel_shape = [3, 3, 3], strides = [2, 2, 2],
         pads = [1, 1, 1, 1, 1, 1], count_include_pad = {counted}> (x) }}"""
    result = applied(average_pools, text, x=gaussian(2, 3, 4, 6, 5))
    assert operators(result).count("AveragePool") == 2


@pytest.mark.parametrize(("kernel", "size", "pools"), [(4, 8, 2), (6, 13, 2), (12, 24, 3)])
def test_even_tiles_become_tiles_of_tiles(kernel: int, size: int, pools: int) -> None:
    out = size // kernel
    text = f"""example (float[1, 2, {size}, {size}] x) => (float[1, 2, {out}, {out}] y)
    {{ y = AveragePool <kernel_shape = [{kernel}, {kernel}],
         strides = [{kernel}, {kernel}]> (x) }}"""
    assert operators(applied(average_pools, text, x=gaussian(1, 2, size, size))) == (
        ["AveragePool"] * pools
    )


def test_a_pool_that_is_right_stays() -> None:
    text = """example (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y)
    { y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"""
    assert applied(average_pools, text, x=gaussian(1, 2, 8, 8)).count == 0


def test_a_norm_over_three_axes_and_one_whose_mean_is_read() -> None:
    head = "example (float[2, 2, 3, 4] x) => "
    scale = "<float[2, 3, 4] s = {" + ", ".join(map(str, range(1, 25))) + "}>"
    text = f"{head}(float[2, 2, 3, 4] y) {scale} {{ y = LayerNormalization <axis = 1> (x, s, s) }}"
    result = applied(layer_norm_over_one_axis, text, 110, x=gaussian(2, 2, 3, 4))
    assert operators(result) == ["Reshape", "LayerNormalization", "Reshape"]
    text = f"""{head}(float[2, 2, 3, 4] y, float[2, 1, 1, 1] m) {scale}
    {{ y, m = LayerNormalization <axis = 1> (x, s) }}"""
    refused = applied(layer_norm_over_one_axis, text, x=gaussian(2, 2, 3, 4)).refused
    assert refused == ("LayerNormalization: its mean or deviation is read",)


def test_one_picture_keeps_its_group_norm() -> None:
    text = """example (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) <float[4] s = {1, 2, 3, 4}>
    { y = GroupNormalization <num_groups = 2> (x, s, s) }"""
    assert applied(group_norm_of_batch, text, x=gaussian(1, 4, 2, 2)).count == 0
    text = text.replace("[1, 4, 2, 2]", "[3, 4, 2, 2]")
    assert applied(group_norm_of_batch, text, 110, x=gaussian(3, 4, 2, 2)).count == 1


def test_one_slope_for_all_channels_stays() -> None:
    text = "example (float[2, 3] x) => (float[2, 3] y) <float[1] s = {0.2}> { y = PRelu(x, s) }"
    assert applied(prelu_to_parts, text, x=gaussian(2, 3)).count == 0


@pytest.mark.parametrize(
    ("pads", "count"),
    [("0, 0, 0, 0, 0, 0, 2, 1", 1), ("0, 1, 0, 0, 0, 0, 1, 2", 1), ("0, 0, 1, 0, 0, 0, 1, 1", 0)],
)
def test_pads_of_the_corner(pads: str, count: int) -> None:
    numbers = [int(one) for one in pads.split(",")]
    out = [s + numbers[i] + numbers[4 + i] for i, s in enumerate((1, 2, 3, 4))]
    text = f"""example (float[1, 2, 3, 4] x) => (float{out} y)
    <int64[8] pads = {{{pads}}}, float v = {{1.5}}> {{ y = Pad(x, pads, v) }}"""
    assert applied(pad_corner_by_concat, text, x=gaussian(1, 2, 3, 4)).count == count


def test_erf_over_its_whole_range() -> None:
    text = "example (float[1001] x) => (float[1001] y) { y = Erf(x) }"
    result = applied(erf_to_tanh, text, 90, x=np.linspace(-6, 6, 1001, dtype=np.float32))
    assert "Erf" not in operators(result)


@pytest.mark.parametrize("name", ["Sinh", "Cosh", "Asin", "Acos", "Asinh", "Acosh", "Atanh"])
def test_functions_at_the_ends_of_their_range(name: str) -> None:
    ends = {"Acosh": (1, 50), "Asin": (-1, 1), "Acos": (-1, 1), "Atanh": (-0.999, 0.999)}
    x = np.linspace(*ends.get(name, (-20, 20)), 501, dtype=np.float32)
    text = f"example (float[501] x) => (float[501] y) {{ y = {name}(x) }}"
    assert applied(functions_to_parts, text, 100, x=x).count == 1


@pytest.mark.parametrize("operator", ["ReduceProd", "ReduceL1", "ReduceLogSumExp"])
@pytest.mark.parametrize(
    ("axes", "shape", "keep"),
    [("1", "2, 1, 7", 1), ("0, -1", "5", 0), ("-2", "2, 7", 0), (None, "1, 1, 1", 1)],
)
def test_reductions(operator: str, axes: str | None, shape: str, keep: int) -> None:
    stated = f"<int64[{len((axes or '').split(','))}] axes = {{{axes}}}>" if axes else ""
    text = f"""example (float[2, 5, 7] x) => (float[{shape}] y) {stated}
    {{ y = {operator} <keepdims = {keep}> (x{", axes" if axes else ""}) }}"""
    result = applied(reductions_to_parts, text, 110, x=gaussian(2, 5, 7))
    assert result.count == 1 and operator not in operators(result)


def test_the_log_of_a_quotient_that_may_be_of_two_negatives_stays() -> None:
    text = """example (float[3] x) => (float[3] y) {
      a = Exp(x)
      b = TAIL(x)
      q = Div(a, b)
      y = Log(q)
    }"""
    feed = {"x": np.array([0.5, 1.0, 2.0], np.float32)}
    assert applied(split_log_of_quotient, text.replace("TAIL", "Sigmoid"), **feed).count == 1
    assert applied(split_log_of_quotient, text.replace("TAIL", "Tanh"), **feed).count == 0


def test_inverse_of_a_sigmoid() -> None:
    text = """example (float[4] x) => (float[4] y)
    <float low = {0.001}, float high = {0.999}, float one = {1.0}> {
      a = Clip(x, low, high)
      rest = Sub(one, x)
      b = Clip(rest, low)
      odds = Div(a, b)
      y = Log(odds)
    }"""
    feed = np.array([0.0, 0.2, 0.7, 1.0], np.float32)
    result = applied(split_log_of_quotient, text, x=feed)
    assert operators(result) == ["Clip", "Sub", "Clip", "Log", "Log", "Sub"]


@pytest.mark.parametrize("mode", ["exclusive = 0", "exclusive = 1", "reverse = 1"])
@pytest.mark.parametrize("axis", [0, -2])
def test_cumulative_sums(axis: int, mode: str) -> None:
    text = f"""example (float[3, 4, 5] x) => (float[3, 4, 5] y) <int64 axis = {{{axis}}}>
    {{ y = CumSum <{mode}> (x, axis) }}"""
    assert applied(cumsum_to_matmul, text, x=gaussian(3, 4, 5)).count == 1
    last = text.replace(f"{{{axis}}}>", "{2}>")
    assert applied(cumsum_to_matmul, last, x=gaussian(3, 4, 5)).count == 0


@pytest.mark.parametrize(("length", "out"), [("", 16), ("n", 14)])
def test_the_inverse_of_a_real_spectrum(length: str, out: int) -> None:
    text = f"""example (float[2, 9, 2] x) => (float[2, {out}, 1] y)
    <int64 axis = {{1}}, int64 n = {{14}}>
    {{ y = DFT <inverse = 1, onesided = 1> (x, {length}, axis) }}"""
    result = applied(dft_to_matmul, text, 110, x=gaussian(2, 9, 2))
    assert "DFT" not in operators(result)


def old_model(operator: str) -> onnx.ModelProto:
    """Returns a model at opset 11 whose weight is larger than what the converter is shown."""
    text = f"""<ir_version: 7, opset_import: ["" : 11]>
    example (float[2, 40] x) => (float[2, 1] y) {{
      a = MatMul(x, w)
      b = Softmax <axis = 1> (a)
      c = {operator}(b)
      y = ReduceMean <axes = [1]> (c)
    }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(gaussian(40, 50), "w"))
    return proto


def test_an_old_opset_is_raised_with_its_weights() -> None:
    proto, feed = old_model("Erf"), {"x": gaussian(2, 40)}
    (reference,) = Session(proto.SerializeToString()).run(feed)
    result = raise_opset(ir.from_proto(proto))
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    assert (result.count, after.opset_import[0].version, len(after.graph.input)) == (1, 21, 1)
    (actual,) = Session(after.SerializeToString()).run(feed)
    assert sqnr_db(reference, actual) > 120


def test_what_onnx_cannot_raise_stays_with_its_weights() -> None:
    proto = old_model("Erf")
    proto.graph.node[2].op_type = "NoSuchOperator"
    result = raise_opset(ir.from_proto(proto))
    assert (result.count, len(result.refused)) == (0, 1)
    assert "onnx does not convert it to opset 21" in result.refused[0]
    assert list(result.model.graph.initializers) == ["w"] and len(result.model.graph.inputs) == 1


def test_only_a_positive_base_becomes_an_exponential() -> None:
    text = """example (float[3] x) => (float[3] y) <float base = {BASE}> { y = Pow(base, x) }"""
    assert applied(power_of_constant_to_exp, text.replace("BASE", "0.5"), x=gaussian(3)).count == 1
    proto = onnx.parser.parse_model(HEAD + text.replace("BASE", "-2"))
    assert power_of_constant_to_exp(ir.from_proto(proto)).count == 0
