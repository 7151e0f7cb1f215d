"""Layers: onnxruntime's time of each node, and what each operator's output has lost."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import gaussian, model, node

import edgeport
from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.layers import Layer, layer_rows, times_by_run
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples

pytestmark = pytest.mark.xdist_group("layers")  # its export is made once


def net() -> onnx.ModelProto:
    """Returns convolution, Relu, convolution and a skip connection, 3 -> 8 channels."""
    weights = {"w1": gaussian([8, 3, 3, 3], 1, 0.3), "w2": gaussian([8, 8, 1, 1], 2, 0.3)}
    nodes = [
        node("Conv", "image w1", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "d"),
        node("Add", "d r", "y"),
    ]
    return model(nodes, {"image": [1, 3, 16, 16]}, {"y": [1, 8, 16, 16]}, weights)


def made(folder: Path, name: str = "out", **options: object) -> Path:
    onnx.save(net(), folder / "net.onnx")
    request = {"precision": "w8a8", "calib_samples": 4, "parity_samples": 2, **options}
    return edgeport.export(
        str(folder / "net.onnx"),
        device="s24",
        target_runtimes=("onnx",),
        output_dir=folder / name,
        **request,
    ).directory


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("layers"))


def by_node(rows: tuple[Layer, ...]) -> dict[str, Layer]:
    return {row.node: row for row in rows if row.sqnr_db is not None}


def test_each_executed_node_has_a_time_and_each_operator_an_sqnr(export: Path) -> None:
    rows = layer_rows(export, runs=5)
    assert all(row.provenance == "host" for row in rows)
    timed = [row for row in rows if row.time_ms is not None]
    assert all(row.executed and row.time_ms >= 0 for row in timed)
    assert sum(row.time_ms for row in timed) > 0
    integer = [row.op for row in timed if row.node in ("n_c", "n_d")]
    assert integer == ["QLinearConv", "QLinearConv"]
    lossy = by_node(rows)
    # The Relu is the range of the convolution's output: the quantized graph has none.
    assert list(lossy) == ["n_c", "n_d", "n_y"]
    manifest = json.loads((export / "manifest.json").read_text())
    quantized = next(one for one in manifest["artifacts"] if one["stage"] == "quantize")
    assert lossy["n_y"].sqnr_db == pytest.approx(quantized["parity"][0]["value"], abs=0.5)


def test_the_sqnr_is_the_worst_of_the_parity_inputs(export: Path) -> None:
    """Of the convolution behind Relu, by hand: both graphs with its tensor as their output."""
    found = []
    for feed in load_samples(export / "parity_inputs.npz"):
        answers = []
        for file, name in (("optimized.onnx", "d"), ("quantized.onnx", "d")):
            proto = onnx.load(export / file)
            reader = next(n for n in proto.graph.node if n.op_type == "Add")
            seen = next(n for n in reader.input if n.split("/")[0] == name)
            proto.graph.output.append(onnx.ValueInfoProto(name=seen))
            answers.append(Session(proto.SerializeToString(), optimize=False).run(feed)[-1])
        found.append(sqnr_db(*answers))
    assert by_node(layer_rows(export, runs=1))["n_d"].sqnr_db == pytest.approx(min(found))


def test_a_broken_layer_shows_from_there_on(export: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(export, tmp_path / "broken"))
    proto = onnx.load(broken / "quantized.onnx")
    weights = next(one for one in proto.graph.initializer if one.name.startswith("w2/"))
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(proto, broken / "quantized.onnx")
    before, after = by_node(layer_rows(export, runs=1)), by_node(layer_rows(broken, runs=1))
    assert before["n_c"].sqnr_db == after["n_c"].sqnr_db
    assert before["n_d"].sqnr_db > 20
    assert after["n_d"].sqnr_db < 0 and after["n_y"].sqnr_db < 5


@pytest.mark.usefixtures("quick")
def test_integer_edges_are_read_as_real_numbers(export: Path, tmp_path: Path) -> None:
    rows = by_node(layer_rows(made(tmp_path, quantize_io=True), runs=1))
    for name, row in by_node(layer_rows(export, runs=1)).items():
        assert rows[name].sqnr_db == pytest.approx(row.sqnr_db, abs=0.5)


@pytest.mark.usefixtures("quick")
def test_a_float_graph_has_times_alone(tmp_path: Path) -> None:
    rows = layer_rows(made(tmp_path, precision="float"), runs=3)
    assert {row.sqnr_db for row in rows} == {None}
    operators = [row.op for row in rows]
    assert operators.count("Conv") + operators.count("FusedConv") == 2
    # Conv and Relu run as one, which onnxruntime names after the tensor or the node behind.
    assert not {"n_c", "n_r"} <= {row.node for row in rows}
    assert all(row.time_ms is not None and row.time_ms >= 0 for row in rows)


def test_profiles_do_not_stay(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(export.iterdir())
    assert layer_rows(export, runs=1)
    assert list(tmp_path.iterdir()) == []
    assert sorted(export.iterdir()) == before


def test_what_is_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no export"):
        layer_rows(tmp_path)
    with pytest.raises(InputError, match="one run or more, not 0"):
        layer_rows(export, runs=0)


def test_a_node_of_a_loops_body_has_the_sum_of_its_turns(tmp_path: Path) -> None:
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Sigmoid", ["v"], ["w"], "inner"),
            onnx.helper.make_node("Identity", ["go"], ["on"], "go_on"),
        ],
        "body",
        [value("i", kind.INT64, []), value("go", kind.BOOL, []), value("v", kind.FLOAT, [8])],
        [value("on", kind.BOOL, []), value("w", kind.FLOAT, [8])],
    )
    loop = onnx.helper.make_node("Loop", ["n", "c", "x"], ["y"], "again", body=body)
    weights = {"n": np.int64(3), "c": np.bool_(True)}
    onnx.save(model([loop], {"x": [8]}, {"y": [8]}, weights), tmp_path / "net.onnx")
    session = Session(tmp_path / "net.onnx", 1, optimize=False, profile=tmp_path / "profile")
    for _ in range(2):
        session.run({"x": gaussian([8])})
    events = json.loads(session.end_profile().read_text())
    turns = [event["dur"] / 1e3 for event in events if event["name"] == "inner_kernel_time"]
    runs = times_by_run(events)
    assert [one["inner", "Sigmoid"] for one in runs] == pytest.approx(
        [sum(turns[:3]), sum(turns[3:])]
    )
    assert len(turns) == 6
    assert all(one["again", "Loop"] >= one["inner", "Sigmoid"] for one in runs)
