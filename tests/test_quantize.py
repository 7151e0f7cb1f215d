"""Quantization: the types an NPU demands, scales that fit the data, and no lost sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support import conv_net, gaussian, model, node, save

from edgeport.compare import sqnr_db
from edgeport.errors import InputError, StageFailed
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS, HTP_RULES
from edgeport.quantize.integer_io import edge_scales
from edgeport.runtimes.onnx import Session

INTEGERS = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
}


def images(count: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    return [{"image": gaussian([1, 3, 16, 16], seed, scale)} for seed in range(count)]


def quantized(tmp_path: Path, proto: onnx.ModelProto, precision: str, feeds) -> Path:
    source = save(proto, tmp_path / "float.onnx")
    target = tmp_path / "quantized.onnx"
    quantize_file(source, target, CONFIGS[precision], iter(feeds))
    return target


def norm_net(shared: bool = False) -> onnx.ModelProto:
    """LayerNormalization over the width, and a convolution."""
    rng = np.random.default_rng(0)
    weights = {
        "gamma": rng.uniform(0.5, 2.0, 16).astype(np.float32),
        "beta": rng.standard_normal(16).astype(np.float32),
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32) * 0.2,
        "w2": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        node("LayerNormalization", "image gamma beta", "n", axis=-1),
        node("Conv", "n w", "c", pads=[1, 1, 1, 1]),
        node("LayerNormalization", "c gamma beta", "m", axis=-1),
        node("Mul", "m gamma" if shared else "m m", "p"),
        node("Conv", "p w2", "y"),
    ]
    return model(nodes, {"image": [1, 3, 16, 16]}, {"y": [1, 4, 16, 16]}, weights)


def weight_of(path: Path, op: str, index: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns (type, scale, zero point) of the weight that each node of an operator reads."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    found = []
    for consumer in graph.node:
        if consumer.op_type == op:
            dequantize = makers[consumer.input[index]]
            assert dequantize.op_type == "DequantizeLinear"
            stored, scale, zero = (constants[name] for name in dequantize.input)
            arrays = (numpy_helper.to_array(tensor) for tensor in (scale, zero))
            found.append((INTEGERS[stored.data_type], *arrays))
    return found


def activation_types(path: Path) -> set[str]:
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantize
    return {INTEGERS[constants[node.input[2]].data_type] for node in quantize}


@pytest.mark.parametrize(("precision", "activation"), [("w8a8", "uint8"), ("w8a16", "uint16")])
def test_types_of_weights_and_activations(tmp_path: Path, precision: str, activation: str) -> None:
    path = quantized(tmp_path, norm_net(), precision, images(4))
    assert activation_types(path) == {activation}
    for kind, scale, zero in weight_of(path, "Conv", 1):
        assert kind == "int8"
        assert scale.shape == (4,)  # one per output channel
        assert not zero.any()
    norms = weight_of(path, "LayerNormalization", 1)
    assert [kind for kind, *_ in norms] == ["uint8", "uint8"]
    assert all(scale.shape in ((), (1,)) for _, scale, _ in norms)


def test_every_rule_says_why() -> None:
    assert all(rule.why for rule in HTP_RULES)
    assert ("LayerNormalization", 1, "uint8") in {(r.op, r.input_index, r.dtype) for r in HTP_RULES}


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_a_norm_weight_that_another_operator_shares(tmp_path: Path, precision: str) -> None:
    path = quantized(tmp_path, norm_net(shared=True), precision, images(4))
    feed = images(9)[-1]
    (reference,) = Session(norm_net(shared=True).SerializeToString()).run(feed)
    (actual,) = Session(path).run(feed)
    assert sqnr_db(reference, actual) > 25


@pytest.mark.parametrize("count", [1, 7])
def test_every_feed_calibrates_and_is_counted(tmp_path: Path, count: int) -> None:
    taken = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for index, feed in enumerate(images(count)):
            taken.append(index)
            yield feed

    source = save(conv_net(), tmp_path / "float.onnx")
    target = tmp_path / "quantized.onnx"
    assert quantize_file(source, target, CONFIGS["w8a8"], feeds()) == count
    assert taken == list(range(count))


def test_ranges_are_those_of_all_feeds(tmp_path: Path) -> None:
    """The widest input is the last but one: a range of the first or last alone would clip it."""
    feeds = images(4)
    feeds[2] = {"image": feeds[2]["image"] * 10}
    path = quantized(tmp_path, conv_net(), "w8a16", feeds)
    low, high = feeds[2]["image"].min(), feeds[2]["image"].max()
    step = CONFIGS["w8a16"].calibration.small_headroom * (high - low) / 65535
    assert edge_scales(onnx.load(path))["image"].scale == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize(("precision", "steps"), [("w8a8", 255), ("w8a16", 65535)])
def test_boundary_scales_say_how_to_read_the_stored_integers(
    tmp_path: Path, precision: str, steps: int
) -> None:
    feeds = images(4)
    path = quantized(tmp_path, conv_net(), precision, feeds)
    scales = edge_scales(onnx.load(path))
    assert set(scales) == {"image", "y"}
    session = Session(conv_net().SerializeToString())
    data = {
        "image": np.concatenate([feed["image"] for feed in feeds]),
        "y": np.concatenate([session.run(feed)[0] for feed in feeds]),
    }
    for name, array in data.items():
        entry = scales[name]
        assert entry.dtype == CONFIGS[precision].activation
        real_low = entry.scale * (0 - entry.zero_point)
        real_high = entry.scale * (steps - entry.zero_point)
        step = entry.scale
        wider = CONFIGS[precision].calibration.small_headroom if steps == 65535 else 1.0
        assert real_low == pytest.approx(wider * array.min(), abs=1.01 * step)
        assert real_high == pytest.approx(wider * array.max(), abs=1.01 * step)


@pytest.mark.parametrize(("width", "headroom"), [(4095, 2.0), (4096, 1.25)])
def test_tensors_of_few_values_get_more_headroom(
    tmp_path: Path, width: int, headroom: float
) -> None:
    net = model([node("Relu", "x", "y")], {"x": [1, width]}, {"y": [1, width]})
    feeds = [{"x": gaussian([1, width])}]
    scales = edge_scales(onnx.load(quantized(tmp_path, net, "w8a16", feeds)))
    reach = scales["x"].scale * 65535
    assert reach == pytest.approx(headroom * np.ptp(feeds[0]["x"]), rel=1e-3)


def test_a_float_model_has_no_boundary_scales(tmp_path: Path) -> None:
    assert edge_scales(conv_net()) == {}


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(("precision", "least_db"), [("w8a8", 30), ("w8a16", 40)])
def test_the_answer_survives(tmp_path: Path, precision: str, least_db: float, opset: int) -> None:
    path = quantized(tmp_path, conv_net(opset), precision, images(8))
    feed = {"image": gaussian([1, 3, 16, 16], 99)}
    (reference,) = Session(conv_net(opset).SerializeToString()).run(feed)
    (actual,) = Session(path).run(feed)
    assert least_db < sqnr_db(reference, actual) < 80  # at 80 nothing would be quantized
    onnx.checker.check_model(path)


def test_16_bit_activations_are_more_precise(tmp_path: Path) -> None:
    feed = {"image": gaussian([1, 3, 16, 16], 99)}
    (reference,) = Session(norm_net().SerializeToString()).run(feed)
    found = {
        precision: sqnr_db(
            reference, *Session(quantized(tmp_path, norm_net(), precision, images(8))).run(feed)
        )
        for precision in ("w8a8", "w8a16")
    }
    assert found["w8a16"] > found["w8a8"] + 5


def test_nothing_is_left_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    quantized(tmp_path, conv_net(), "w8a8", images(2))
    assert list((tmp_path / "cwd").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd", "float.onnx", "quantized.onnx"]


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    proto = conv_net()
    for one in proto.graph.node:
        one.name = "twice"
    path = quantized(tmp_path, proto, "w8a8", images(2))
    names = [one.name for one in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)


def test_a_graph_that_cannot_be_quantized_is_one_error(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.node[0].op_type = "Unheard"
    with pytest.raises(StageFailed) as caught:
        quantized(tmp_path, proto, "w8a8", images(1))
    assert caught.value.stage == "quantize"
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_feeds_is_told_as_it_is(tmp_path: Path) -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        yield from images(1)
        raise InputError("data.npz: image holds NaN")

    with pytest.raises(InputError, match=r"data\.npz: image holds NaN"):
        quantized(tmp_path, conv_net(), "w8a8", feeds())


@pytest.mark.parametrize(("precision", "least"), [("w8a16", 4.0), ("w8a8", 0.0)])
def test_a_sixteen_bit_log_spans_what_the_npu_needs(
    tmp_path: Path, precision: str, least: float
) -> None:
    """Its values lie between 0 and 1.1, which is the span that 8 bits keep."""
    proto = model([node("Log", "x", "y")], {"x": [4, 8]}, {"y": [4, 8]}, {})
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(1, 3, (4, 8)).astype(np.float32)} for _ in range(2)]
    path = quantized(tmp_path, proto, precision, feeds)
    scale = edge_scales(onnx.load(path))["y"].scale
    steps = 65535 if precision == "w8a16" else 255
    assert least <= scale * steps * 1.0001
    assert scale * steps < (4.5 if least else 1.5)
