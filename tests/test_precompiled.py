"""The runtime precompiled_qnn_onnx: the context binary inside one ONNX file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import LIMITS, conv_net, gaussian, manifest_of, needs_compiler, save

import edgeport
from edgeport.devices import find_device
from edgeport.errors import StageFailed
from edgeport.places import find_place
from edgeport.running import run_at
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.precompiled_qnn_onnx import FILE, NAME
from edgeport.runtimes.qnn_context_binary import BINARY, WRAPPER
from edgeport.runtimes.samples import save_samples

BOTH = ("qnn_context_binary", NAME)
S24 = find_device("s24")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> edgeport.pipeline.Export:
    folder = tmp_path_factory.mktemp("export")
    return edgeport.export(
        str(save(conv_net(), folder / "net.onnx")),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        target_runtimes=BOTH,
        output_dir=folder / "out",
    )


def context_of(path: Path) -> dict[str, onnx.AttributeProto]:
    (node,) = onnx.load(path, load_external_data=False).graph.node
    assert node.op_type == "EPContext"
    return {attribute.name: attribute for attribute in node.attribute}


@needs_compiler
def test_one_compilation_serves_both(export: edgeport.pipeline.Export) -> None:
    embedded = context_of(export.directory / FILE)
    assert embedded["embed_mode"].i == 1
    assert embedded["ep_cache_context"].s == (export.directory / BINARY).read_bytes()
    assert context_of(export.directory / WRAPPER)["embed_mode"].i == 0
    versions = export.manifest["compiled"]
    assert versions[NAME] == versions["qnn_context_binary"] != {"qairt_version": ""}
    placed = manifest_of(export.directory)["placement"]
    assert placed[NAME] == placed["qnn_context_binary"]
    assert placed[NAME]["cpu"] == 0 < placed[NAME]["npu"]
    deploy = (export.directory / "DEPLOY.md").read_text()
    assert "## On the NPU, in one file: precompiled_qnn.onnx" in deploy
    for file in (FILE, WRAPPER):
        assert f'createSession("$filesDir/{file}", options)' in deploy


@needs_compiler
def test_both_forms_give_the_same_numbers(export: edgeport.pipeline.Export) -> None:
    ours, theirs = (export.artifact("run", name) for name in (NAME, "qnn_context_binary"))
    assert [one.provenance for one in ours.parity] == ["emulated", "emulated"]
    assert [one.value for one in ours.parity] == [one.value for one in theirs.parity]
    assert ours.parity[0].value > 30
    assert ours.parity[0].artifact_sha256 == ours.sha256 != theirs.sha256


@needs_compiler
def test_the_file_runs_alone(export: edgeport.pipeline.Export, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((export.directory / FILE).read_bytes())
    save_samples(tmp_path / "in.npz", [{"image": gaussian([1, 3, 16, 16], 9)}])
    (sample,) = run_compiled(NAME, tmp_path, tmp_path, tmp_path / "in.npz", S24, LIMITS)
    assert sample["output_0"].shape == (1, 4, 16, 16)
    assert np.ptp(sample["output_0"]) > 0.1


@needs_compiler
def test_at_a_place(export: edgeport.pipeline.Export) -> None:
    (run,) = run_at(export.directory, find_place("local"), [NAME], limits=LIMITS)
    assert run.artifact.parity == export.artifact("run", NAME).parity
    assert json.loads((export.directory / "manifest.json").read_text())["run"]["places"]


@needs_compiler
def test_alone_it_compiles_the_model(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "net.onnx")
    made = compile_for(NAME, path, tmp_path, S24, "float", LIMITS)
    assert made.facts["qairt_version"]
    assert {node.unit for node in made.nodes} == {"npu"}
    assert not (tmp_path / BINARY).exists()
    assert len(context_of(tmp_path / FILE)["ep_cache_context"].s) > 1000


def test_a_binary_that_an_onnx_file_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / BINARY).touch()
    os.truncate(tmp_path / BINARY, 2**31)  # sparse: it takes no space
    with pytest.raises(
        StageFailed, match=r"is 2\.0 GiB, and an ONNX file holds 2 GiB: use"
    ) as told:
        compile_for(NAME, tmp_path / BINARY, tmp_path, S24, "float", LIMITS)
    assert "\n" not in str(told.value)
    assert not (tmp_path / FILE).exists()
