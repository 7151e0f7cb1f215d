"""Bisect: every seeded fault is named, in two nets; untouched exports name none."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import LIMITS, needs_compiler

import edgeport
from edgeport.bisect import Bisected, bisect
from edgeport.errors import InputError, UnknownName
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
        result = edgeport.export(
            f"{folder}/nets.py:{name}",
            inputs=(spec,),
            device="s24",
            precision=PRECISIONS[name],
            calib_samples=4,
            target_runtimes=("onnx",),
            output_dir=folder / name,
        )
        made[name] = result.directory
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
