"""COLMAP models: cameras, images and points3D, as .bin or .txt.

Source of the layouts: COLMAP's documentation of its output formats. A world point x lies at
R(q) x + t before the camera, whose axes are OpenCV's; q is w, x, y, z.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from edgeport_recipes._shared.files import read_bytes
from edgeport_recipes.wsr_splatting.photos import Lens
from edgeport_recipes.wsr_splatting.scenes import Shot
from torch import Tensor

from edgeport.errors import InputError

# model: its number in .bin files, and what its parameters are
_MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": (0, ("f", "cx", "cy")),
    "PINHOLE": (1, ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": (2, ("f", "cx", "cy", "k1")),
    "RADIAL": (3, ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": (4, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
}
_NAMES = {number: name for name, (number, _) in _MODELS.items()}
_Cameras = dict[int, tuple[Lens, tuple[int, int]]]
_Image = tuple[tuple[float, ...], int, str]


def find(folder: Path) -> Path | None:
    """Returns where in `folder` a COLMAP model lies, or None."""
    for place in (folder / "sparse" / "0", folder / "sparse", folder):
        if any((place / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return place
    return None


def read(model: Path, folder: Path) -> tuple[list[Shot], tuple[Tensor, Tensor] | None]:
    """Returns the shots, and the points with their colours in 0..1 where the model has any.

    Raises InputError for a model that is incomplete or truncated, or whose lens is not undone.
    """
    suffix = ".bin" if (model / "cameras.bin").is_file() else ".txt"
    readers = _BINARY if suffix == ".bin" else _TEXT
    found = []
    for name, reader in zip(("cameras", "images", "points3D"), readers):
        path = model / f"{name}{suffix}"
        if name == "points3D" and not path.is_file():
            found.append([])
            continue
        try:
            found.append(list(reader(read_bytes(path))))
        except (struct.error, ValueError, IndexError, KeyError) as error:
            raise InputError(
                f"{path}: truncated, or no COLMAP file ({error}); export it again."
            ) from error
    cameras, images, points = found
    return _shots(dict(cameras), images, model, folder), _cloud(points)


def _shots(cameras: _Cameras, images: list[_Image], model: Path, folder: Path) -> list[Shot]:
    photos = folder / "images" if (folder / "images").is_dir() else folder
    shots = []
    for pose, camera, name in images:
        if camera not in cameras:
            raise InputError(f"{model}: {name} is of camera {camera}, which is missing.")
        lens, size = cameras[camera]
        shots.append(Shot(photos / name, _view(pose), lens, size))
    return shots


def _view(pose: tuple[float, ...]) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(
        torch.tensor(pose[:4], dtype=torch.float64), dim=0
    ).tolist()
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), pose[4]],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), pose[5]],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), pose[6]],
        [0, 0, 0, 1],
    ]
    return torch.tensor(rotation, dtype=torch.float32)


def _cloud(points: list[tuple[float, ...]]) -> tuple[Tensor, Tensor] | None:
    if not points:
        return None
    table = torch.tensor(points, dtype=torch.float32)
    return table[:, :3], table[:, 3:] / 255


def _lens(name: str, values: tuple[float, ...]) -> Lens:
    if name not in _MODELS:
        raise InputError(
            f"COLMAP's camera model {name} is not read; undistort with COLMAP first, or use one of "
            f"{', '.join(_MODELS)}."
        )
    facts = dict(zip(_MODELS[name][1], values, strict=True))
    focal = facts.pop("f", None)
    if focal is not None:
        facts |= {"fx": focal, "fy": focal}
    return Lens(**facts)


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", errors="strict")
    return [line for line in text.splitlines() if not line.startswith("#")]


def _text_cameras(data: bytes) -> Iterator[tuple[int, tuple[Lens, tuple[int, int]]]]:
    for words in filter(None, (line.split() for line in _lines(data))):
        lens = _lens(words[1], tuple(float(word) for word in words[4:]))
        yield int(words[0]), (lens, (int(words[2]), int(words[3])))


def _text_images(data: bytes) -> Iterator[_Image]:
    # Two lines an image; the second, its points, may be empty.
    for line in _lines(data)[::2]:
        words = line.split(maxsplit=9)
        if words:
            yield tuple(float(word) for word in words[1:8]), int(words[8]), words[9].strip()


def _text_points(data: bytes) -> Iterator[tuple[float, ...]]:
    for words in filter(None, (line.split() for line in _lines(data))):
        yield tuple(float(word) for word in words[1:7])


def _binary_cameras(data: bytes) -> Iterator[tuple[int, tuple[Lens, tuple[int, int]]]]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        name = _NAMES.get(model, f"number {model}")
        form = f"<{len(_MODELS[name][1]) if name in _MODELS else 0}d"
        lens = _lens(name, struct.unpack_from(form, data, at + 24))
        at += 24 + struct.calcsize(form)
        yield number, (lens, (width, height))


def _binary_images(data: bytes) -> Iterator[_Image]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        name = data[at + 64 : end].decode()
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
        if at > len(data):
            raise ValueError("its end is missing")
        yield tuple(pose), camera, name


def _binary_points(data: bytes) -> Iterator[tuple[float, ...]]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, *values, _error, track = struct.unpack_from("<Q3d3BdQ", data, at)
        at += 51 + 8 * track
        if at > len(data):
            raise ValueError("its end is missing")
        yield tuple(values)


_TEXT = (_text_cameras, _text_images, _text_points)
_BINARY = (_binary_cameras, _binary_images, _binary_points)
