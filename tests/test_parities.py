"""Compare: every stage's file run again, against torch and against its own graph."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import LIMITS, called, check_refusal, conv_net, needs_compiler

import edgeport
from edgeport.bisect import bisect
from edgeport.compare import cosine
from edgeport.devices import find_device
from edgeport.errors import StageFailed
from edgeport.parities import Distance, Parity, Stage, compare_stages, distances, doubts
from edgeport.parting import SHARP_DB
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.lowering import compile_for

pytestmark = pytest.mark.xdist_group("parities")  # its exports are made once


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution net for the NPU with integers at its edges, two parity samples."""
    folder = tmp_path_factory.mktemp("integers")
    onnx.save(conv_net(), folder / "net.onnx")
    made = edgeport.export(
        str(folder / "net.onnx"),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        parity_samples=2,
        quantize_io=True,
        output_dir=folder / "out",
    )
    return made.directory


def by_stage(rows: tuple[Parity, ...]) -> dict[str, Parity]:
    return {row.stage: row for row in rows}


@needs_compiler
def test_every_stage_is_what_the_export_found(export: Path) -> None:
    """Graphs with integer inputs and outputs are compared as real numbers."""
    found = compare_stages(export, limits=LIMITS)
    assert found.complete
    rows = by_stage(found.rows)
    assert list(rows) == ["capture", "passes", "quantize", "onnx", "qnn_context_binary"]
    assert [row.provenance for row in found.rows] == [*["host"] * 4, "emulated"]
    artifacts = json.loads((export / "manifest.json").read_text())["artifacts"]
    for artifact in artifacts:
        if artifact["parity"] and artifact["stage"] != "run":
            row = rows[artifact["stage"]]
            assert row.torch is not None
            measured = {one["metric"]: float(one["value"]) for one in artifact["parity"]}
            assert row.torch.sqnr_db == pytest.approx(measured["sqnr_db"], abs=1e-6)
            assert row.torch.max_abs == pytest.approx(measured["max_abs"])
    npu = rows["qnn_context_binary"]
    assert npu.torch is not None and npu.graph is not None
    assert 20 < npu.torch.sqnr_db < 60
    assert npu.graph.sqnr_db > npu.torch.sqnr_db - SHARP_DB
    assert 0.99 < npu.torch.cosine < 1
    assert "the source file's own answers" in found.notes[0]


@needs_compiler
def test_a_file_that_was_replaced_is_run_as_it_is(export: Path) -> None:
    path = export / "optimized.onnx"
    before = path.read_bytes()
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    try:
        onnx.save(model, path)
        found = compare_stages(export, limits=LIMITS)
        assert "optimized.onnx was changed since it was exported" in found.notes
        rows = by_stage(found.rows)
        one = rows["passes"].torch
        assert one is not None and one.sqnr_db < 20
        del model.graph.output[:]
        model.graph.output.extend(onnx.load(export / "model.onnx").graph.output)
        model.graph.node.pop()
        onnx.save(model, path)
        found = compare_stages(export, limits=LIMITS)
        assert not found.complete
        assert "onnxruntime cannot load optimized.onnx" in by_stage(found.rows)["passes"].problem
    finally:
        path.write_bytes(before)


@needs_compiler
def test_what_nothing_here_runs_is_said_and_no_failure(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npu = RUNTIMES["qnn_context_binary"]
    monkeypatch.setitem(RUNTIMES, npu.name, replace(npu, runs_as=None))
    found = compare_stages(export, limits=LIMITS)
    assert found.complete
    row = by_stage(found.rows)[npu.name]
    assert (row.problem, row.torch, row.provenance) == ("nothing here runs it", None, None)
    lacking = replace(npu, requires=("no_such_package",), install="pip install it")
    monkeypatch.setitem(RUNTIMES, npu.name, lacking)
    found = compare_stages(export, limits=LIMITS)
    assert not found.complete
    assert by_stage(found.rows)[npu.name].problem.endswith("pip install it")


@needs_compiler
def test_a_file_that_is_not_what_its_graph_compiles_to(export: Path, tmp_path: Path) -> None:
    """The runtime's own file is another's; compiled anew, the graph beside it holds."""
    stale = Path(shutil.copytree(export, tmp_path / "stale"))
    other = onnx.load(export / "quantized.onnx")
    weights = next(one for one in other.graph.initializer if one.name.startswith("w1/"))
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(other, tmp_path / "other.onnx")
    for name in ("model.bin", "model_ctx.onnx"):
        (stale / name).unlink()
    npu, device = "qnn_context_binary", find_device("s24")
    compile_for(npu, tmp_path / "other.onnx", stale, device, "w8a8", LIMITS)
    result = bisect(stale, stage=npu, limits=LIMITS)
    assert result.found is not None
    assert (result.found.stage, result.found.tensor, result.written) == (npu, "", "")
    assert result.found.sqnr_db < 20 <= result.found.lowest_db
    assert result.found.runs == 1


def row(torch_db: float, graph_db: float) -> Parity:
    near = [Distance(value, 0.1, 0.9) for value in (torch_db, graph_db)]
    return Parity("onnx", "onnx", "quantized.onnx", "y", "host", *near)


def test_references_that_differ_more_than_the_stage_are_told() -> None:
    stage = Stage("onnx", "quantized.onnx", "quantized.onnx", "quantized.onnx", "onnx")
    apart = [Distance(16.0, 0.1, 0.9)]
    (told,) = doubts(stage, apart, [row(18.0, 17.0)])
    assert told.startswith(
        "onnx, y: the two references are 16.0 dB apart, more than quantized.onnx"
    )
    assert doubts(stage, apart, [row(15.0, 30.0)]) == []  # as far from torch as its graph is
    assert (
        doubts(stage, [Distance(126.0, 1e-7, 1.0)], [row(127.0, 130.0)]) == []
    )  # float32 rounding


def test_distances_are_the_worst_of_the_samples() -> None:
    one, two = np.ones((2, 2), np.float32), np.full((2, 2), 2, np.float32)
    (found,) = distances([{"y": one}, {"y": one}], [{"y": one}, {"y": two}])
    assert (found.sqnr_db, found.max_abs, found.cosine) == (0.0, 1.0, 1.0)
    with pytest.raises(StageFailed, match="y cannot be compared: the reference has shape"):
        distances([{"y": one}], [{"y": one[:1]}])


def test_cosine() -> None:
    one = np.array([3.0, 4.0])
    assert cosine(one, 7 * one) == pytest.approx(1)
    assert cosine(one, -one) == pytest.approx(-1)
    assert cosine(one, [4.0, -3.0]) == pytest.approx(0)
    assert cosine(1e200 * one, 1e-200 * one) == pytest.approx(1)
    assert cosine([0.0, 0.0], [0.0, 0.0]) == 1
    assert cosine(one, [0.0, 0.0]) == 0
    assert cosine(one, [math.nan, 1.0]) == -1
    with pytest.raises(ValueError, match="shape"):
        cosine(one, [1.0])


@needs_compiler
def test_the_command(export: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capfd, "compare", export)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "capture", "passes", "quantize", "onnx", "qnn_context_binary",
    ]  # fmt: skip
    assert "emulated" in lines[5]
    _, out, _ = called(capfd, "compare", export, "--json")
    assert [row["output"] for row in json.loads(out)["rows"]] == ["y"] * 5
    refused = called(capfd, "compare", tmp_path / "nowhere")
    check_refusal(*refused, "nowhere is no export")
