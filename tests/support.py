"""The command line, small ONNX graphs, a small factory and its export, for several tests."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeport
from edgeport.runtimes.samples import load_samples
from edgeport.runtimes.worker import Limits

if TYPE_CHECKING:
    from edgeport.pipeline import Export

Command = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(edgeport.__file__).parents[1]
INPUT = "image:float32[1,3,16,16]"
FACTORY = """from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
"""

OUT = ("-o", "out")
S24 = ("--device", "s24")
TINY = ("export", "tiny.py:build", "--input", INPUT)
ON_HOST = (*S24, "--target-runtime", "onnx")

LIMITS = Limits(seconds=240, memory_bytes=8 << 30)

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="needs qnn: pip install onnxruntime-qnn",
)
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs timm: pip install timm"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="needs transformers: pip install transformers",
)
needs_pillow = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="needs pillow: pip install pillow"
)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason='needs matplotlib: pip install "edgeport[report]"',
)
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs chromium: apt-get install chromium"
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


def shrink_net() -> onnx.ModelProto:
    """Returns a net with one operator that the NPU has not, and no pass replaces: Shrink."""
    nodes = [
        node("Relu", "x", "a"),
        node("Shrink", "a", "b"),
        node("Relu", "b", "y"),
    ]
    return model(nodes, {"x": [1, 2, 3, 8]}, {"y": [1, 2, 3, 8]})


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


def called(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process; returns its exit code, stdout and stderr."""
    from edgeport.cli import main

    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    out, err = capfd.readouterr()
    return int(str(ended.value.code)), out, err


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True)


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def check_refusal(code: int, out: str, err: str, words: str, expected: int = 2) -> None:
    assert code == expected, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err
    assert "internal error" not in err
    assert re.search(words, err), err


def manifest_of(folder: Path) -> dict:
    """Returns the manifest after checking that every file is the one it names, and none is more."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert found == set(manifest["files"])
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    return manifest


def tiny(folder: Path, source: str = "net.py:build", **options: Any) -> Export:
    """Exports for the host; returns what was made."""
    request = {"device": "s24", "target_runtimes": ("onnx",), "inputs": (INPUT,), **options}
    return edgeport.export(f"{folder}/{source}", output_dir=folder / "out", **request)


def reference(folder: Path) -> np.ndarray:
    (sample,) = load_samples(folder / "out" / "parity_outputs.npz")
    return next(iter(sample.values()))
