"""Weights rounded by the data: the loss is the layer's own, and it is less than the nearest's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import gaussian, model, node, save

from edgeport.compare import sqnr_db
from edgeport.quantize import rounding
from edgeport.quantize.apply import calibrate_file, quantize_file
from edgeport.quantize.calibrate import Feeds
from edgeport.quantize.config import CONFIGS, QuantConfig
from edgeport.quantize.graph import Graph, Probe
from edgeport.quantize.grids import symmetric, to_integers, to_reals
from edgeport.quantize.rounding import Moments, RoundedWeight, moments_of_layers, round_weight
from edgeport.runtimes.onnx import Session

# (operator, attributes, input shape, weight shape, axis of the output channels)
LAYERS: dict[str, tuple[str, dict[str, Any], list[int], tuple[int, ...], int]] = {
    "conv": ("Conv", {"pads": [1, 2, 0, 1]}, [2, 6, 9, 8], (5, 6, 3, 2), 0),
    "strided": ("Conv", {"strides": [2, 3], "dilations": [2, 1]}, [1, 4, 11, 12], (3, 4, 3, 3), 0),
    "grouped": ("Conv", {"group": 2}, [1, 6, 8, 8], (4, 3, 3, 3), 0),
    "depthwise": ("Conv", {"group": 6, "pads": [1] * 4}, [1, 6, 8, 8], (6, 1, 3, 3), 0),
    "one axis": ("Conv", {"strides": [2]}, [3, 4, 15], (5, 4, 3), 0),
    "gemm": ("Gemm", {}, [40, 12], (12, 7), 1),
    "gemm, turned": ("Gemm", {"transB": 1}, [40, 12], (7, 12), 0),
    "matmul": ("MatMul", {}, [2, 20, 12], (12, 7), 1),
}


def correlated(shape: list[int], seed: int) -> np.ndarray:
    """Values whose neighbours along every axis resemble each other, as in images and features."""
    values = gaussian(shape, seed) + 2 * gaussian([*shape[:-1], 1], seed + 100)
    for axis in range(values.ndim):
        values = values + np.roll(values, 1, axis) + 0.5 * np.roll(values, 2, axis)
    return values + np.float32(1.0)


def layer(kind: str) -> tuple[onnx.ModelProto, list[int], str, int]:
    op, attributes, shape, weight, axis = LAYERS[kind]
    constants = {"w": gaussian(weight, 7)}
    net = model([node(op, "x w", "y", **attributes)], {"x": shape}, {"y": None}, constants)
    return net, shape, "w", axis


def change_of_output(net: onnx.ModelProto, weight: np.ndarray, feeds: list) -> float:
    """Returns the sum of squared changes of the output when `weight` takes the weight's place."""
    other = onnx.ModelProto()
    other.CopyFrom(net)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "w"))
    sessions = [Session(one.SerializeToString()) for one in (net, other)]
    answers = [[session.run(feed)[0] for feed in feeds] for session in sessions]
    return float(sum(((a - b) ** 2).sum() for a, b in zip(*answers, strict=True)))


def moments_of(net: onnx.ModelProto, feeds: list, folder: Path) -> tuple[Graph, Moments]:
    graph = Graph(net)
    [(_, moments)] = moments_of_layers(graph, Probe(graph), Feeds(feeds, folder))
    return graph, moments


@pytest.mark.parametrize("kind", LAYERS)
def test_the_loss_is_what_the_output_changes_by(kind: str, tmp_path: Path) -> None:
    net, shape, name, axis = layer(kind)
    feeds = [{"x": correlated(shape, seed)} for seed in range(3)]
    graph, moments = moments_of(net, feeds, tmp_path)
    exact = graph.array(name)
    grid = symmetric(exact, "int4", axis)
    nearest = to_reals(to_integers(exact, grid), grid)
    groups, _, inputs = moments.sums.shape
    change = np.moveaxis(exact - nearest, axis, 0).reshape(groups, -1, inputs)
    loss = np.einsum("gri,gij,grj->", change, moments.sums, change)
    assert loss == pytest.approx(change_of_output(net, nearest, feeds), rel=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_changes_less_than_by_rounding_to_the_nearest(kind: str, tmp_path: Path) -> None:
    net, shape, name, axis = layer(kind)
    feeds = [{"x": correlated(shape, seed)} for seed in range(3)]
    graph, moments = moments_of(net, feeds, tmp_path)
    exact = graph.array(name)
    grid = symmetric(exact, "int4", axis)
    rounded = round_weight(graph.nodes[0], exact, grid, moments)
    assert rounded.integers.dtype == to_integers(exact, grid).dtype
    other = [{"x": correlated(shape, seed)} for seed in range(10, 13)]
    losses = [
        change_of_output(net, to_reals(integers, grid), other)
        for integers in (rounded.integers, to_integers(exact, grid))
    ]
    assert losses[0] < 0.7 * losses[1]


def test_inputs_that_do_not_resemble_each_other_are_rounded_to_the_nearest() -> None:
    net, _, name, axis = layer("matmul")
    exact = Graph(net).array(name)
    grid = symmetric(exact, "int8", axis)
    rounded = round_weight(net.graph.node[0], exact, grid, Moments(np.eye(12)[None], 100))
    np.testing.assert_array_equal(rounded.integers, to_integers(exact, grid))


def test_columns_in_blocks_and_layers_in_groups_are_the_same_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = [{"x": correlated([1, 6, 8, 8], seed)} for seed in range(3)]
    nodes = [node("Conv", "x w", "h", pads=[1] * 4), node("Conv", "h v", "y")]
    constants = {"w": gaussian((4, 6, 3, 3), 1), "v": gaussian((5, 4, 3, 3), 2)}
    net = model(nodes, {"x": [1, 6, 8, 8]}, {"y": None}, constants)
    source = save(net, tmp_path / "net.onnx")

    def integers() -> list[np.ndarray]:
        found = calibrate_file(source, CONFIGS["w8a16"], feeds).weights
        assert len(found) == 2
        return [one.integers for [one] in found.values()]

    whole = integers()
    monkeypatch.setattr(rounding, "BLOCK", 7)
    monkeypatch.setattr(rounding, "GROUP_BYTES", 1)
    for one, other in zip(whole, integers(), strict=True):
        assert (one != other).mean() < 0.02  # sums in another order decide a tie otherwise


def deep_net() -> onnx.ModelProto:
    nodes, constants, before = [], {}, "x"
    for index in range(4):
        constants[f"w{index}"] = gaussian((12, 12), index, scale=0.4)
        constants[f"b{index}"] = gaussian((12,), 20 + index)
        nodes += [
            node("MatMul", f"{before} w{index}", f"m{index}"),
            node("Add", f"m{index} b{index}", f"a{index}"),
            node("Relu", f"a{index}", f"r{index}"),
        ]
        before = f"r{index}"
    return model(nodes, {"x": [1, 32, 12]}, {"r3": [1, 32, 12]}, constants)


def test_a_network_keeps_more_of_its_answer(tmp_path: Path) -> None:
    feeds = [{"x": correlated([1, 32, 12], seed)} for seed in range(16)]
    source = save(deep_net(), tmp_path / "net.onnx")

    def kept(config: QuantConfig) -> float:
        quantize_file(source, tmp_path / "q.onnx", config, feeds[:12])
        pair = [Session(path) for path in (source, tmp_path / "q.onnx")]
        return min(sqnr_db(*(one.run(feed)[0] for one in pair)) for feed in feeds[12:])

    for precision in ("w4a16", "w8a16"):
        config = CONFIGS[precision]
        nearest = kept(replace(config, round_by_data=False, bias_correction=False))
        assert kept(replace(config, bias_correction=False)) > nearest + 2
        assert kept(config) > nearest + 2


def test_the_bias_behind_a_matmul_takes_off_the_mean_error(tmp_path: Path) -> None:
    feeds = [{"x": correlated([1, 32, 12], seed)} for seed in range(8)]
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m", "y")]
    constants = {"w": gaussian((12, 6), 1), "b": gaussian((6,), 2)}
    net = model(nodes, {"x": [1, 32, 12]}, {"y": [1, 32, 6]}, constants)
    source = save(net, tmp_path / "net.onnx")
    means = []
    for correct in (True, False):
        config = replace(CONFIGS["w4a16"], round_by_data=False, bias_correction=correct)
        quantize_file(source, tmp_path / "q.onnx", config, feeds)
        pair = [Session(path) for path in (source, tmp_path / "q.onnx")]
        errors = [pair[1].run(feed)[0] - pair[0].run(feed)[0] for feed in feeds]
        means.append(np.abs(np.mean(errors, axis=(0, 1, 2))).max())
    assert means[0] < 0.05 * means[1]


def test_a_layer_that_reads_minus_infinity_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    low = np.full((1, 12), np.finfo(np.float32).min, np.float32)
    nodes = [node("Add", "x low", "s"), node("MatMul", "s w", "y")]
    constants = {"low": low, "w": np.abs(gaussian((12, 6), 1)) * np.float32(1e-3)}
    net = model(nodes, {"x": [4, 12]}, {"y": [4, 6]}, constants)
    source = save(net, tmp_path / "net.onnx")
    found = calibrate_file(source, CONFIGS["w8a16"], [{"x": gaussian([4, 12])}])
    assert found.weights == {}


def test_each_level_of_a_mixed_model_has_its_own_integers(tmp_path: Path) -> None:
    feeds = [{"x": correlated([1, 32, 12], seed)} for seed in range(4)]
    source = save(deep_net(), tmp_path / "net.onnx")
    found = calibrate_file(source, CONFIGS["w4a16"], feeds, ("w8a16", "w16a16", "float")).weights
    kinds: list[tuple[RoundedWeight, ...]] = list(found.values())
    assert [[one.grid.dtype for one in each] for each in kinds] == [["int4", "int8"]] * 4
