"""The command line, small ONNX graphs and a small factory that several tests share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeport
from edgeport.runtimes.worker import Limits

Command = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(edgeport.__file__).parents[1]
INPUT = "image:float32[1,3,16,16]"
FACTORY = """from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
"""

LIMITS = Limits(seconds=240, memory_bytes=8 << 30)

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="needs qnn: pip install onnxruntime-qnn",
)
needs_pillow = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="needs pillow: pip install pillow"
)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int]],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 21,
    dtype: int = TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    """Returns a model with float inputs and outputs of these shapes."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *more.pop("opset_imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **more)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Returns a node; tensor names are separated by spaces."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"n_{outputs}", **attributes)


def conv_net(opset: int = 21) -> onnx.ModelProto:
    """Returns convolution, LayerNorm-free, 3 -> 8 -> 4 channels on a 1 x 3 x 16 x 16 image."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.2,
        "b1": rng.standard_normal(8).astype(np.float32) * 0.1,
        "w2": rng.standard_normal((4, 8, 1, 1)).astype(np.float32) * 0.3,
    }
    nodes = [
        node("Conv", "image w1 b1", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "y"),
    ]
    return model(nodes, {"image": [1, 3, 16, 16]}, {"y": [1, 4, 16, 16]}, weights, opset)


def einsum_net() -> onnx.ModelProto:
    """Returns a net with one operator that the NPU has not: rank-5 Einsum."""
    weights = {"t": np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)}
    nodes = [
        node("Relu", "x", "a"),
        node("Einsum", "a t", "b", equation="byhwc,wkc->byhwk"),
        node("Relu", "b", "y"),
    ]
    return model(nodes, {"x": [1, 2, 3, 4, 8]}, {"y": [1, 2, 3, 4, 6]}, weights)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def gaussian(shape: Sequence[int], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgeport", *map(str, arguments)]


def command_environment(**more: str) -> dict[str, str]:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}
