"""Capture: what torch computes is what the ONNX file computes, or a sentence says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from support import conv_net, gaussian, model, node, save
from torch import nn

from edgeport import parity, stages
from edgeport.capture import (
    capture_module,
    external_data_files,
    load_onnx,
    model_inputs,
    model_outputs,
    run_module,
    save_model,
)
from edgeport.catalog import Source, parse_spec
from edgeport.compare import sqnr_db
from edgeport.errors import InputError, StageFailed
from edgeport.feeds import PARITY_INPUTS, FeedPlan
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples
from edgeport.sources import Built
from edgeport.types import TensorSpec


def stage(tmp_path: Path, module: nn.Module, *specs: str, samples: int = 2) -> dict:
    """Runs the capture stage for a module, with seeded inputs of these specs."""
    parsed = tuple(map(parse_spec, specs))
    plan = FeedPlan(Source("factory", "net.py:build", parsed), parsed, 0, samples, 4)
    tmp_path.mkdir(exist_ok=True)
    return stages.capture(tmp_path, plan, Built(module.eval(), parsed))


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.arange(1.0, 4.0))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def outputs_of(result: dict) -> list[str]:
    return [spec["name"] for spec in result["outputs"]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: x * 2, ["output"]),
        (lambda m, x: (x * 2, x + 1), ["output_0", "output_1"]),
        (lambda m, x: {"a": x * 2, "b": [x + 1, x - 1]}, ["output_0", "output_1", "output_2"]),
        (lambda m, x: (x * 2, None), ["output"]),
        (lambda m, x: x * m.weight, ["output"]),
        (lambda m, x: (x * 2).sum(), ["output"]),
        (lambda m, x: x > 0, ["output"]),
        (lambda m, x: x.argmax(1), ["output"]),
    ],
)
def test_outputs_of_every_form(tmp_path: Path, function, expected: list[str]) -> None:
    result = stage(tmp_path, Function(function), "x:float32[2,3]")
    assert outputs_of(result) == expected
    assert result["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3]}]
    assert float(result["artifact"]["parity"][0]["value"]) > 100


def test_outputs_have_the_names_that_the_module_gives(tmp_path: Path) -> None:
    module = Function(lambda m, x: (x * 2, x + 1))
    module.output_names = ("double", "more")
    assert outputs_of(stage(tmp_path, module, "x:float32[2,3]")) == ["double", "more"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x, x * 2),  # an input passed through
        lambda m, x: (lambda y: (y, y))(x * 2),  # one tensor twice
        lambda m, x: (m.weight, x * 2),  # a parameter, which requires a gradient
    ],
)
def test_unusual_outputs_keep_their_order(tmp_path: Path, function) -> None:
    result = stage(tmp_path, Function(function), "x:float32[2,3]")
    assert len(result["outputs"]) == 2
    assert len(set(outputs_of(result))) == 2 or outputs_of(result)[0] == "x"
    assert float(result["artifact"]["parity"][0]["value"]) > 100


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.relu_(x),
        lambda m, x: x.mul_(2).add_(1),
        lambda m, x: x[:, 0].fill_(9) + x[:, 1],
    ],
)
def test_a_module_that_writes_to_its_input(tmp_path: Path, function) -> None:
    """nn.ReLU(inplace=True) first in a net does so: the saved inputs must be those it was given."""
    module = Function(function)
    specs = "x:float32[2,3]"
    result = stage(tmp_path / "one", module, specs)
    assert float(result["artifact"]["parity"][0]["value"]) > 100
    stage(tmp_path / "two", Function(lambda m, x: x * 2), specs)
    one, two = (load_samples(tmp_path / name / PARITY_INPUTS) for name in ("one", "two"))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))


def test_several_inputs_of_several_types(tmp_path: Path) -> None:
    module = Function(lambda m, a, b, c: a.float() * b[:, None] + nn.functional.one_hot(c, 4))
    result = stage(tmp_path, module, "a:float16[2,4]", "b:float32[2]", "c:int64[2]")
    assert [spec["name"] for spec in result["inputs"]] == ["a", "b", "c"]
    assert [spec["dtype"] for spec in result["inputs"]] == ["float16", "float32", "int64"]


def test_an_input_that_nothing_uses_stays_an_input_to_the_end(tmp_path: Path) -> None:
    module = Function(lambda m, a, b: torch.relu(a) * m.weight + 1)
    result = stage(tmp_path, module, "a:float32[2,3]", "b:float32[2,3]")
    assert [spec["name"] for spec in result["inputs"]] == ["a", "b"]
    (tmp_path / "passes").mkdir()
    stages.run_passes(tmp_path / "passes", tmp_path, "any", "fp32", "optimized.onnx")
    optimized = Session(tmp_path / "passes" / "optimized.onnx")
    assert [spec.name for spec in optimized.inputs()] == ["a", "b"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: 1 / 0, "the model fails on x[2, 3]: ZeroDivisionError"),
        (lambda m, x: x @ x, "the model fails on x[2, 3]"),
        (lambda m, x: 3, "returns no tensor"),
        (lambda m, x: None, "returns no tensor"),
        (lambda m, x: x / 0, "NaN or infinity"),
        (lambda m, x: x * float("nan"), "NaN or infinity"),
        (lambda m, x: x[:0], "empty"),
        (lambda m, x: x.to(torch.bfloat16), "bfloat16"),
        (lambda m, x: x.to(torch.complex64), "complex64"),
        (lambda m, x: torch.ones(3), "computes nothing from its inputs"),
    ],
)
def test_modules_whose_answer_cannot_be_compared(tmp_path: Path, function, words: str) -> None:
    with pytest.raises(InputError) as caught:
        stage(tmp_path, Function(function), "x:float32[2,3]")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_exported(tmp_path: Path) -> None:
    module = Function(lambda m, x: x * 2 if float(x.sum()) > 0 else x)
    with pytest.raises(StageFailed) as caught:
        stage(tmp_path, module, "x:float32[2,3]")
    assert caught.value.stage == "capture"
    assert "\n" not in str(caught.value)


def test_what_forward_prints_stays_off_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loud(module, x):
        print("forward")
        return x * 2

    stage(tmp_path, Function(loud), "x:float32[2,3]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "forward" in err


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (1, 2, 3, 6, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_any_rank_is_exported(tmp_path: Path, shape, masked: bool) -> None:
    def attend(module, x):
        mask = torch.ones(6, 6).tril() > 0 if masked else None
        key = x.flip(-1)[..., :1, :, :] if x.dim() == 5 else x  # leading axes that broadcast
        return nn.functional.scaled_dot_product_attention(x, key, x * 2, mask, scale=0.3)

    sizes = ",".join(map(str, shape))
    stage(tmp_path, Function(attend), f"x:float32[{sizes}]")  # which compares with torch


def test_uneven_average_pools_are_exported_as_products(tmp_path: Path) -> None:
    def pool(module, x):
        return (
            nn.functional.adaptive_avg_pool2d(x, (7, None)),
            nn.functional.adaptive_avg_pool1d(x[0], 5),
            nn.functional.adaptive_avg_pool3d(x, (2, 7, 5)),
            nn.AdaptiveAvgPool2d(6)(x),
            nn.functional.interpolate(x, size=(7, 5), mode="area"),
        )

    stage(tmp_path, Function(pool), "x:float32[2,3,16,13]")  # which compares with torch
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "MatMul" in operators and not operators & {"Where", "AveragePool"}


def test_distances_are_exported(tmp_path: Path) -> None:
    def measure(module, x):
        few = x[:, :30]
        return torch.cdist(few, few, p=1.0), torch.cdist(few, few), torch.cdist(x, x[:, ::2] + 1)

    stage(tmp_path, Function(measure), "x:float32[1,1200,8]")


def test_the_graph_is_static_and_of_the_opset_that_quantization_needs() -> None:
    feed = {"x": gaussian([1, 3, 16, 16])}
    graph = capture_module(nn.Conv2d(3, 4, 3).eval(), feed)
    assert graph.opset_imports[""] == 21
    assert model_inputs(graph) == (TensorSpec("x", "float32", (1, 3, 16, 16)),)
    assert model_outputs(graph) == (TensorSpec("output", "float32", (1, 4, 14, 14)),)


def test_a_graph_that_differs_from_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the exporter's graph with one weight changed by one percent."""

    def altered(module: nn.Module, feed) -> ir.Model:
        with torch.no_grad():
            module.weight.mul_(1.01)
        return capture_module(module, feed)

    monkeypatch.setattr(stages, "capture_module", altered)
    with pytest.raises(StageFailed, match=r"model\.onnx is 40\.0 dB .* 80 dB are needed"):
        stage(tmp_path, Function(lambda m, x: x * m.weight), "x:float32[2,3]")


def test_run_module_does_not_learn(tmp_path: Path) -> None:
    module = nn.Linear(3, 2).eval()
    (outputs,) = run_module(module, [{"x": gaussian([2, 3])}])
    assert len(outputs) == 1
    assert all(parameter.grad is None for parameter in module.parameters())


# ONNX files


def test_load_and_save(tmp_path: Path) -> None:
    path = save(conv_net(17), tmp_path / "model.onnx")
    save_model(load_onnx(path), tmp_path / "again.onnx")
    feed = {"image": gaussian([1, 3, 16, 16])}
    (one,), (other,) = (Session(p).run(feed) for p in (path, tmp_path / "again.onnx"))
    assert np.array_equal(one, other)
    assert external_data_files(path) == []


def external(path: Path) -> Path:
    onnx.save(
        conv_net(),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    return path


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path / "model.onnx")
    assert external_data_files(path) == [tmp_path / "weights.bin"]
    graph = load_onnx(path)
    (tmp_path / "weights.bin").unlink()  # what was loaded stands for itself
    save_model(graph, tmp_path / "alone.onnx")
    feed = {"image": gaussian([1, 3, 16, 16])}
    (expected,) = Session(conv_net().SerializeToString()).run(feed)
    assert np.array_equal(Session(tmp_path / "alone.onnx").run(feed)[0], expected)
    with pytest.raises(InputError, match=r"keeps weights in weights\.bin, which is not beside it"):
        external_data_files(path)
    with pytest.raises(InputError, match=r"model\.onnx"):
        load_onnx(path)


def test_weights_past_the_limit_go_to_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeport.capture.EXTERNAL_DATA_BYTES", 100)
    save_model(ir.from_proto(conv_net()), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 100
    feed = {"image": gaussian([1, 3, 16, 16])}
    (expected,) = Session(conv_net().SerializeToString()).run(feed)
    assert np.array_equal(Session(tmp_path / "model.onnx").run(feed)[0], expected)


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    content = conv_net().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(InputError, match=r"cut\.onnx is not a readable ONNX model"):
        load_onnx(path)


@pytest.mark.parametrize("sizes", [["N", 3, 16, 16], [1, 3, "H", 16], [None, 3, 16, 16]])
def test_open_dimensions_are_refused(tmp_path: Path, sizes: list) -> None:
    proto = conv_net()
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, sizes)
    )
    with pytest.raises(InputError, match="input image has the open shape"):
        load_onnx(save(proto, tmp_path / "open.onnx"))


def test_an_input_without_a_shape_is_refused(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="input image has no shape, not even a rank"):
        load_onnx(save(proto, tmp_path / "open.onnx"))


def test_initializers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """Files of old exporters list weights among the inputs; nobody feeds them."""
    proto = model(
        [node("Mul", "x w", "y")], {"x": [2, 3], "w": [3]}, {"y": [2, 3]}, {"w": np.ones(3, "f4")}
    )
    graph = load_onnx(save(proto, tmp_path / "old.onnx"))
    assert [spec.name for spec in model_inputs(graph)] == ["x"]
    save_model(graph, tmp_path / "new.onnx")
    feed = {"x": gaussian([2, 3])}
    assert np.array_equal(Session(tmp_path / "new.onnx").run(feed)[0], feed["x"])


def onnx_stage(tmp_path: Path, proto: onnx.ModelProto) -> dict:
    path = save(proto, tmp_path / "source.onnx")
    plan = FeedPlan(Source("onnx", str(path), path=path), (), 0, 2, 4)
    (tmp_path / "captured").mkdir()
    return stages.capture(tmp_path / "captured", plan)


def test_an_onnx_file_is_its_own_reference(tmp_path: Path) -> None:
    result = onnx_stage(tmp_path, conv_net(13))
    assert result["artifact"]["parity"][0]["value"] == "inf"
    assert [spec["name"] for spec in result["outputs"]] == ["y"]


@pytest.mark.parametrize("domain", ["", "my.company"])
def test_an_operator_that_nobody_knows(tmp_path: Path, domain: str) -> None:
    strange = helper.make_node("Frobnicate", ["x"], ["y"], domain=domain, name="strange")
    opsets = [helper.make_opsetid(domain, 1)] if domain else []
    proto = model([strange], {"x": [2, 3]}, {"y": [2, 3]}, opset_imports=opsets)
    with pytest.raises(InputError, match="strange is Frobnicate") as caught:
        onnx_stage(tmp_path, proto)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_with_nan_weights(tmp_path: Path) -> None:
    proto = conv_net()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    with pytest.raises(InputError, match="NaN or infinity"):
        onnx_stage(tmp_path, proto)


def test_an_onnx_file_that_fails_when_it_runs(tmp_path: Path) -> None:
    """An index that is out of range is found only by running."""
    proto = model(
        [node("Gather", "x i", "y", axis=0)], {"x": [2, 3]}, {"y": [1, 3]}, {"i": np.array([7])}
    )
    with pytest.raises((InputError, StageFailed)) as caught:
        onnx_stage(tmp_path, proto)
    assert "\n" not in str(caught.value)


def test_parity_is_the_worst_sample_and_output() -> None:
    reference = [{"output_0": np.ones(4), "output_1": np.ones(4)} for _ in range(2)]
    actual = [{name: array.copy() for name, array in one.items()} for one in reference]
    actual[1]["output_0"][0] = 1.1
    sqnr, error = parity.compared(reference, actual, "host", "")
    assert sqnr.value == pytest.approx(sqnr_db(reference[1]["output_0"], actual[1]["output_0"]))
    assert (sqnr.samples[0], sqnr.samples[1]) == (float("inf"), sqnr.value)
    assert error.value == pytest.approx(0.1)
