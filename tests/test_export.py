"""Export end to end: the files, the manifest, and the proof that it is not vacuous."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support import FACTORY, INPUT, Command, conv_net, needs_compiler, reference, tiny

import edgeport
from edgeport.compare import sqnr_db
from edgeport.pipeline import Export
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples
from edgeport.types import Artifact

SMALL = {"dim": 32, "depth": 1, "kernel": 3, "heads": 2, "classes": 10}
FILES = {
    "model.onnx",
    "optimized.onnx",
    "quantized.onnx",
    "model.bin",
    "model_ctx.onnx",
    "parity_inputs.npz",
    "parity_outputs.npz",
    "DEPLOY.md",
    "manifest.json",
}
NPU = "qnn_context_binary"
STAGES = ["capture", "passes", "quantize", "run", "lower", "run"]
padre_group = pytest.mark.xdist_group("padre export")


@pytest.fixture(scope="module")
def padre(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """padre3 with one narrow block, w8a16, for the Galaxy S24: all stages really run."""
    return edgeport.export(
        "padre",
        device="s24",
        precision="w8a16",
        options=SMALL,
        output_dir=tmp_path_factory.mktemp("padre") / "out",
    )


@needs_compiler
@padre_group
def test_files_and_their_hashes(padre: Export) -> None:
    assert {path.name for path in padre.directory.iterdir()} == FILES
    manifest = json.loads((padre.directory / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(padre.manifest))
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    for name, entry in manifest["files"].items():
        content = (padre.directory / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@needs_compiler
@padre_group
def test_the_manifest(padre: Export) -> None:
    manifest = padre.manifest
    assert manifest["generator"] == "edgeport"
    assert manifest["schema_version"] == 2
    assert manifest["source"]["variant"] == "padre3"
    assert manifest["source"]["options"]["dim"] == 32
    assert manifest["options"]["precision"] == "w8a16"
    assert manifest["options"]["target_runtimes"] == ["onnx", "qnn_context_binary"]
    assert manifest["device"]["facts"]["soc_model"]["value"] == 57
    assert all(fact["source"] for fact in manifest["device"]["facts"].values())
    assert [artifact["stage"] for artifact in manifest["artifacts"]] == STAGES
    for artifact in manifest["artifacts"]:
        assert artifact["sha256"] == manifest["files"][artifact["path"]]["sha256"]
        assert artifact["bytes"] == manifest["files"][artifact["path"]]["bytes"]
    assert manifest["calibrated_on"] == 32
    assert manifest["tools"]["torch"] == metadata.version("torch")
    assert all(version != "not installed" for version in manifest["tools"].values())


@needs_compiler
@padre_group
def test_every_op_is_on_the_npu_and_every_stage_is_proven(padre: Export) -> None:
    placement = padre.manifest["placement"][NPU]
    assert placement["cpu"] == 0
    assert placement["npu"] > 20
    nodes = padre.artifact("lower").nodes
    assert len(nodes) == placement["npu"]
    assert {node.unit for node in nodes} == {"npu"}
    least = {"capture": 80, "passes": 80, "quantize": 30, "run onnx": 30, f"run {NPU}": 30}
    for name, least_db in least.items():
        stage, _, runtime = name.partition(" ")
        found = padre.artifact(stage, runtime)
        sqnr, error = found.parity
        assert (sqnr.metric, error.metric) == ("sqnr_db", "max_abs")
        assert sqnr.value >= least_db
        assert sqnr.provenance == ("emulated" if runtime == NPU else "host")
        assert sqnr.artifact_sha256 == found.sha256
    counts = dict(padre.artifact("passes").steps)
    assert counts["reciprocal to Div"] >= 1
    proofs = {one["pass"]: one for one in padre.manifest["passes"]}
    assert {name: one["count"] for name, one in proofs.items()} == counts
    assert proofs["reciprocal to Div"]["sqnr_db"] > 60
    operators = {node.op_type for node in onnx.load(padre.directory / "optimized.onnx").graph.node}
    assert not operators & {"Softmax", "MatMul", "Transpose", "Reciprocal"}


@needs_compiler
@padre_group
def test_the_saved_parity_is_what_the_files_give(padre: Export) -> None:
    """A phone's developer compares with these two files: they must be torch's, on these inputs."""
    from edgeport_recipes.padre import model

    (inputs,) = load_samples(padre.directory / "parity_inputs.npz")
    (outputs,) = load_samples(padre.directory / "parity_outputs.npz")
    with torch.no_grad():
        expected = model.padre3(0, **SMALL)(torch.from_numpy(inputs["image"])).numpy()
    assert np.array_equal(next(iter(outputs.values())), expected)
    (actual,) = Session(padre.directory / "quantized.onnx").run(inputs)
    assert sqnr_db(expected, actual) == pytest.approx(padre.artifact("quantize").parity[0].value)


@needs_compiler
@padre_group
def test_deploy_names_what_a_developer_needs(padre: Export) -> None:
    text = (padre.directory / "DEPLOY.md").read_text()
    for word in ("image", "logits", "1 x 3 x 224 x 224", "uint16", "QAIRT", "model_ctx.onnx"):
        assert word in text, word
    assert padre.manifest["compiled"][NPU]["qairt_version"].removeprefix("v") in text
    assert f"{padre.manifest['io_scales']['image']['scale']:.6g}" in text


@needs_compiler
@padre_group
def test_latency_is_compared_with_attention_on_this_machine(padre: Export) -> None:
    rows = padre.manifest["run"]["latency"]
    assert len(rows) == 2
    for row in rows:
        assert row["variant"]["provenance"] == row["baseline"]["provenance"] == "host"
        low, high = row["speedup"]["interval"]
        assert 0 < low <= row["speedup"]["value"] <= high
    times = [artifact.seconds for artifact in padre.artifacts]
    assert not any("emulated" in json.dumps(row) for row in rows)
    assert all(seconds >= 0 for seconds in times)


@needs_compiler
@padre_group
def test_the_command_agrees_and_repeats_from_the_cache(
    padre: Export, tmp_path: Path, run_cli: Command
) -> None:
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    arguments = ("export", "padre", "--device", "s24", "--precision", "w8a16", *flags)
    table = run_cli(*arguments, "-o", "one")
    assert table.returncode == 0, table.stderr
    assert table.stderr == ""
    assert f"({padre.steps} of {padre.steps} steps from the cache)" in table.stdout
    assert f"{NPU}: npu {padre.manifest['placement'][NPU]['npu']} ops  cpu 0 ops" in table.stdout
    document = run_cli(*arguments, "-o", "two", "--json")
    assert json.loads(document.stdout) == json.loads(json.dumps(padre.manifest))
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (padre.directory / name).read_bytes()


@padre_group
def test_the_table_shows_no_time_of_the_emulator(padre: Export) -> None:
    from edgeport.report import stage_table

    table = stage_table(padre.artifacts)
    where = list(table.columns[4].cells)
    seconds = list(table.columns[-1].cells)
    assert seconds[where.index("emulated")] == "-"


@padre_group
def test_artifacts_come_back_from_their_json(padre: Export) -> None:
    for artifact in padre.artifacts:
        assert Artifact.from_dict(json.loads(json.dumps(artifact.to_dict()))) == artifact
    with pytest.raises(KeyError, match="capture"):
        padre.artifact("train")


def test_zeroed_mixers_are_far_from_the_original() -> None:
    """Else 30 dB would say nothing about PADRe: a full-size net, in torch, on parity inputs."""
    from edgeport_recipes._shared.images import feeds
    from edgeport_recipes.padre import model
    from edgeport_recipes.padre.recipe import inputs

    net = model.padre3(0)
    zeroed = model.zero_mixers(net)
    (feed,) = feeds(inputs(), 1, 1_000_003)
    image = torch.from_numpy(feed["image"])
    with torch.no_grad():
        assert sqnr_db(net(image).numpy(), zeroed(image).numpy()) < 10


# Other sources and devices


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("external", [False, True])
def test_an_onnx_file(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "model.onnx"
    extra = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(conv_net(17), path, **(extra if external else {}))
    options = {"inputs": (), "precision": "w8a8", "calib_samples": 4}
    first = tiny(tmp_path, "model.onnx", **options)
    assert [artifact.stage for artifact in first.artifacts] == STAGES[:4]
    (sample,) = load_samples(tmp_path / "out" / "parity_inputs.npz")
    assert np.array_equal(Session(path).run(sample)[0], reference(tmp_path))
    assert [spec["name"] for spec in first.manifest["inputs"]] == ["image"]
    again = tiny(tmp_path, "model.onnx", **options)
    assert again.cached_steps == again.steps

    changed = tmp_path / "w.bin" if external else path
    content = bytearray(changed.read_bytes())
    weight = numpy_helper.to_array(conv_net().graph.initializer[0]).tobytes()
    content[content.index(weight[:32]) + 2] ^= 0x10
    changed.write_bytes(content)
    assert tiny(tmp_path, "model.onnx", **options).cached_steps == 0


@needs_compiler
@pytest.mark.parametrize("opset", [13, 21])
def test_an_onnx_file_of_any_opset_reaches_the_npu(tmp_path: Path, opset: int) -> None:
    onnx.save(conv_net(opset), tmp_path / "model.onnx")
    request = {"inputs": (), "precision": "w8a16", "target_runtimes": (), "calib_samples": 4}
    result = tiny(tmp_path, "model.onnx", **request)
    assert result.manifest["placement"][NPU]["cpu"] == 0
    assert result.artifact("run", NPU).parity[0].value > 35


@pytest.mark.usefixtures("quick")
def test_without_an_npu_there_is_no_binary(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    result = tiny(tmp_path, device="pixel-6", target_runtimes=(), chipset=None)
    names = {path.name for path in result.directory.iterdir()}
    assert names == FILES - {"model.bin", "model_ctx.onnx", "quantized.onnx"}
    assert result.manifest["placement"] == {}
    assert "QAIRT" not in (result.directory / "DEPLOY.md").read_text()


@pytest.mark.usefixtures("quick")
def test_cache_and_output_may_be_given_as_text(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    result = edgeport.export(
        f"{tmp_path}/net.py:build",
        device="s24",
        inputs=[INPUT],
        target_runtimes=["onnx"],
        output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"),
    )
    assert result.directory == tmp_path / "out"
    assert any((tmp_path / "cache").iterdir())
