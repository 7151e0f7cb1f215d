"""Two small nets, and faults to seed into what was exported of them, for the tests of bisect."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support import gaussian, model
from support import node as operator

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

Change = Callable[[onnx.GraphProto], str]
"""Seeds a fault in a graph; returns the name of the node that has it."""


def faulty(export: Path, folder: Path, file: str, change: Change) -> tuple[Path, str]:
    """Returns a copy of the export with a fault in one of its files, and the node that has it."""
    copy = Path(shutil.copytree(export, folder / "faulty"))
    model = onnx.load(copy / file)
    node = change(model.graph)
    onnx.save(model, copy / file)
    return copy, node


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
