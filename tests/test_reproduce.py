"""`edgeport reproduce`: the same bytes again, or the file that differs and its stage."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import command, command_environment, conv_net, needs_compiler

from edgeport.errors import InputError
from edgeport.footprint import shortened
from edgeport.reproduce import reproduce

NET = """import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
"""


def edgeport_command(folder: Path, hash_seed: int, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the command in `folder` with this seed for the order of sets, and no cache."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=command_environment(PYTHONHASHSEED=str(hash_seed), EDGEPORT_CACHE_DIR="off"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net from a file, w8a8 for the Galaxy S24."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "net.py").write_text(NET)
    done = edgeport_command(
        folder, 1, "export", "net.py:Net", "--input", "x:float32[1,3,16,16]", "--device", "s24",
        "--precision", "w8a8", "--calib-samples", "4", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def change_manifest(out: Path, path: list[str], value: Any) -> Any:
    """Sets an entry of the manifest; returns what it was."""
    manifest = json.loads((out / "manifest.json").read_text())
    table = manifest
    for key in path[:-1]:
        table = table[key]
    before, table[path[-1]] = table[path[-1]], value
    (out / "manifest.json").write_text(json.dumps(manifest))
    return before


@needs_compiler
def test_the_same_bytes_whatever_the_hash_seed(export: Path) -> None:
    done = edgeport_command(export, 2, "reproduce", "out", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["same"] and not found["causes"] and not found["fields"]
    files = {one["file"]: one["stage"] for one in found["files"]}
    assert set(files) == {p.name for p in (export / "out").iterdir()} - {"manifest.json"}
    assert files["model.bin"] == files["model_ctx.onnx"] == "lower qnn_context_binary"
    assert files["quantized.onnx"] == "quantize"


@needs_compiler
def test_a_vendor_file_that_differs_is_named(export: Path) -> None:
    """As if another version of the compiler had written it."""
    out = export / "out"
    was = change_manifest(out, ["files", "model.bin", "sha256"], "0" * 64)
    version = change_manifest(out, ["tools", "onnxruntime-qnn"], "2.6.0")
    done = edgeport_command(export, 1, "reproduce", "out")
    change_manifest(out, ["files", "model.bin", "sha256"], was)
    change_manifest(out, ["tools", "onnxruntime-qnn"], version)
    assert done.returncode == 1, done.stderr
    differing = [line.split() for line in done.stdout.splitlines() if line.startswith("DIFFERS")]
    assert [line[1:4] for line in differing] == [["lower", "qnn_context_binary", "model.bin"]]
    assert f"cause: onnxruntime-qnn was 2.6.0, here it is {version}" in done.stdout
    assert "files differ since the stage lower qnn_context_binary" in done.stdout


@needs_compiler
def test_another_source_differs_from_the_capture_on(export: Path) -> None:
    (export / "net.py").write_text(NET.replace("nn.ReLU()", "nn.Sigmoid()"))
    deploy = export / "out" / "DEPLOY.md"
    before = deploy.read_text()
    deploy.write_text(before + "a note of one's own\n")
    done = edgeport_command(export, 1, "reproduce", "out", "--json")
    (export / "net.py").write_text(NET)
    deploy.write_text(before)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["same"], found["since"]) == (False, "capture")
    assert found["causes"] == ["net.py was changed"]
    assert [one["file"] for one in found["files"] if one["edited"]] == ["DEPLOY.md"]
    differing = {one["file"] for one in found["files"] if not one["same"]}
    assert differing > {"model.onnx", "parity_outputs.npz", "quantized.onnx", "model.bin"}
    assert "parity_inputs.npz" not in differing


def test_a_source_that_is_gone_and_a_folder_that_is_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "net.onnx")
    done = edgeport_command(tmp_path, 0, "export", "net.onnx", "--device", "pixel-6", "-o", "out")
    assert done.returncode == 0, done.stderr
    Path("net.onnx").rename("moved.onnx")
    with pytest.raises(InputError, match=r"net\.onnx"):
        reproduce(Path("out"))
    moved = reproduce(Path("out"), overrides={"source": "moved.onnx"})
    assert [one.file for one in moved.files if not one.same] == ["DEPLOY.md"]  # its name is there
    with pytest.raises(InputError, match="is no export"):
        reproduce(tmp_path)


def test_files_are_told_apart_by_the_shortest_ends_of_their_paths() -> None:
    assert shortened({}) == {}
    assert shortened({"/a/x.py": "1"}) == {"x.py": "1"}
    assert shortened({"/a/x.py": "1", "/b/x.py": "2"}) == {"a/x.py": "1", "b/x.py": "2"}
