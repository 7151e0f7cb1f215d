"""Writes a scene's frame as data: shaders, packed splats and program.json ("edgeport.webgpu/1").

Two programs draw one picture. "sort_free" adds weighted colours in any order and divides once;
"sorted" sorts the visible splats by depth on the GPU and lays them over each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from edgeport_recipes.wsr_splatting.pack import Packed, pack
from edgeport_recipes.wsr_splatting.splats import (
    LEAST_DENOMINATOR,
    NEAR,
    RULES,
    Blend,
    Splats,
)

from edgeport.errors import InputError

Target = Literal["rgba16float", "rgba32float"]
Scenes = Mapping[str, tuple[Splats, Blend]]

PROGRAMS = ("sort_free", "sorted")
_SHADERS = Path(__file__).with_name("shaders")
# WGSL has no include: each file of the export is these, one after the other.
_PARTS = {
    "sort_free": ("splat", "quad", "sort_free"),
    "project": ("splat", "quad", "record", "project"),
    "draw_records": ("splat", "quad", "record", "draw_records"),
    "sort": ("sort",),
    "normalise": ("normalise",),
}
_THREADS = 256  # of a workgroup
_MOST_GROUPS = 32768  # of a dispatch in one dimension, below WebGPU's least limit of 65,535
_DIGIT_BITS, _DIGITS = 8, 256
_RECORD_BYTES = 32
_OCTAVE_BITS = 4  # of a key: NEAR times 2^16 is as far as keys tell depths apart
_MANTISSA_BITS = 23
_MOST_WEIGHT = 256.0  # of the nearest splat in a half float, where an overdraw of 256 still fits


@dataclass(frozen=True)
class Settings:
    """How the two programs are made.

    `sums` is the format of the weighted sum. `projection` is where the sort-free program projects:
    in the vertex stage, four times a splat and with nothing written to memory, or in a compute
    pass before it. `key_bits` are 16, 24 or 32, of the depth in the sort; `rounds` are the keys a
    thread of the sort takes. `canvas` is the format that the sorted program blends into. `discard`
    leaves out the corners of the quads, which otherwise are blended with an opacity of 0.
    """

    sums: Target = "rgba16float"
    projection: Literal["vertex", "compute"] = "compute"
    key_bits: int = 16
    rounds: int = 8
    canvas: Literal["rgba16float", "rgba32float", "rgba8unorm"] = "rgba16float"
    discard: bool = False


def write_program(
    directory: Path,
    sets: Scenes,
    cameras: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    settings: Settings = Settings(),
) -> Path:
    """Returns the program.json written into `directory`, with shaders/ and scene/ beside it.

    `sets` has the splats of the programs "sort_free" and "sorted"; where both are the same object,
    one copy is written. `cameras` are `Camera.to_dict()`; `size` is the frame's width and height.
    Raises InputError for scenes that cannot be drawn, before anything is written.
    """
    _check(sets, size, settings)
    names = _set_names(sets)
    packed = {names[key]: pack(sets[key][0], f"the splats of {key}") for key in PROGRAMS}
    document = _document(sets, names, packed, cameras, size, settings)
    _write_files(directory, packed)
    path = directory / "program.json"
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def weight_scale(splats: Splats, blend: Blend, cameras: Sequence[Mapping[str, Any]]) -> float:
    """Returns the power of two by which all weights are multiplied; the image does not change.

    EXP's weights can be too small for half floats: its median splat gets a weight near 1, as far
    as the nearest possible one stays below 256. The other rules' weights are at most 1.
    """
    if blend.rule != "exp":
        return 1.0
    sigma, beta = float(blend.sigma), float(blend.beta)
    views = torch.tensor([one["view"] for one in cameras], dtype=torch.float64).view(-1, 4, 4)
    rows = views[:, 2, :] if len(views) else torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    points = splats.positions.detach().double()
    depths = points @ rows[:, :3].T.double() + rows[:, 3].double()
    typical = float(depths[depths > NEAR].median()) if bool((depths > NEAR).any()) else 1.0
    wanted = sigma * typical**beta / math.log(2)
    most = math.log2(_MOST_WEIGHT) + sigma * NEAR**beta / math.log(2)
    return float(2.0 ** math.floor(min(wanted, most, 100.0)))


def _check(sets: Scenes, size: tuple[int, int], settings: Settings) -> None:
    for key in PROGRAMS:
        if key not in sets:
            raise InputError(f"no scene for the program {key}: give {' and '.join(PROGRAMS)}.")
    if sets["sort_free"][1].rule == "sorted" or sets["sorted"][1].rule != "sorted":
        raise InputError("sort_free takes a scene of rule dir, exp or lc; sorted, of rule sorted.")
    if not (len(size) == 2 and all(type(side) is int and 0 < side <= 8192 for side in size)):
        raise InputError(f"a frame of {size}: give a width and a height of 1 to 8192 pixels.")
    if settings.key_bits not in (16, 24, 32):
        raise InputError(f"keys of {settings.key_bits} bits: give 16, 24 or 32.")


def _set_names(sets: Scenes) -> dict[str, str]:
    free, ordered = (sets[key] for key in PROGRAMS)
    if free[0] is ordered[0]:
        return dict.fromkeys(PROGRAMS, "scene")
    return {"sort_free": str(free[1].rule), "sorted": "sorted"}


def _write_files(directory: Path, packed: Mapping[str, Packed]) -> None:
    for folder in ("scene", "shaders"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for name, one in packed.items():
        (directory / f"scene/{name}_geometry.bin").write_bytes(one.geometry.astype("<f4").tobytes())
        (directory / f"scene/{name}_sh.bin").write_bytes(one.harmonics.astype("<f2").tobytes())
    for name, parts in _PARTS.items():
        code = [(_SHADERS / f"{part}.wgsl").read_text(encoding="utf-8") for part in parts]
        (directory / f"shaders/{name}.wgsl").write_text("\n".join(code), encoding="utf-8")


def _document(
    sets: Scenes,
    names: Mapping[str, str],
    packed: Mapping[str, Packed],
    cameras: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    settings: Settings,
) -> dict[str, Any]:
    buffers: dict[str, Any] = {
        "camera": {
            "uniform": ["frame", "view", "intrinsics"],
            "usage": ["uniform", "copy_dst"],
        }
    }
    for name in packed:
        for part in ("geometry", "sh"):
            file = f"scene/{name}_{part}.bin"
            buffers[f"{name}_{part}"] = {"file": file, "usage": ["storage", "copy_dst"]}
    scale = weight_scale(*sets["sort_free"], cameras)
    free = _Scene(names["sort_free"], packed[names["sort_free"]], sets["sort_free"][1], scale)
    ordered = _Scene(names["sorted"], packed[names["sorted"]], sets["sorted"][1], 1.0)
    return {
        "format": "edgeport.webgpu/1",
        "frame": list(size),
        "inputs": [
            {"name": "view", "dtype": "float32", "shape": [4, 4]},
            {"name": "intrinsics", "dtype": "float32", "shape": [4]},
        ],
        "outputs": [{"name": name, "shape": ["h", "w", 3]} for name in PROGRAMS],
        "programs": {
            "sort_free": {"passes": _sort_free(free, settings, buffers), "output": "image"},
            "sorted": {"passes": _sorted(ordered, settings, buffers), "output": "canvas"},
        },
        "buffers": buffers,
        "textures": {
            "sums": {"format": settings.sums, "size": "frame"},
            "image": {"format": settings.sums, "size": "frame"},
            "canvas": {"format": settings.canvas, "size": "frame"},
        },
        "facts": _facts(free, ordered, settings),
        "cameras": [dict(camera) for camera in cameras],
    }


@dataclass(frozen=True)
class _Scene:
    name: str
    packed: Packed
    blend: Blend
    scale: float

    def constants(self) -> dict[str, float]:
        """Returns what the shaders that project splats are told."""
        rule = RULES.index(self.blend.rule)
        weighing = {"SIGMA": float(self.blend.sigma), "BETA": float(self.blend.beta)}
        return {
            "SPLATS": self.packed.count,
            "HARMONICS": self.packed.harmonics.shape[1],
            "MOST_FACTOR": self.packed.most_factor,
            "RULE": rule,
            **(weighing if rule > 1 else {}),
            "WEIGHT_SCALE": self.scale,
        }

    def bindings(self) -> dict[str, str]:
        return {"0": "camera", "1": f"{self.name}_geometry", "2": f"{self.name}_sh"}


def _sort_free(scene: _Scene, settings: Settings, buffers: dict[str, Any]) -> list[dict[str, Any]]:
    add = {
        "label": "accumulate",
        "fragment": "add_weighted",
        "topology": "triangle-strip",
        "target": "sums",
        "blend": "add",
        "clear": [0, 0, 0, 0],
    }
    if settings.projection == "vertex":
        passes = [
            add
            | {
                "draw": "shaders/sort_free.wgsl",
                "vertex": "project_corner",
                "constants": scene.constants() | {"DISCARD": int(settings.discard)},
                "bindings": scene.bindings(),
                "vertices": 4,
                "instances": scene.packed.count,
            }
        ]
    else:
        drawn = _drawn_records("visible", "drawn", settings)
        passes = [*_project_visible(scene, buffers), add | drawn]
    return [*passes, _normalise(scene)]


def _project_visible(scene: _Scene, buffers: dict[str, Any]) -> list[dict[str, Any]]:
    count = scene.packed.count
    buffers["visible"] = {"bytes": _RECORD_BYTES * count, "usage": ["storage"]}
    buffers["drawn"] = {"bytes": 16, "usage": ["storage", "indirect"]}
    shader = {"compute": "shaders/project.wgsl"}
    return [
        shader
        | {
            "label": "clear count",
            "entry": "draw_nothing",
            "bindings": {"5": "drawn"},
            "workgroups": [1, 1, 1],
        },
        shader
        | {
            "label": "project",
            "entry": "project_visible",
            "constants": scene.constants(),
            "bindings": scene.bindings() | {"3": "visible", "5": "drawn"},
            "workgroups": _groups(-(-count // _THREADS)),
        },
    ]


def _drawn_records(
    records: str, arguments: str, settings: Settings, order: str | None = None
) -> dict[str, Any]:
    return {
        "draw": "shaders/draw_records.wgsl",
        "vertex": "sorted_corner" if order else "next_corner",
        "constants": {"DISCARD": int(settings.discard)},
        "bindings": {"0": "camera", "3": records, **({"4": order} if order else {})},
        "indirect": arguments,
    }


def _normalise(scene: _Scene) -> dict[str, Any]:
    colour = dict(zip(("BACKGROUND_R", "BACKGROUND_G", "BACKGROUND_B"), _background(scene.blend)))
    return {
        "label": "normalise",
        "draw": "shaders/normalise.wgsl",
        "vertex": "cover",
        "fragment": "normalise",
        "constants": {
            **colour,
            "BACKGROUND_WEIGHT": float(scene.blend.background_weight) * scene.scale,
            "LEAST_DENOMINATOR": LEAST_DENOMINATOR * scene.scale,
        },
        "bindings": {"0": "sums"},
        "topology": "triangle-list",
        "vertices": 3,
        "instances": 1,
        "target": "image",
        "blend": "none",
        "clear": [0, 0, 0, 1],
    }


def _sorted(scene: _Scene, settings: Settings, buffers: dict[str, Any]) -> list[dict[str, Any]]:
    count = scene.packed.count
    buffers["records"] = {"bytes": _RECORD_BYTES * count, "usage": ["storage"]}
    buffers["sorted_drawn"] = {"bytes": 16, "usage": ["storage", "indirect"]}
    for one in ("keys_a", "keys_b", "order_a", "order_b"):
        buffers[one] = {"bytes": 4 * count, "usage": ["storage"]}
    project = {
        "label": "project",
        "compute": "shaders/project.wgsl",
        "entry": "project_to_keys",
        "constants": scene.constants() | _key_constants(settings.key_bits),
        "bindings": scene.bindings() | {"3": "records", "4": "keys_a"},
        "workgroups": _groups(-(-count // _THREADS)),
    }
    digits = settings.key_bits // _DIGIT_BITS
    order = "order_b" if digits % 2 else "order_a"
    draw = {
        "label": "blend",
        "fragment": "lay_over",
        "topology": "triangle-strip",
        "target": "canvas",
        "blend": "over",
        "clear": [*_background(scene.blend), 1],
    }
    sort = _sort(count, digits, settings.rounds, buffers)
    return [project, *sort, draw | _drawn_records("records", "sorted_drawn", settings, order)]


def _key_constants(key_bits: int) -> dict[str, float]:
    """Returns how a depth's bits become a key: four bits of exponent, the rest of mantissa."""
    shift = max(0, _MANTISSA_BITS + _OCTAVE_BITS - key_bits)
    # The largest 32-bit number is the mark of what was culled.
    return {"KEY_SHIFT": shift, "KEY_LAST": min((1 << key_bits) - 1, 0xFFFFFFFE)}


def _sort(count: int, digits: int, rounds: int, buffers: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = -(-count // (_THREADS * rounds))
    buffers["counts"] = {"bytes": 4 * _DIGITS * blocks, "usage": ["storage"]}
    passes = []
    for digit in range(digits):
        here, there = ("a", "b") if digit % 2 == 0 else ("b", "a")
        first, last = int(digit == 0), int(digit == digits - 1)
        data = {"BLOCKS": blocks, "FIRST": first}
        move = {"SPLATS": count, "ROUNDS": rounds, "SHIFT": _DIGIT_BITS * digit, **data}
        keys = {"0": f"keys_{here}", "4": "counts", "5": "sorted_drawn"}
        moved = {"1": f"order_{here}", "2": f"keys_{there}", "3": f"order_{there}"}
        steps = (
            ("count_digits", move, keys, _groups(blocks)),
            ("scan_counts", data, {"4": "counts", "5": "sorted_drawn"}, [1, 1, 1]),
            ("move_keys", move | {"LAST": last}, keys | moved, _groups(blocks)),
        )
        passes += [
            {
                "label": f"sort {digit}: {entry}",
                "compute": "shaders/sort.wgsl",
                "entry": entry,
                "constants": constants,
                "bindings": bindings,
                "workgroups": groups,
            }
            for entry, constants, bindings, groups in steps
        ]
    return passes


def _groups(count: int) -> list[int]:
    rows = -(-count // _MOST_GROUPS)
    return [-(-count // rows), rows, 1]


def _background(blend: Blend) -> list[float]:
    return [float(value) for value in np.asarray(torch.as_tensor(blend.background))]


def _facts(free: _Scene, ordered: _Scene, settings: Settings) -> dict[str, Any]:
    return {
        "splats": {"sort_free": free.packed.count, "sorted": ordered.packed.count},
        "degree": {
            key: round(one.packed.harmonics.shape[1] ** 0.5) - 1
            for key, one in zip(PROGRAMS, (free, ordered))
        },
        "rule": free.blend.rule,
        "sigma": float(free.blend.sigma),
        "beta": float(free.blend.beta),
        "background": _background(free.blend),
        "background_weight": float(free.blend.background_weight),
        "weight_scale": free.scale,
        **asdict(settings),
    }
