"""Cross-layer equalization: the same answer in float, and ranges that are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import gaussian, model, node, save

from edgeport.compare import sqnr_db
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.quantize.equalize import equalize
from edgeport.quantize.graph import Graph
from edgeport.runtimes.onnx import Session


def chain(spread: float, relu: bool = True, depthwise: bool = False, other: bool = False):
    """Returns two convolutions; channel i of the first is larger by spread ** i."""
    rng = np.random.default_rng(0)
    scale = (spread ** np.arange(8)).astype(np.float32)
    inside = (8, 1, 3, 3) if depthwise else (4, 8, 1, 1)
    second = rng.standard_normal(inside).astype(np.float32)
    second = second / scale[:, None, None, None] if depthwise else second / scale[:, None, None]
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * scale[:, None, None, None],
        "b1": rng.standard_normal(8).astype(np.float32) * scale,
        "w2": second.astype(np.float32),
    }
    nodes = [node("Conv", "image w1 b1", "c", pads=[1, 1, 1, 1])]
    if relu:
        nodes.append(node("Relu", "c", "r"))
    nodes.append(
        node("Conv", "r w2" if relu else "c w2", "y", group=8, pads=[1, 1, 1, 1])
        if depthwise
        else node("Conv", "r w2" if relu else "c w2", "y")
    )
    outputs = {"y": [1, 8 if depthwise else 4, 16, 16]}
    if other:
        nodes.append(node("Relu", "c", "z"))
        outputs["z"] = [1, 8, 16, 16]
    return model(nodes, {"image": [1, 3, 16, 16]}, outputs, weights)


def gemms(trans: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    scale = (3.0 ** np.arange(8)).astype(np.float32)
    first = rng.standard_normal((6, 8)).astype(np.float32) * scale
    second = rng.standard_normal((8, 5)).astype(np.float32) / scale[:, None]
    weights = {
        "w1": first.T.copy() if trans else first,
        "w2": second.T.copy() if trans else second,
        "b1": rng.standard_normal(8).astype(np.float32) * scale,
    }
    nodes = [
        node("Gemm", "x w1 b1", "h", transB=trans),
        node("Relu", "h", "r"),
        node("Gemm", "r w2", "y", transB=trans),
    ]
    return model(nodes, {"x": [2, 6]}, {"y": [2, 5]}, weights)


NETS = {
    "relu": chain(3.0),
    "identity": chain(3.0, relu=False),
    "depthwise": chain(3.0, depthwise=True),
    "gemm": gemms(0),
    "transposed gemm": gemms(1),
}


def outputs(proto: onnx.ModelProto) -> tuple[np.ndarray, ...]:
    (given,) = proto.graph.input
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
    return Session(proto.SerializeToString()).run({given.name: gaussian(shape)})


@pytest.mark.parametrize("name", NETS)
def test_the_float_answer_stays_and_ranges_meet(name: str) -> None:
    before = onnx.ModelProto()
    before.CopyFrom(NETS[name])
    graph = Graph(before)
    assert equalize(graph) == 1
    assert sqnr_db(*outputs(NETS[name]), *outputs(graph.model)) > 100
    first = graph.array("w1")
    rows = first.T if name == "gemm" else first
    ranges = np.abs(rows).reshape(8, -1).max(axis=1)
    assert ranges.max() / ranges.min() < 20  # it was 3 ** 7
    assert equalize(graph) == 0


def test_a_tensor_that_another_node_reads_is_left_alone() -> None:
    graph = Graph(chain(3.0, other=True))
    assert equalize(graph) == 0


def test_a_dead_channel_stays_finite() -> None:
    proto = chain(1.0)
    graph = Graph(proto)
    weight = graph.array("w1").copy()
    weight[3] = 0
    graph.set_array("w1", weight)
    before = outputs(graph.model)
    equalize(graph)
    assert np.isfinite(graph.array("w2")).all()
    assert sqnr_db(*before, *outputs(graph.model)) > 100


def test_it_helps_where_channels_differ(tmp_path: Path) -> None:
    proto = chain(3.0)
    source = save(proto, tmp_path / "float.onnx")
    feeds = [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(4)]
    found = {}
    for on in (False, True):
        target = tmp_path / f"{on}.onnx"
        quantize_file(source, target, replace(CONFIGS["w8a8"], equalize=on), feeds)
        (expected,) = Session(source).run(feeds[0])
        found[on] = sqnr_db(expected, *Session(target).run(feeds[0]))
    assert found[True] > found[False] + 10
