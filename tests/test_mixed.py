"""Pairs in the graph: which tensor is stored as what, in one precision and in several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support import LIMITS, conv_net, gaussian, model, needs_compiler, node, save

from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import StageFailed
from edgeport.quantize.apply import calibrate_file, quantize_as
from edgeport.quantize.config import CONFIGS, NodePrecision, Request, levels_above
from edgeport.quantize.cost import layer_macs, mac_shares
from edgeport.quantize.insert import Calibrated, insert_pairs
from edgeport.quantize.mixed import describe, promote
from edgeport.quantize.sensitivity import Judge, layers, rank_layers
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples

KINDS = {
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT4: "int4",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
}


def feeds_of(proto: onnx.ModelProto, count: int = 4) -> list[dict[str, np.ndarray]]:
    shapes = {
        one.name: [d.dim_value for d in one.type.tensor_type.shape.dim] for one in proto.graph.input
    }
    return [
        {name: gaussian(shape, 7 * seed) for name, shape in shapes.items()} for seed in range(count)
    ]


def calibrated(
    tmp_path: Path, proto: onnx.ModelProto, method: str = "minmax", judged: int = 0
) -> Calibrated:
    config = CONFIGS["w8a8"]
    config = replace(config, calibration=replace(config.calibration, method=method))
    source = save(proto, tmp_path / "float.onnx")
    return calibrate_file(source, config, feeds_of(proto), judged=judged)


def mixed(base: NodePrecision, **own: NodePrecision):
    return replace(CONFIGS[base], precisions=tuple((f"n_{k}", v) for k, v in own.items()))


def stored_types(proto: onnx.ModelProto) -> dict[str, str]:
    """Returns QuantizeLinear's input -> the type it stores."""
    constants = {one.name: one for one in proto.graph.initializer}
    return {
        one.input[0]: KINDS[constants[one.input[2]].data_type]
        for one in proto.graph.node
        if one.op_type == "QuantizeLinear"
    }


def weight_types(proto: onnx.ModelProto) -> dict[str, str]:
    """Returns the stem of a constant's name -> the type it is stored as."""
    return {
        one.name.split("/")[0]: KINDS[one.data_type]
        for one in proto.graph.initializer
        if one.name.endswith("/stored")
    }


def run(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    onnx.checker.check_model(proto)
    return Session(proto.SerializeToString()).run(feed)


def sums_net() -> onnx.ModelProto:
    """Returns convolutions with a gate, a sum around them and a MatMul: every kind of boundary."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    weights = {
        "w1": weight(8, 3, 3, 3),
        "b1": weight(8),
        "w2": weight(8, 8, 1, 1),
        "b2": weight(8),
        "w3": weight(8, 10),
        "axes": np.array([2, 3]),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2"),
        node("Sigmoid", "c2", "s2"),
        node("Mul", "c2 s2", "m2"),
        node("Add", "m2 r1", "a"),
        node("ReduceMean", "a axes", "g", keepdims=0),
        node("MatMul", "g w3", "y"),
    ]
    return model(nodes, {"x": [1, 3, 16, 16]}, {"y": [1, 10]}, weights)


@pytest.mark.parametrize("precision", ["w8a8", "w8a16", "w4a16", "w16a16"])
def test_types_follow_the_precision(tmp_path: Path, precision: NodePrecision) -> None:
    config = CONFIGS[precision]
    proto = insert_pairs(calibrated(tmp_path, sums_net()), config)
    assert set(stored_types(proto).values()) == {config.activation}
    kinds = weight_types(proto)
    assert {kinds[name] for name in ("w1", "w2", "w3")} == {config.weight}
    assert kinds["b1"] == kinds["b2"] == "int32"


def test_more_bits_are_more_precise(tmp_path: Path) -> None:
    net = calibrated(tmp_path, sums_net())
    judge = Judge(net, feeds_of(sums_net(), 2))
    found = {p: judge(insert_pairs(net, CONFIGS[p])) for p in CONFIGS}
    assert found["w16a16"] > 60 > found["w8a16"] > found["w8a8"] > found["w4a16"] > 8


def test_each_output_channel_has_its_scale(tmp_path: Path) -> None:
    """Gemm and MatMul too: with one scale a column of small weights would be lost."""
    rng = np.random.default_rng(0)
    spread = np.float32(10.0) ** np.linspace(-1, 1, 8).astype(np.float32)
    weights = {
        "wm": (rng.standard_normal((6, 8)) * spread).astype(np.float32),
        "wg": (rng.standard_normal((8, 8)) * spread[:, None]).astype(np.float32),
    }
    nodes = [node("MatMul", "x wm", "m"), node("Gemm", "m wg", "y", transB=1)]
    net = model(nodes, {"x": [4, 6]}, {"y": [4, 8]}, weights)
    config = replace(CONFIGS["w8a16"], bias_correction=False)
    proto = insert_pairs(calibrated(tmp_path, net), config)
    (expected,), (found,) = run(net, feeds_of(net)[0]), run(proto, feeds_of(net)[0])
    for channel in range(8):
        assert sqnr_db(expected[:, channel], found[:, channel]) > 20
    scales = [n for n in proto.graph.initializer if n.name.startswith("w") and "scale" in n.name]
    assert sorted(tuple(one.dims) for one in scales) == [(8,), (8,)]


def test_what_only_moves_values_keeps_their_grid(tmp_path: Path) -> None:
    weights = {"s": np.array([1, 64]), "start": np.array([0]), "end": np.array([9])}
    nodes = [
        node("Sigmoid", "x", "a"),
        node("Reshape", "a s", "b"),
        node("Transpose", "b", "c", perm=[1, 0]),
        node("Slice", "c start end", "d"),
        node("Mul", "d d", "y"),
    ]
    net = model(nodes, {"x": [1, 4, 4, 4]}, {"y": [9, 1]}, weights)
    for precision in ("w8a8", "w8a16"):
        proto = insert_pairs(calibrated(tmp_path, net), CONFIGS[precision])
        constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
        grids = {
            one.input[0]: (float(constants[one.input[1]]), int(constants[one.input[2]]))
            for one in proto.graph.node
            if one.op_type == "QuantizeLinear"
        }
        assert grids["a"] == grids["b"] == grids["c"] == grids["d"] != grids["x"]
        if precision == "w8a16":  # what the NPU's 16-bit Sigmoid gives
            assert grids["a"] == (1 / 65536, 0)


def test_a_bias_never_overflows_its_32_bits(tmp_path: Path) -> None:
    weights = {
        "w": np.full((2, 3, 1, 1), 1e-7, np.float32),
        "b": np.array([5.0, -7.0], np.float32),
    }
    net = model([node("Conv", "x w b", "y")], {"x": [1, 3, 4, 4]}, {"y": [1, 2, 4, 4]}, weights)
    for precision in ("w8a8", "w8a16", "w16a16"):
        proto = insert_pairs(calibrated(tmp_path, net), CONFIGS[precision])
        feed = feeds_of(net)[0]
        np.testing.assert_allclose(run(proto, feed)[0], run(net, feed)[0], rtol=0.01)


def test_tiny_activations_keep_their_digits(tmp_path: Path) -> None:
    net = model([node("Relu", "x", "y")], {"x": [1, 64]}, {"y": [1, 64]})
    feeds = [{"x": gaussian([1, 64], seed, scale=1e-7)} for seed in range(4)]
    source = save(net, tmp_path / "tiny.onnx")
    proto = insert_pairs(calibrate_file(source, CONFIGS["w8a16"], feeds), CONFIGS["w8a16"])
    assert sqnr_db(*run(net, feeds[0]), *run(proto, feeds[0])) > 60


def test_all_zero_activations_stay_zero(tmp_path: Path) -> None:
    net = model([node("Relu", "x", "y")], {"x": [1, 8]}, {"y": [1, 8]})
    feed = {"x": -np.ones((1, 8), np.float32)}
    source = save(net, tmp_path / "zero.onnx")
    proto = insert_pairs(calibrate_file(source, CONFIGS["w8a8"], [feed]), CONFIGS["w8a8"])
    assert not run(proto, feed)[0].any()


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min, -1e30])
def test_a_masked_attention_looks_nowhere_else(
    tmp_path: Path, precision: NodePrecision, value: float
) -> None:
    mask = np.where(np.tri(8) > 0, 0.0, value).astype(np.float32)
    nodes = [node("Add", "x mask", "s"), node("Softmax", "s", "y", axis=-1)]
    net = model(nodes, {"x": [8, 8]}, {"y": [8, 8]}, {"mask": mask})
    proto = insert_pairs(calibrated(tmp_path, net), CONFIGS[precision])
    feed = feeds_of(net)[0]
    (expected,), (found,) = run(net, feed), run(proto, feed)
    assert sqnr_db(expected, found) > (25 if precision == "w8a8" else 50)
    assert found[np.tri(8) == 0].max() <= 1 / 255


def test_bias_correction_takes_off_the_mean_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 16, 1, 1)).astype(np.float32), "b": gaussian([8])}
    net = model(
        [node("Conv", "x w b", "y")], {"x": [1, 16, 16, 16]}, {"y": [1, 8, 16, 16]}, weights
    )
    feeds = [{"x": gaussian([1, 16, 16, 16], seed) + 3} for seed in range(4)]
    source = save(net, tmp_path / "shifted.onnx")
    found = {}
    for corrected in (False, True):
        config = replace(CONFIGS["w4a16"], bias_correction=corrected)
        proto = insert_pairs(calibrate_file(source, config, feeds), config)
        error = run(proto, feeds[0])[0] - run(net, feeds[0])[0]
        found[corrected] = float(np.abs(error.mean(axis=(0, 2, 3))).max())
    assert found[True] < found[False] / 5


def test_a_node_of_another_precision_is_converted_to_and_from(tmp_path: Path) -> None:
    net = calibrated(tmp_path, sums_net())
    proto = insert_pairs(net, mixed("w8a8", c2="w8a16", s2="w8a16"))
    stored = stored_types(proto)
    assert stored["c2"] == stored["s2"] == "uint16"
    assert stored["r1"] == stored["c1"] == "uint8" if "c1" in stored else stored["r1"] == "uint8"
    assert weight_types(proto)["w2"] == "int8"
    converted = [kind for name, kind in stored.items() if "/to_" in name]
    assert sorted(set(converted)) == ["uint16", "uint8"]
    assert Judge(net, feeds_of(sums_net(), 1))(proto) > 25


def test_a_float_node_reads_and_gives_floats(tmp_path: Path) -> None:
    net = calibrated(tmp_path, sums_net())
    proto = insert_pairs(net, mixed("w8a8", s2="float", m2="float"))
    stored = stored_types(proto)
    assert "s2" not in stored  # between two float nodes nothing is rounded
    assert stored["m2"] == "uint8"  # for the Add
    everything = insert_pairs(net, replace(CONFIGS["w8a8"], precision="float"))
    assert not stored_types(everything)
    (expected,) = run(sums_net(), feeds_of(sums_net())[0])
    np.testing.assert_array_equal(run(everything, feeds_of(sums_net())[0])[0], expected)


def test_a_float_layer_keeps_its_weights_where_it_is_run(tmp_path: Path) -> None:
    """onnxruntime rounds a float convolution between pairs, unless it is told not to."""
    net = calibrated(tmp_path, conv_net())
    own = dict.fromkeys(("c", "r"), "w16a16")
    feed = feeds_of(conv_net())[0]
    found = {
        last: sqnr_db(
            *run(conv_net(), feed), *run(insert_pairs(net, mixed("w8a8", **own, y=last)), feed)
        )
        for last in ("w16a16", "float")
    }
    assert found["float"] > 55
    assert found["w16a16"] > 55


def test_layers_that_lose_most_come_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = rng.standard_normal((8, 8, 1, 1)).astype(np.float32)
    bad = good.copy()
    bad[:, 0] *= 1000  # sets the step of every filter; its input is near 0
    first = np.ones((8, 1, 1, 1), np.float32)
    first[0] = 1e-3
    weights = {"w1": good, "wd": first, "w2": bad, "w3": good}
    nodes = [
        node("Conv", "x w1", "c1"),
        node("Conv", "c1 wd", "cd", group=8),
        node("Conv", "cd w2", "c2"),
        node("Conv", "c2 w3", "y"),
    ]
    proto = model(nodes, {"x": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]}, weights)
    net = calibrated(tmp_path, proto)
    told: list[tuple[int, int]] = []
    found = rank_layers(
        net, CONFIGS["w8a8"], Judge(net, feeds_of(proto, 1)), progress=lambda *at: told.append(at)
    )
    assert found[0].node == "n_c2"
    assert found[0].macs == 8 * 8 * 64
    assert [one.sqnr_db for one in found] == sorted(one.sqnr_db for one in found)
    assert {one.node for one in found} == {one.name for one in proto.graph.node}
    assert told[0] == (0, 4) and told[-1] == (4, 4)


def test_a_fused_relu_and_a_reshape_are_no_layers(tmp_path: Path) -> None:
    assert layers(calibrated(tmp_path, conv_net())) == ["n_c", "n_y"]


@pytest.mark.parametrize("least_db", [0.0, 50.0, 55.0, 70.0])
def test_promotion_holds_what_is_asked_with_no_more_than_needed(
    tmp_path: Path, least_db: float
) -> None:
    net = calibrated(tmp_path, sums_net(), judged=2)
    judge = Judge(net, net.judged)
    start, levels = levels_above("auto", wide_weights=True, floats=True)
    result = promote(net, CONFIGS[start], judge, levels, least_db)
    proto = insert_pairs(net, result.config)
    assert judge(proto) == pytest.approx(result.sqnr_db)
    assert result.sqnr_db >= least_db
    assert result.steps[0].layers == (("w8a8", len(layers(net))),)
    if least_db == 0.0:
        assert result.config.precisions == () and len(result.steps) == 1
        assert describe(result.steps[0]).startswith(f"{result.sqnr_db:.1f} dB, ")
    else:
        assert result.config.precisions
    for step in result.steps:
        assert sum(share for _, share in step.macs) == pytest.approx(1.0)


def test_what_cannot_be_held_is_an_error(tmp_path: Path) -> None:
    source = save(sums_net(), tmp_path / "float.onnx")
    request = Request("w8a16", least_db=150.0, levels=("w16a16",))
    with pytest.raises(StageFailed, match=r"no choice of precisions holds 150 dB .*w16a16"):
        quantize_as(source, tmp_path / "q.onnx", request, lambda: feeds_of(sums_net()))
    assert not (tmp_path / "q.onnx").exists()


def test_requested_and_computed_precisions(tmp_path: Path) -> None:
    source = save(sums_net(), tmp_path / "float.onnx")
    request = Request("w8a16", least_db=55.0, levels=("w16a16",))
    done = quantize_as(source, tmp_path / "q.onnx", request, lambda: feeds_of(sums_net(), 6))
    assert done.count == 3  # the others judged
    assert "w16a16" in done.computed.split("+")
    (expected,) = run(sums_net(), feeds_of(sums_net())[0])
    assert sqnr_db(expected, *Session(tmp_path / "q.onnx").run(feeds_of(sums_net())[0])) >= 55


def test_multiply_accumulates(tmp_path: Path) -> None:
    net = calibrated(tmp_path, sums_net())
    macs = {one.name: layer_macs(one, net) for one in net.graph.nodes}
    assert macs["n_c1"] == 8 * 256 * 27
    assert macs["n_c2"] == 8 * 256 * 8
    assert macs["n_y"] == 80
    assert macs["n_m2"] == 0
    shares = mac_shares(net, {name: "w8a8" if name == "n_c1" else "float" for name in macs})
    assert shares["w8a8"] == pytest.approx(macs["n_c1"] / sum(macs.values()))


@needs_compiler
@pytest.mark.parametrize(
    "own",
    [
        {"c1": "w8a16", "r1": "w8a16", "c2": "float"},
        {"c2": "w16a16", "s2": "w8a16", "m2": "float", "a": "w8a16"},
        {"c1": "w4a16", "r1": "w4a16", "y": "float"},
    ],
    ids=lambda own: " ".join(own.values()),
)
def test_a_mixed_model_is_one_graph_on_the_npu(
    tmp_path: Path, own: dict[str, NodePrecision]
) -> None:
    net = calibrated(tmp_path, sums_net())
    proto = insert_pairs(net, mixed("w8a8", **own))
    device = find_device("s24")
    path = save(proto, tmp_path / "mixed.onnx")
    compiled = compile_for("qnn_context_binary", path, tmp_path, device, "auto", LIMITS)
    assert compiled.nodes and {one.unit for one in compiled.nodes} == {"npu"}
    feeds = feeds_of(sums_net(), 1)
    save_samples(tmp_path / "inputs.npz", feeds)
    (found,) = run_compiled(
        "qnn_context_binary", tmp_path, tmp_path, tmp_path / "inputs.npz", device, LIMITS
    )
    (reference,), (host,) = run(sums_net(), feeds[0]), run(proto, feeds[0])
    assert sqnr_db(reference, next(iter(found.values()))) > sqnr_db(reference, host) - 3
