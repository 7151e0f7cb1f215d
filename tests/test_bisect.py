"""Bisect: every seeded fault is named, in two nets; untouched exports name none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from faults import (
    NETS,
    Change,
    dropped,
    faulty,
    mis_scaled,
    overflowing,
    perturbed,
    perturbed_input,
    zeroed_norm,
)
from onnx import helper
from support import LIMITS, called, check_refusal, gaussian, model, needs_compiler
from support import node as operator

import edgeport
from edgeport.bisect import Bisected, bisect
from edgeport.compare import sqnr_db
from edgeport.errors import InputError, OutputRefused, UnknownName
from edgeport.origins import source_line
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples

pytestmark = pytest.mark.xdist_group("bisect")  # its exports are made once

INPUTS = {"Residual": "image:float32[1,3,12,12]", "Attention": "tokens:float32[1,16,16]"}
PRECISIONS = {"Residual": "w8a8", "Attention": "w8a16"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both nets, quantized, for this machine."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS)
    made = {}
    for name, spec in INPUTS.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "Residual":  # passes take a while, and have nothing to do here
                patch.setattr("edgeport.stages.passes_for", lambda target: ())
            made[name] = edgeport.export(
                f"{folder}/nets.py:{name}",
                inputs=(spec,),
                device="s24",
                precision=PRECISIONS[name],
                calib_samples=4,
                target_runtimes=("onnx",),
                output_dir=folder / name,
            ).directory
    return made


def found(directory: Path, stage: str | None = None) -> Bisected:
    return bisect(directory, stage=stage, limits=LIMITS)


FAULTS = [
    ("Residual", "optimized.onnx", "passes", perturbed("Conv", 3, "Add", 0.01)),
    ("Residual", "optimized.onnx", "passes", perturbed("LeakyRelu", 0, "Mul", 1.02)),
    ("Residual", "optimized.onnx", "passes", perturbed_input("Conv", 5)),
    ("Attention", "optimized.onnx", "passes", perturbed("Softmax", 3, "Add", 0.001)),
    ("Attention", "optimized.onnx", "passes", perturbed("Gelu", 0, "Mul", 0.99)),
    ("Residual", "quantized.onnx", "quantize", mis_scaled("Conv", 0)),
    ("Residual", "quantized.onnx", "quantize", mis_scaled("Conv", 6)),
    ("Attention", "quantized.onnx", "quantize", mis_scaled("Gemm", 0)),
    ("Attention", "optimized.onnx", "passes", zeroed_norm(0)),
    ("Attention", "optimized.onnx", "passes", zeroed_norm(3)),
    ("Residual", "model.onnx", "capture", dropped("LeakyRelu", 2, "alpha")),
    ("Residual", "model.onnx", "capture", dropped("Conv", 3, "dilations")),
    ("Attention", "model.onnx", "capture", dropped("Softmax", 1, "axis")),
]


@pytest.mark.parametrize("name", INPUTS)
def test_an_untouched_export_names_nothing(exports: dict[str, Path], name: str) -> None:
    result = found(exports[name])
    assert result.found is None
    assert [stage for stage, _, _ in result.checked] == ["capture", "passes", "quantize", "onnx"]
    assert all(value >= limit for _, value, limit in result.checked)
    assert not exports[name].with_name(f"{name}.bisect").exists()


@pytest.mark.parametrize(("net", "file", "stage", "change"), FAULTS)
def test_a_seeded_fault_is_named(
    exports: dict[str, Path], tmp_path: Path, net: str, file: str, stage: str, change: Change
) -> None:
    directory, node = faulty(exports[net], tmp_path, file, change)
    result = found(directory)
    assert result.found is not None
    assert (result.found.stage, result.found.node) == (stage, node)
    assert result.found.verdict == "culprit"
    assert result.found.local_db < result.found.limit_db <= result.found.before_db
    assert f"{file} was changed" in " ".join(result.notes)


def test_what_is_written_reproduces_it(exports: dict[str, Path], tmp_path: Path) -> None:
    change = mis_scaled("Conv", 3)
    directory, node = faulty(exports["Residual"], tmp_path, "quantized.onnx", change)
    result = found(directory)
    assert result.found is not None
    written = directory.with_name("faulty.bisect")
    assert result.written == str(written)
    report = json.loads((written / "bisect.json").read_text())
    assert report == {"export": "faulty", **json.loads(json.dumps(result.found.to_dict()))}
    repro = onnx.load(written / "repro.onnx")
    onnx.checker.check_model(repro, full_check=True)
    operators = [one.op_type for one in repro.graph.node]
    assert operators.count("Conv") == 1
    assert {"QuantizeLinear", "DequantizeLinear"} < set(operators)
    assert node in [one.name for one in repro.graph.node]
    (feed,) = load_samples(written / "repro_inputs.npz")
    (expected,) = load_samples(written / "repro_outputs.npz")
    ((name, reference),) = expected.items()
    session = Session(written / "repro.onnx", optimize=False)
    assert session.output_names() == (name,)
    (answer,) = session.run(feed)
    assert sqnr_db(reference, answer) == pytest.approx(result.found.local_db)
    found(directory)  # and it may be replaced by another
    with pytest.raises(InputError, match="has schema None"):
        found(written)


def test_where_the_layer_comes_from(exports: dict[str, Path], tmp_path: Path) -> None:
    """In model.onnx, after passes that dropped what stood beside the node, and quantized."""
    lines = [number for number, line in enumerate(NETS.splitlines(), 1) if "self.mlp(" in line]
    for file, near, change in (
        ("optimized.onnx", "", perturbed("Gelu", 1, "Mul", 0.99)),
        ("quantized.onnx", "linear_9", mis_scaled("Gemm", 3)),  # a pass made it of MatMul and Add
    ):
        directory, _ = faulty(exports["Attention"], tmp_path / file, file, change)
        result = found(directory)
        assert result.found is not None
        assert result.found.origin is not None
        assert re.fullmatch(r"layers\.1\.mlp\.[12]", result.found.origin.module)
        assert result.found.origin.source == f"nets.py:{lines[0]}"
        assert result.found.near == near


def test_no_path_of_this_machine_is_in_an_export(exports: dict[str, Path]) -> None:
    for directory in exports.values():
        for file in directory.glob("*.onnx"):
            assert str(directory.parent).encode() not in file.read_bytes(), file
            assert b"site-packages" not in file.read_bytes(), file


def test_source_line_is_that_of_the_models_own_code(tmp_path: Path) -> None:
    package = tmp_path / "nets" / "layers"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    torch_file = "/env/lib/python3.11/site-packages/torch/nn/modules/conv.py"
    frames = [f"{tmp_path}/train.py", f"{package}/block.py", torch_file]
    trace = "\n".join(f'File "{file}", line {n}, in forward' for n, file in enumerate(frames, 7))
    assert source_line(trace) == "nets/layers/block.py:8"
    assert source_line(trace.splitlines()[0]) == "train.py:7"
    assert source_line(f'File "{torch_file}", line 1') == ""


# Whose values


def test_a_source_that_is_another_now_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    directory, _ = faulty(
        exports["Residual"], tmp_path, "model.onnx", dropped("LeakyRelu", 0, "alpha")
    )
    nets = exports["Residual"].parent / "nets.py"
    nets.write_text(NETS.replace("LeakyReLU(0.3)", "LeakyReLU(0.4)"))
    try:
        with pytest.raises(InputError, match="gives other answers than when it was exported"):
            found(directory)
        nets.unlink()
        with pytest.raises(InputError, match=r"no such file; start where the export was started"):
            found(directory, "capture")
    finally:
        nets.write_text(NETS)


def test_weights_that_are_not_given_are_asked_for(exports: dict[str, Path], tmp_path: Path) -> None:
    directory, _ = faulty(
        exports["Residual"], tmp_path, "model.onnx", dropped("LeakyRelu", 0, "alpha")
    )
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["source"]["weights"] = "trained.safetensors"
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"--weights trained\.safetensors: add --weights"):
        found(directory)


@needs_compiler
def test_fp16_that_overflows_on_the_npu_is_named(tmp_path: Path, quick: None) -> None:
    onnx.save(overflowing(), tmp_path / "net.onnx")
    made = edgeport.export(
        str(tmp_path / "net.onnx"), device="s24", output_dir=tmp_path / "out"
    ).directory
    result = found(made)
    assert [name for name, _, _ in result.checked][-1] == "qnn_context_binary"
    assert result.found is not None
    assert (result.found.operator, result.found.node) == ("Conv", "n_c3")
    assert (result.found.verdict, result.found.provenance) == ("culprit", "emulated")
    assert result.found.computed == "fp16"
    assert (
        result.found.peak
        > 65504
        > np.abs(load_samples(made / "parity_outputs.npz")[0]["output_0"]).max()
    )
    assert result.found.runs <= 10
    # An ONNX file is its own reference, also where what was captured of it is wrong.
    model_file, node = faulty(made, tmp_path, "model.onnx", perturbed("Relu", 0, "Add", 0.01))
    result = found(model_file)
    assert result.found is not None
    assert (result.found.stage, result.found.node) == ("capture", node)


def test_the_output_that_is_wrong_is_followed(tmp_path: Path, quick: None) -> None:
    """Of three, an index and a head that share their beginning with the one that is wrong."""
    weights = {name: gaussian([4, 4], seed) for seed, name in enumerate(("a", "b", "c"))}
    nodes = [
        operator("MatMul", "x a", "shared"),
        operator("Tanh", "shared", "t"),
        operator("MatMul", "t b", "one"),
        operator("ArgMax", "one", "index", axis=-1, keepdims=0),
        operator("MatMul", "t c", "m"),
        operator("Sigmoid", "m", "two"),
    ]
    proto = model(nodes, {"x": [2, 4]}, {"one": [2, 4], "two": [2, 4]}, weights)
    proto.graph.output.append(helper.make_tensor_value_info("index", onnx.TensorProto.INT64, [2]))
    onnx.save(proto, tmp_path / "net.onnx")
    made = edgeport.export(
        str(tmp_path / "net.onnx"),
        device="s24",
        target_runtimes=("onnx",),
        output_dir=tmp_path / "out",
    ).directory
    assert found(made).found is None
    directory, node = faulty(made, tmp_path, "optimized.onnx", perturbed("MatMul", 2, "Add", 0.1))
    result = found(directory)
    assert result.found is not None
    assert (result.found.output, result.found.node) == ("two", node)


# The command


def test_stages_that_are_not_there(exports: dict[str, Path]) -> None:
    with pytest.raises(UnknownName, match=r"unknown stage 'quantise'\. Did you mean 'quantize'"):
        found(exports["Residual"], "quantise")
    with pytest.raises(InputError, match="has no stage passes-gpu; it has capture, passes, quant"):
        found(exports["Residual"], "passes-gpu")
    with pytest.raises(InputError, match="--min-sqnr nan: give a number of dB"):
        bisect(exports["Residual"], min_sqnr=float("nan"), limits=LIMITS)
    foreign = exports["Residual"].parent
    with pytest.raises(OutputRefused, match="was not written by edgeport"):
        bisect(exports["Residual"], output_dir=foreign, limits=LIMITS)


def test_the_command(
    exports: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory, _ = faulty(
        exports["Residual"], tmp_path, "optimized.onnx", perturbed("Conv", 3, "Add", 0.01)
    )
    code, out, err = called(capfd, "bisect", directory, "-o", tmp_path / "part")
    assert code == 1, err
    assert "note: optimized.onnx was changed since it was exported" in out
    assert re.search(r"operator +Add injected", out)
    assert re.search(r"module +blocks\.1\.conv \(Conv2d\), nets\.py:", out)
    assert (tmp_path / "part" / "repro.onnx").is_file()
    code, out, _ = called(capfd, "bisect", exports["Residual"], "--stage", "passes")
    assert (code, out.splitlines()[-1]) == (0, "nothing parts; the lowest SQNR is exact, at passes")
    code, out, _ = called(capfd, "bisect", exports["Residual"], "--stage", "quantize", "--json")
    assert (code, json.loads(out)["found"]) == (0, None)
    check_refusal(*called(capfd, "bisect", tmp_path), "is no export: manifest.json")
