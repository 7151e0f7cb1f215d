"""Bisect: every seeded fault is named, in two nets; untouched exports name none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import LIMITS, called, check_refusal, gaussian, model, needs_compiler
from support import node as operator

import edgeport
from edgeport.bisect import Bisected, bisect
from edgeport.compare import sqnr_db
from edgeport.errors import InputError, UnknownName
from edgeport.origins import source_line
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.act = nn.LeakyReLU(0.3)
        self.point = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.point(self.act(self.conv(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(4)])
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = self.q(y).softmax(-1), self.k(y).softmax(-2), self.v(y)
        x = x + q @ (k.transpose(-1, -2) @ v)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Layer(16), Layer(16))
        self.head = nn.Linear(16, 5)

    def forward(self, tokens):
        return self.head(self.layers(tokens).mean(1))
"""
INPUTS = {"Residual": "image:float32[1,3,12,12]", "Attention": "tokens:float32[1,16,16]"}
PRECISIONS = {"Residual": "w8a8", "Attention": "w8a16"}
Change = Callable[[onnx.GraphProto], str]
"""Seeds a fault in a graph; returns the name of the node that has it."""


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


def faulty(export: Path, folder: Path, file: str, change: Change) -> tuple[Path, str]:
    """Returns a copy of the export with a fault in one of its files, and the node that has it."""
    copy = Path(shutil.copytree(export, folder / "faulty"))
    model = onnx.load(copy / file)
    node = change(model.graph)
    onnx.save(model, copy / file)
    return copy, node


def found(directory: Path, stage: str | None = None) -> Bisected:
    return bisect(directory, stage=stage, limits=LIMITS)


def nth(graph: onnx.GraphProto, operator: str, index: int) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][index]


def scaled(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, factor: float) -> None:
    """Gives a node a scaled copy of a weight, which others may share."""
    tensor = next(one for one in graph.initializer if one.name == node.input[index])
    node.input[index] = f"{tensor.name}_scaled"
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    graph.initializer.append(numpy_helper.from_array(values, node.input[index]))


def perturbed(operator: str, index: int, op: str, value: float) -> Change:
    """Puts `op` with a constant behind an operator."""

    def change(graph: onnx.GraphProto) -> str:
        node = nth(graph, operator, index)
        place = list(graph.node).index(node)
        tensor, node.output[0] = node.output[0], f"{node.output[0]}_right"
        graph.initializer.append(numpy_helper.from_array(np.float32(value), "off"))
        new = helper.make_node(op, [node.output[0], "off"], [tensor], "injected")
        graph.node.insert(place + 1, new)
        return "injected"

    return change


def perturbed_input(operator: str, index: int) -> Change:
    """Puts a Mul in front of an operator: its tensor is one that the reference has not."""

    def change(graph: onnx.GraphProto) -> str:
        node = nth(graph, operator, index)
        place = list(graph.node).index(node)
        graph.initializer.append(numpy_helper.from_array(np.float32(1.01), "off"))
        new = helper.make_node("Mul", [node.input[0], "off"], ["before_it"], "injected")
        node.input[0] = "before_it"
        graph.node.insert(place, new)
        return "injected"

    return change


def mis_scaled(operator: str, index: int) -> Change:
    """Makes the scale of an int8 layer's weights half as large again."""

    def change(graph: onnx.GraphProto) -> str:
        node = nth(graph, operator, index)
        scaled(graph, next(one for one in graph.node if node.input[1] in one.output), 1, 1.5)
        return str(node.name)

    return change


def zeroed_norm(index: int) -> Change:
    def change(graph: onnx.GraphProto) -> str:
        node = nth(graph, "LayerNormalization", index)
        for place in (1, 2):
            scaled(graph, node, place, 0.0)
        return str(node.name)

    return change


def dropped(operator: str, index: int, attribute: str) -> Change:
    """Removes an attribute; a Conv without its dilation gets the padding that fits."""

    def change(graph: onnx.GraphProto) -> str:
        node = nth(graph, operator, index)
        kept = [one for one in node.attribute if one.name != attribute]
        assert len(kept) == len(node.attribute) - 1
        del node.attribute[:]
        node.attribute.extend(kept)
        for one in node.attribute:
            if attribute == "dilations" and one.name == "pads":
                one.ints[:] = [1, 1, 1, 1]
        return str(node.name)

    return change


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


def overflowing() -> onnx.ModelProto:
    """Returns a net in which one Conv gives some 5e5 and the next one makes them small again."""
    weights = {
        "w1": gaussian([8, 3, 3, 3], 1, 0.3),
        "w2": gaussian([8, 8, 1, 1], 2, 0.3),
        "w3": gaussian([8, 8, 3, 3], 3, 2e4),
        "w4": gaussian([8, 8, 1, 1], 4, 1e-5),
        "w5": gaussian([4, 8, 1, 1], 5, 0.3),
    }
    nodes = [
        operator("Conv", "image w1", "c1", pads=[1] * 4),
        operator("Relu", "c1", "r1"),
        operator("Conv", "r1 w2", "c2"),
        operator("Add", "c2 r1", "a1"),
        operator("Conv", "a1 w3", "c3", pads=[1] * 4),
        operator("Relu", "c3", "r3"),
        operator("Conv", "r3 w4", "c4"),
        operator("Add", "a1 c4", "a2"),
        operator("Relu", "a2", "r5"),
        operator("Conv", "r5 w5", "y"),
    ]
    return model(nodes, {"image": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, weights)


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


# The command


def test_stages_that_are_not_there(exports: dict[str, Path]) -> None:
    with pytest.raises(UnknownName, match=r"unknown stage 'quantise'\. Did you mean 'quantize'"):
        found(exports["Residual"], "quantise")
    with pytest.raises(InputError, match="has no stage passes-gpu; it has capture, passes, quant"):
        found(exports["Residual"], "passes-gpu")


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
