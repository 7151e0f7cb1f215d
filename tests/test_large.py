"""Models too large for one protobuf message: the limits are lowered, so that small ones are."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import gaussian, manifest_of, model, needs_compiler, node

import edgeport
from edgeport import doctor, pipeline
from edgeport.capture import load_onnx, save_model
from edgeport.errors import InputError
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples

HOST = {"device": "s24", "target_runtimes": ("onnx",)}


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 100 bytes of weights too many for a message."""
    monkeypatch.setattr("edgeport.capture.EXTERNAL_DATA_BYTES", 100)
    monkeypatch.setattr("edgeport.subgraph.EXTERNAL_DATA_BYTES", 100)
    monkeypatch.setattr("edgeport.quantize.graph.PROTOBUF_LIMIT", 100 + (64 << 20))
    monkeypatch.setattr(importlib.import_module("edgeport.passes.simplify"), "MAX_BYTES", 100)


def wide_net() -> onnx.ModelProto:
    """Returns two convolutions whose weights in 8 bits still are worth a file."""
    nodes = [node("Conv", "image w1", "c", pads=[1, 1, 1, 1]), node("Conv", "c w2", "y")]
    weights = {"w1": gaussian((64, 3, 3, 3), 0, 0.2), "w2": gaussian((64, 64, 1, 1), 1, 0.1)}
    return model(nodes, {"image": [1, 3, 16, 16]}, {"y": [1, 64, 16, 16]}, weights)


def external_net(path: Path) -> Path:
    onnx.save(wide_net(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


@pytest.mark.usefixtures("small_messages")
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"precision": "w8a16"},
        {"precision": "w8a8", "quantize_io": True},
        {"precision": "auto", "min_sqnr": 45.0},
        {"normalize": "0.5,0.25"},
    ],
    ids=str,
)
def test_an_export_keeps_its_weights_beside_the_graph(
    tmp_path: Path, out: Path, request_: dict[str, object]
) -> None:
    path = external_net(tmp_path / "net.onnx")
    edgeport.export(str(path), output_dir=out, **HOST, **request_)
    manifest = manifest_of(out)
    files = manifest["files"]
    for one in manifest["artifacts"]:
        name = one["path"]
        assert files[f"{name}.data"]["bytes"] > 100
        assert one["bytes"] == files[name]["bytes"] + files[f"{name}.data"]["bytes"]
    portable = manifest["artifacts"][-1]["path"]
    assert f"Keep `{portable}.data`" in (out / "DEPLOY.md").read_text()
    notes = [note for one in manifest["artifacts"] for note in one["notes"]]
    assert "simplify (onnxsim): the model is too large for onnxsim" in notes
    last = manifest["artifacts"][-1]
    assert float(last["parity"][0]["value"]) > 25
    if not request_:
        feed = load_samples(out / "parity_inputs.npz")[0]
        answers = [Session(one).run(feed)[0] for one in (path, out / "optimized.onnx")]
        np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_messages")
def test_layers_of_a_large_model_are_ranked(tmp_path: Path) -> None:
    path = external_net(tmp_path / "net.onnx")
    found = pipeline.sensitivity(str(path), precision="w8a8", **HOST)
    assert {layer["op"] for layer in found} >= {"Conv"}


@needs_compiler
@pytest.mark.usefixtures("small_messages")
@pytest.mark.parametrize("precision", ["float", "w8a16"])
def test_a_large_model_is_examined_on_the_npu(tmp_path: Path, precision: str) -> None:
    path = external_net(tmp_path / "net.onnx")
    found = doctor.examine(str(path), precision=precision, device="s24")
    assert (found.passed.cpu_ops, found.emulator_failure) == (0, "")
    assert found.sqnr_db is not None and found.sqnr_db > 35


@pytest.mark.usefixtures("small_messages")
def test_mapped_weights_are_written_again_though_few_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load_onnx(external_net(tmp_path / "net.onnx"))
    weights = [value.const_value for value in graph.graph.initializers.values()]
    assert all(isinstance(weight, ir.ExternalTensor) for weight in weights)
    monkeypatch.setattr("edgeport.capture.EXTERNAL_DATA_BYTES", 1 << 30)
    (tmp_path / "other").mkdir()
    save_model(graph, tmp_path / "other" / "net.onnx")
    feed = {"image": np.ones((1, 3, 16, 16), np.float32)}
    answers = [Session(one / "net.onnx").run(feed)[0] for one in (tmp_path, tmp_path / "other")]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("location", ["../w.bin", "below/../../w.bin"])
def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "inside" / "below").mkdir(parents=True)
    external_net(tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(one for one in tensor.external_data if one.key == "location").value = location
    onnx.save(proto, tmp_path / "inside" / "net.onnx")
    with pytest.raises(InputError, match="outside of its own folder"):
        load_onnx(tmp_path / "inside" / "net.onnx")


def test_a_data_file_that_was_cut_is_told(tmp_path: Path) -> None:
    path = external_net(tmp_path / "net.onnx")
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:-1])
    with pytest.raises(
        InputError, match=rf"{len(whole)} bytes .* w.bin, which has {len(whole) - 1}"
    ):
        load_onnx(path)
