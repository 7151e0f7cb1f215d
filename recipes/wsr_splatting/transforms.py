"""Camera files of instant-ngp, nerfstudio and the NeRF sets: transforms.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from edgeport_recipes._shared.files import read_json, write_json
from edgeport_recipes.wsr_splatting.photos import Lens, open_photo, save_photo
from edgeport_recipes.wsr_splatting.scenes import Scene, Shot
from torch import Tensor

from edgeport.errors import InputError

_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


def read(folder: Path, name: str | None = None) -> list[Shot]:
    """Returns the shots that a transforms*.json in `folder` names; `name` chooses among several.

    Without it the one is taken whose w, h are the images' own. Raises InputError.
    """
    found = [folder / name] if name else sorted(folder.glob("transforms*.json"))
    if not found:
        raise InputError(f"{folder}: no transforms.json and no COLMAP model; give a posed scene.")
    read = [(path, _shots(path)) for path in found]
    if len(read) == 1:
        return read[0][1]
    fitting = [(path, shots) for path, shots in read if _fits(shots)]
    if len(fitting) != 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder}: {len(fitting)} of {names} fit the images; name one with --cameras."
        )
    return fitting[0][1]


def _fits(shots: list[Shot]) -> bool:
    """Says whether the first shot is there and as large as the camera file says."""
    if not shots or not shots[0].path.is_file():
        return False
    return shots[0].size in (None, _size_of(shots[0].path))


def _shots(path: Path) -> list[Shot]:
    data = read_json(path)
    model = str(data.get("camera_model", "OPENCV"))
    if model not in _MODELS:
        raise InputError(f"{path}: camera_model {model}; only {', '.join(_MODELS)} are undone.")
    try:
        return [_shot({**data, **frame}, path.parent) for frame in data["frames"]]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: no camera file as instant-ngp's ({error!r}).") from error


def _shot(facts: dict[str, Any], folder: Path) -> Shot:
    path = _photo(folder, str(facts["file_path"]))
    size = (int(facts["w"]), int(facts["h"])) if "w" in facts and "h" in facts else None
    pose = torch.tensor(facts["transform_matrix"], dtype=torch.float64)
    return Shot(path, _view(pose), _lens(facts, path, size), size)


def _photo(folder: Path, name: str) -> Path:
    """Returns the file; the NeRF sets leave its suffix out."""
    for suffix in _SUFFIXES:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    return folder / name


def _lens(facts: dict[str, Any], path: Path, size: tuple[int, int] | None) -> Lens:
    width, height = size or _size_of(path)
    if "fl_x" in facts:
        fx = float(facts["fl_x"])
    else:
        fx = width / 2 / math.tan(float(facts["camera_angle_x"]) / 2)
    terms = {name: float(facts.get(name, 0)) for name in ("k1", "k2", "k3", "p1", "p2")}
    return Lens(
        fx,
        float(facts.get("fl_y", fx)),
        float(facts.get("cx", width / 2)),
        float(facts.get("cy", height / 2)),
        **terms,
    )


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with open_photo(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}).") from error


def _view(pose: Tensor) -> Tensor:
    """Returns world to camera, OpenCV axes, from camera to world, OpenGL axes (y up, z back)."""
    if pose.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"transform_matrix is {list(pose.shape)}")
    full = torch.eye(4, dtype=torch.float64)
    full[:3] = pose[:3]
    axes = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    return torch.linalg.inv(full @ axes).float()


def write(scene: Scene, folder: Path) -> None:
    """Writes the scene as images/NAME.png, transforms.json and points.npz, to be read again."""
    import numpy as np

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for camera, image in zip(scene.cameras, scene.images):
        save_photo(folder / "images" / f"{camera.name}.png", image)
    colours = (scene.colours * 255).round().byte()
    np.savez(folder / "points.npz", xyz=scene.points.numpy(), rgb=colours.numpy())
    write_json(folder / "transforms.json", {"frames": [_frame(one) for one in scene.cameras]})


def _frame(camera: Any) -> dict[str, Any]:
    axes = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    pose = torch.linalg.inv(camera.view.double()) @ axes
    fx, fy, cx, cy = (float(value) for value in camera.intrinsics)
    lens = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    size = {"w": camera.size[0], "h": camera.size[1]}
    name = f"images/{camera.name}.png"
    return {"file_path": name, "transform_matrix": pose.tolist(), **lens, **size}
