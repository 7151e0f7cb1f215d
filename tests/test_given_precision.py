"""A model that is quantized already is kept; one in float16 is written as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import (
    FACTORY,
    ON_HOST,
    OUT,
    S24,
    Command,
    check_refusal,
    conv_net,
    gaussian,
    manifest_of,
    model,
    needs_compiler,
    node,
    save,
)

import edgeport
from edgeport.errors import StageFailed
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS, NodePrecision
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples
from edgeport.sources.half import widen
from edgeport.sources.quantized import own_precision

pytestmark = pytest.mark.usefixtures("quick")
HOST = {"device": "s24", "target_runtimes": ("onnx",)}


def quantized(folder: Path, precision: NodePrecision) -> Path:
    source = save(conv_net(), folder / "float.onnx")
    target = folder / f"{precision}.onnx"
    quantize_file(source, target, CONFIGS[precision], [{"image": gaussian((1, 3, 16, 16))}])
    return target


def pairs(path: Path) -> int:
    return sum(one.op_type.endswith("uantizeLinear") for one in onnx.load(path).graph.node)


@pytest.mark.parametrize("precision", ["w8a8", "w8a16", "w4a16"])
def test_a_quantized_file_is_kept(tmp_path: Path, out: Path, precision: NodePrecision) -> None:
    path = quantized(tmp_path, precision)
    edgeport.export(str(path), output_dir=out, **HOST)
    manifest = manifest_of(out)
    assert manifest["options"]["precision"] == f"{precision}, as it is"
    assert [one["computed"] for one in manifest["artifacts"]] == [precision] * 3
    assert pairs(out / "optimized.onnx") == pairs(path) > 0
    assert "quantized.onnx" not in manifest["files"]
    feed = load_samples(out / "parity_inputs.npz")[0]
    answers = [Session(one).run(feed)[0] for one in (path, out / "optimized.onnx")]
    np.testing.assert_array_equal(*answers)
    edgeport.export(str(path), output_dir=out, precision=precision, **HOST)  # what it is


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "w8a8.onnx", *ON_HOST, *OUT, "--precision", "float"), "already.*w8a8.*float"),
        (("export", "w8a8.onnx", *ON_HOST, *OUT, "--precision", "auto"), "which --precision auto"),
        (
            ("export", "w8a8.onnx", *ON_HOST, *OUT, "--precision", "w8a8", "--quantize-io"),
            "--quantize-io needs the float",
        ),
        (("sensitivity", "w8a8.onnx"), "quantized already: give the float model"),
    ],
)
def test_what_contradicts_a_quantized_file(
    tmp_path: Path, run_cli: Command, arguments: tuple[str, ...], words: str
) -> None:
    quantized(tmp_path, "w8a8")
    done = run_cli(*arguments)
    check_refusal(done.returncode, done.stdout, done.stderr, words)
    assert {path.name for path in tmp_path.iterdir()} == {"float.onnx", "w8a8.onnx"}


@needs_compiler
def test_a_quantized_file_on_the_npu(tmp_path: Path, run_cli: Command) -> None:
    quantized(tmp_path, "w8a16")
    done = run_cli("doctor", "w8a16.onnx", *S24, "--require-npu", "100%")
    assert done.returncode == 0, done.stderr
    assert "w8a16, as it is" in done.stdout
    assert "quantized already (w8a16): kept as it is" in done.stdout


def test_integer_operators_count_as_quantized() -> None:
    dynamic = model(
        [node("DynamicQuantizeLinear", "x", "q s z"), node("Cast", "q", "y", to=TensorProto.FLOAT)],
        {"x": [2, 3]},
        {"y": [2, 3]},
    )
    assert own_precision(ir.from_proto(dynamic)) == "integer"
    assert own_precision(ir.from_proto(conv_net())) == ""


# Float16


def half_net() -> onnx.ModelProto:
    """Returns the convolution net in float16, with a scale from a Constant behind a Cast."""
    proto = conv_net()
    proto.graph.node[-1].output[0], proto.graph.node[-1].name = "z", "n_z"
    two = numpy_helper.from_array(np.float16(0.1))
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], ["two"], value=two),
            node("Cast", "z", "c32", to=TensorProto.FLOAT),
            node("Cast", "c32", "c16", to=TensorProto.FLOAT16),
            node("Mul", "c16 two", "y"),
        ]
    )
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def test_float16_becomes_float32_exactly() -> None:
    graph = ir.from_proto(half_net())
    assert widen(graph)
    assert not widen(graph)
    wide = ir.to_proto(graph)
    onnx.checker.check_model(wide, full_check=True)
    for before, after in zip(half_net().graph.initializer, wide.graph.initializer, strict=True):
        assert after.data_type == TensorProto.FLOAT
        np.testing.assert_array_equal(*(numpy_helper.to_array(one) for one in (before, after)))
    feed = gaussian((1, 3, 16, 16)).astype(np.float16)
    (old,) = Session(half_net().SerializeToString()).run({"image": feed})
    (new,) = Session(wide.SerializeToString()).run({"image": feed.astype(np.float32)})
    assert (old.dtype, new.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(new, old, atol=2e-3)


def test_a_float_graph_that_only_takes_float16_stays() -> None:
    cast = model([node("Cast", "x", "y", to=TensorProto.FLOAT)], {"x": [2]}, {"y": [2]})
    cast.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    graph = ir.from_proto(cast)
    assert not widen(graph)
    assert graph.graph.inputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("precision", [None, "w8a16"])
@pytest.mark.parametrize("source", ["half.onnx", "half.py:build"])
def test_float16_sources_are_exported(
    tmp_path: Path, out: Path, source: str, precision: str | None
) -> None:
    save(half_net(), tmp_path / "half.onnx")
    (tmp_path / "half.py").write_text(FACTORY.rstrip() + ".half()\n")
    inputs = ("image:float16[1,3,16,16]",)
    edgeport.export(
        f"{tmp_path}/{source}", output_dir=out, inputs=inputs, precision=precision, **HOST
    )
    manifest = manifest_of(out)
    ends = (*manifest["inputs"], *manifest["outputs"])
    assert {spec["dtype"] for spec in ends} == {"float32"}
    assert "computes in float16 and was written as float32" in manifest["artifacts"][0]["notes"][0]
    (worst,) = (m["value"] for m in manifest["artifacts"][-1]["parity"] if m["metric"] == "sqnr_db")
    assert float(worst) > 35


def test_a_graph_that_float16_ruins_is_told(tmp_path: Path, out: Path) -> None:
    """In float16 nothing is left of a small number that 4096 was added to."""
    body = "    def forward(self, x):\n        return (x * self.one + 4096) - 4096\n"
    start = (
        "        super().__init__()\n        self.one = nn.Parameter(torch.ones(1).half() / 16)\n"
    )
    head = "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
    (tmp_path / "net.py").write_text(head + start + body)
    with pytest.raises(StageFailed, match=r"in float16 the graph is .* dB from itself"):
        edgeport.export(f"{tmp_path}/net.py:Net", output_dir=out, inputs=("x:float16[64]",), **HOST)
