"""What the tests on a GPU share: skips by name, and a folder with a small program of its own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeport.runtimes.webgpu_driver import has_driver


def need_gpu() -> None:
    """Skips the module that calls it where wgpu or a Vulkan driver is missing."""
    if importlib.util.find_spec("wgpu") is None:
        pytest.skip("needs wgpu: pip install wgpu", allow_module_level=True)
    if not has_driver():
        reason = "needs vulkan: apt-get install mesa-vulkan-drivers"
        pytest.skip(reason, allow_module_level=True)


def feed(intrinsics: tuple[float, ...] = (8.0, 8.0, 4.0, 3.0)) -> dict[str, np.ndarray]:
    return {"view": np.eye(4, dtype=np.float32), "intrinsics": np.array(intrinsics, np.float32)}


DOUBLE = """
struct Camera { frame: vec4f, view: mat4x4f, intrinsics: vec4f }
override FACTOR: f32 = 1.0;
@group(0) @binding(0) var<uniform> camera: Camera;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> made: array<f32>;
@compute @workgroup_size(4)
fn main(@builtin(global_invocation_id) id: vec3u) {
  made[id.x] = FACTOR * camera.intrinsics[id.x] * table[id.x];
}
"""
FILL = """
@group(0) @binding(0) var<storage, read> made: array<f32>;
@vertex fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
  return vec4f(vec2f(f32(i & 1u), f32(i >> 1u)) * 4.0 - 1.0, 0.0, 1.0);
}
@fragment fn colour(@builtin(position) place: vec4f) -> @location(0) vec4f {
  return vec4f(made[0], made[3], floor(place.x), 1.0);
}
"""


def small_program() -> dict[str, Any]:
    """Returns a program that doubles fx and cy in a compute pass and draws them twice, adding."""
    fill = {
        "label": "fill",
        "draw": "shaders/fill.wgsl",
        "vertex": "corner",
        "fragment": "colour",
        "bindings": {"0": "made"},
        "topology": "triangle-list",
        "vertices": 3,
        "target": "sums",
        "blend": "add",
    }
    double = {
        "label": "double",
        "compute": "shaders/double.wgsl",
        "entry": "main",
        "constants": {"FACTOR": 2},
        "bindings": {"0": "camera", "1": "table", "2": "made"},
        "workgroups": [1, 1, 1],
    }
    return {
        "format": "edgeport.webgpu/1",
        "frame": [7, 3],
        "inputs": [
            {"name": "view", "dtype": "float32", "shape": [4, 4]},
            {"name": "intrinsics", "dtype": "float32", "shape": [4]},
        ],
        "outputs": [{"name": "twice", "shape": ["h", "w", 3]}],
        "buffers": {
            "camera": {"uniform": ["frame", "view", "intrinsics"], "usage": ["uniform"]},
            "table": {"values": [1, 1, 1, 0.5]},
            "made": {"bytes": 16, "usage": ["storage"]},
            "arguments": {"file": "scene/arguments.bin", "usage": ["indirect"]},
        },
        "textures": {"sums": {"format": "rgba16float", "size": "frame"}},
        "programs": {
            "twice": {
                "passes": [
                    double,
                    fill | {"instances": 1, "clear": [0, 0, 0, 0]},
                    fill | {"label": "fill again", "indirect": "arguments"},
                ],
                "output": "sums",
            }
        },
    }


def write_small(directory: Path, program: dict[str, Any]) -> Path:
    """Writes the program and its files; returns the directory."""
    for folder in ("shaders", "scene"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    (directory / "shaders/double.wgsl").write_text(DOUBLE)
    (directory / "shaders/fill.wgsl").write_text(FILL)
    (directory / "scene/arguments.bin").write_bytes(np.array([3, 1, 0, 0], "<u4").tobytes())
    (directory / "program.json").write_text(json.dumps(program))
    return directory
