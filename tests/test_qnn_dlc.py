"""The runtime qnn_dlc: the file is stable, and the emulator gives the model's numbers from it."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import LIMITS, conv_net, gaussian, model, needs_compiler, node, save, shrink_net

import edgeport
from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import StageFailed
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes.lowering import Compiled, compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.qnn_dlc import FILE, NAME
from edgeport.runtimes.samples import save_samples

S24 = find_device("s24")
FEED = {"image": gaussian([1, 3, 16, 16], 100)}


def made(
    folder: Path, proto: onnx.ModelProto, precision: str = "float", feeds=(), device=S24
) -> Compiled:
    folder.mkdir(exist_ok=True)
    path = save(proto, folder / "net.onnx")
    if precision != "float":
        path = folder / "quantized.onnx"
        quantize_file(folder / "net.onnx", path, CONFIGS[precision], iter(feeds))
    return compile_for(NAME, path, folder, device, precision, LIMITS)


def run(folder: Path, feed, device=S24) -> list[np.ndarray]:
    save_samples(folder / "in.npz", [feed])
    (sample,) = run_compiled(NAME, folder, folder, folder / "in.npz", device, LIMITS)
    return list(sample.values())


@needs_compiler
@pytest.mark.parametrize(("precision", "least_db"), [("float", 55), ("w8a8", 30), ("w8a16", 35)])
def test_the_emulator_gives_the_models_numbers(
    tmp_path: Path, precision: str, least_db: float
) -> None:
    feeds = [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(8)]
    compiled = made(tmp_path, conv_net(), precision, feeds)
    assert {one.unit for one in compiled.nodes} == {"npu"}
    assert [one.op for one in compiled.nodes].count("Conv") == 2
    (actual,) = run(tmp_path, FEED)
    (expected,) = Session(conv_net().SerializeToString()).run(FEED)
    # Above 120 dB it would have been computed in float32, and not by the NPU's arithmetic.
    assert least_db < sqnr_db(expected, actual) < 120


@needs_compiler
def test_another_chip_rounds_in_its_own_way(tmp_path: Path) -> None:
    """The file names no chip: what is compiled when it is loaded does."""
    made(tmp_path, conv_net(), "w8a8", [FEED])
    answers = [run(tmp_path, FEED, find_device(name))[0] for name in ("rb3-gen2", "s24")]
    assert sqnr_db(answers[0], answers[1]) > 30
    assert not np.array_equal(answers[0], answers[1])


@needs_compiler
def test_the_same_bytes_a_second_later(tmp_path: Path) -> None:
    first = made(tmp_path / "a", conv_net())
    time.sleep(1.1)  # its metadata has the time in seconds
    made(tmp_path / "b", conv_net())
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    with zipfile.ZipFile(tmp_path / "a" / FILE) as archive:
        assert {"model", "model.params", "model.params.bin"} <= set(archive.namelist())
    assert first.facts["qairt_version"].count(".") == 3


def two_ends() -> onnx.ModelProto:
    """Returns a net with names that are no identifiers, given in neither the order of their use."""
    nodes = [
        node("Mul", "in.2 scale", "a"),
        node("Relu", "in.2", "out/2"),
        node("Sub", "in:1 a", "out.1"),
    ]
    ends = {"in:1": [1, 4, 8, 8], "in.2": [1, 4, 8, 8]}
    weights = {"scale": np.array(0.5, np.float32)}
    outputs = {"out.1": [1, 4, 8, 8], "out/2": [1, 4, 8, 8]}
    return model(nodes, ends, outputs, weights)


@needs_compiler
def test_inputs_and_outputs_keep_their_names_and_order(tmp_path: Path) -> None:
    made(tmp_path, two_ends())
    feed = {"in:1": gaussian([1, 4, 8, 8], 1), "in.2": gaussian([1, 4, 8, 8], 2, 3.0)}
    actual = run(tmp_path, feed)
    expected = Session(two_ends().SerializeToString()).run(feed)
    assert [sqnr_db(*pair) > 50 for pair in zip(expected, actual, strict=True)] == [True, True]


@needs_compiler
def test_what_the_npu_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"1 of 3 ops would run on the CPU.*1 Shrink"):
        made(tmp_path, shrink_net())
    assert not list(tmp_path.glob("*.dlc"))


@needs_compiler
def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    made(tmp_path, conv_net())
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(StageFailed, match="systemDlcCreateFromFile failed with error") as told:
        run(tmp_path, FEED)
    assert "\n" not in str(told.value)


@needs_compiler
def test_an_export_whose_ends_are_integers(tmp_path: Path) -> None:
    export = edgeport.export(
        str(save(conv_net(), tmp_path / "net.onnx")),
        device="s24",
        precision="w8a8",
        quantize_io=True,
        calib_samples=4,
        target_runtimes=(NAME,),
        output_dir=tmp_path / "out",
    )
    run = export.artifact("run", NAME)
    assert run.path == FILE and run.parity[0].provenance == "emulated"
    assert run.parity[0].value > 30
    assert export.manifest["placement"][NAME]["cpu"] == 0
    deploy = (tmp_path / "out" / "DEPLOY.md").read_text()
    assert "## On the NPU, compiled when it is loaded: model.dlc" in deploy
    assert "soc_model 57 (Hexagon v75)" in deploy
