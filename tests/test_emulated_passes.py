"""What HTP cannot compile or computes wrongly, and what the emulator gives after a rewrite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import LIMITS, needs_compiler
from test_runtimes import compiled, emulated

from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import RuntimeCrashed
from edgeport.passes.low_silu import low_silu_apart
from edgeport.passes.pads import pad_by_concat
from edgeport.passes.point_conv import point_conv_to_gemm
from edgeport.plan import make_plan
from edgeport.quantize import weights
from edgeport.quantize.apply import quantize_as
from edgeport.quantize.config import Request
from edgeport.runtimes.lowering import compile_for
from edgeport.runtimes.onnx import Session

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
PADDED = """padded (float[1, 2, 20, 16] x) => (float[1, 2, 20, 17] output_0)
<int64[8] pads = {0, 0, 0, 0, 0, 0, 0, 1}, float one = {1.0}> {
  size = Abs(x)
  signed = Mul(x, size)
  with_ones = Pad(signed, pads, one)
  output_0 = Mul(with_ones, with_ones)
}"""


def feed(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def point_net() -> onnx.ModelProto:
    """Returns a convolution of one pixel whose channels are told apart at rank 5."""
    text = """weighed (float[1, 16, 1, 1] x) => (float[1, 2, 64, 1, 1] output_0)
    <int64[5] branches = {1, 2, 64, 1, 1}> {
      channels = Conv(x, weight)
      output_0 = Reshape(channels, branches)
    }"""
    proto = onnx.parser.parse_model(HEAD + text)
    weight = np.random.default_rng(1).standard_normal((128, 16, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight / 4, "weight"))
    return proto


def answer_db(directory: Path, proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> float:
    """Returns how near the emulated fp16 binary is to onnxruntime's answer, at the last column."""
    directory.mkdir()
    compiled(directory, proto, "float", ())
    (reference,) = Session(proto.SerializeToString()).run(inputs)
    return sqnr_db(reference[..., -1:], emulated(directory, [inputs])[0][..., -1:])


@needs_compiler
def test_a_pad_with_ones_is_wrong_in_fp16_and_its_concat_is_right(tmp_path: Path) -> None:
    proto, inputs = onnx.parser.parse_model(HEAD + PADDED), feed((1, 2, 20, 16))
    after = ir.to_proto(pad_by_concat(ir.from_proto(proto)).model)
    assert answer_db(tmp_path / "before", proto, inputs) < 20
    assert answer_db(tmp_path / "after", after, inputs) > 50


@needs_compiler
def test_a_convolution_of_one_pixel_at_rank_5_compiles_as_a_gemm(tmp_path: Path) -> None:
    proto = point_net()
    after = ir.to_proto(point_conv_to_gemm(ir.from_proto(proto)).model)
    with pytest.raises(RuntimeCrashed, match="MEM_ALLOC"):
        answer_db(tmp_path / "before", proto, feed((1, 16, 1, 1)))
    assert answer_db(tmp_path / "after", after, feed((1, 16, 1, 1))) > 50


MIXED = """mixed (float[1, 4, 49, 16] x, float[1, 4, 16, 17] z) => (float[1, 4, 49, 17] output_0) {
  output_0 = MatMul(x, z)
}"""


def operands(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (1, 4, 49, 16), "z": (1, 4, 16, 17)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@needs_compiler
@pytest.mark.parametrize(("signed", "least_db", "most_db"), [(False, 35, 50), (True, 60, 90)])
def test_a_product_of_two_16_bit_tensors_needs_a_signed_operand(
    tmp_path: Path, signed: bool, least_db: float, most_db: float
) -> None:
    proto = onnx.parser.parse_model(HEAD + MIXED)
    onnx.save(proto, tmp_path / "float.onnx")
    path, request = tmp_path / "quantized.onnx", Request("w8a16", signed_operand=signed)
    feeds = [operands(seed) for seed in range(3)]
    quantize_as(tmp_path / "float.onnx", path, request, lambda: iter(feeds))
    zeros = [t for t in onnx.load(path).graph.initializer if "int16" in t.name.split("/")]
    assert bool(zeros) is signed
    compile_for("qnn_context_binary", path, tmp_path, find_device("s24"), "w8a16", LIMITS)
    (reference,) = Session(proto.SerializeToString()).run(feeds[0])
    assert least_db < sqnr_db(reference, emulated(tmp_path, feeds[:1])[0]) < most_db


@pytest.mark.parametrize(("device", "signed"), [("s22", False), ("s23", True)])
def test_only_chips_from_v73_on_are_asked_for_it(device: str, signed: bool) -> None:
    """Before v73 the validator refuses it: "Failed to add fused Matmul node"."""
    plan = make_plan(source="padre", device=device, precision="w8a16")
    assert plan.quantization is not None and plan.quantization.signed_operand is signed


def silu_net() -> onnx.ModelProto:
    """Returns a convolution of 12 rows with its SiLU."""
    text = """silu (float[1, 16, 12, 12] x) => (float[1, 32, 12, 12] output_0) {
      c = Conv(x, weight)
      s = Sigmoid(c)
      output_0 = Mul(c, s)
    }"""
    proto = onnx.parser.parse_model(HEAD + text)
    weight = np.random.default_rng(1).standard_normal((32, 16, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight / 4, "weight"))
    return proto


@needs_compiler
def test_a_silu_of_12_rows_is_wrong_in_w8a16_and_right_apart(tmp_path: Path) -> None:
    proto, found = silu_net(), {}
    after = ir.to_proto(low_silu_apart(ir.from_proto(proto)).model)
    inputs = [{"x": np.asarray(np.random.default_rng(s).normal(size=(1, 16, 12, 12)), np.float32)}
              for s in range(3)]  # fmt: skip
    (reference,) = Session(proto.SerializeToString()).run(inputs[0])
    for name, one in (("before", proto), ("after", after)):
        directory = tmp_path / name
        directory.mkdir()
        compiled(directory, one, "w8a16", inputs)
        found[name] = sqnr_db(reference, emulated(directory, inputs[:1])[0])
    assert found["before"] < 15 and found["after"] > 35


def dead_net(op: str) -> onnx.ModelProto:
    """Returns a layer one of whose channels is 1e5 times quieter than the others."""
    text = f"""dead (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] output_0) {{
      output_0 = {op}(x, weight)
    }}"""
    proto = onnx.parser.parse_model(HEAD + text)
    shape = (12, 12) if op == "MatMul" else (16, 16, 1, 1)
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.moveaxis(weight, -1 if op == "MatMul" else 0, 0)[3] *= 1e-5
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    return proto


@needs_compiler
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_a_dead_channel_does_not_take_the_others_with_it(
    tmp_path: Path, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = dead_net(op)
    inputs = [{"x": np.random.default_rng(s).standard_normal((1, 16, 12, 12)).astype(np.float32)}
              for s in range(4)]  # fmt: skip
    (reference,) = Session(proto.SerializeToString()).run(inputs[0])
    found = {}
    for spread in (weights.CHANNEL_SPREAD, np.inf):
        monkeypatch.setattr(weights, "CHANNEL_SPREAD", spread)
        directory = tmp_path / f"{spread}"
        directory.mkdir()
        compiled(directory, proto, "w8a16", inputs)
        found[spread] = sqnr_db(reference, emulated(directory, inputs[:1])[0])
    assert found[2.0**13] > 35 and found[np.inf] < 10


@needs_compiler
def test_16_bit_weights_are_as_precise_on_the_npu_as_on_the_host(tmp_path: Path) -> None:
    proto = silu_net()
    del proto.graph.node[1:]
    proto.graph.node[0].output[0] = "output_0"
    onnx.save(proto, tmp_path / "float.onnx")
    inputs = [{"x": np.random.default_rng(s).standard_normal((1, 16, 12, 12)).astype(np.float32)}
              for s in range(4)]  # fmt: skip
    path = tmp_path / "quantized.onnx"
    quantize_as(tmp_path / "float.onnx", path, Request("w16a16"), lambda: iter(inputs))
    compile_for("qnn_context_binary", path, tmp_path, find_device("s24"), "w8a16", LIMITS)
    (reference,) = Session(proto.SerializeToString()).run(inputs[0])
    # At 32767 in place of 32639 the largest weight of each channel is short: 60 dB.
    assert sqnr_db(reference, emulated(tmp_path, inputs[:1])[0]) > 70
