"""Posed photographs of a scene, from whatever folder they come in."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, held_out, nearest_point
from edgeport_recipes.wsr_splatting.photos import Lens, load_photo, shrink, undistort
from torch import Tensor

from edgeport.errors import InputError

RANDOM_POINTS = 5000  # where a scene comes without any
LEAST_SIDE = 16  # pixels
USUAL_SIDE = 256  # pixels, at most, of photos whose size is not chosen: a CPU trains on them


@dataclass(frozen=True)
class Shot:
    """A photograph as a camera file names it: `view` [4, 4] world to camera, OpenCV axes; `size`
    (w, h) as the file has it, or None where it does not say."""

    path: Path
    view: Tensor
    lens: Lens
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Scene:
    """Views of one place: images [h, w, 3] of uint8 beside their cameras; seed points [M, 3] with
    colours [M, 3] in 0..1; `held_out` are the indices of views that are scored only."""

    name: str
    cameras: tuple[Camera, ...]
    images: tuple[Tensor, ...]
    points: Tensor
    colours: Tensor
    held_out: tuple[int, ...]

    @property
    def training(self) -> tuple[int, ...]:
        return tuple(one for one in range(len(self.cameras)) if one not in self.held_out)

    @property
    def extent(self) -> float:
        """Returns how far the cameras stand from their middle, at most, and a tenth more."""
        eyes = torch.stack([camera.eye for camera in self.cameras])
        return 1.1 * float((eyes - eyes.mean(0)).norm(dim=1).max())

    @property
    def centre(self) -> Tensor:
        return nearest_point(self.cameras)


def load(
    where: str | Path,
    downscale: int | None = 1,
    *,
    cameras: str | None = None,
    points: Path | None = None,
    seed: int = 0,
) -> Scene:
    """Returns the scene of a folder, or of "generated".

    A folder holds a transforms.json as instant-ngp and nerfstudio write it, or a COLMAP model
    (in sparse/0, sparse or the folder itself) beside images/. `cameras` names the camera file
    where a folder has several; `points` an .npz of xyz [M, 3] and rgb [M, 3]; no `downscale` makes
    photos as small as USUAL_SIDE. Raises InputError.
    """
    from edgeport_recipes.wsr_splatting import colmap, generated, transforms

    if downscale is not None and downscale < 1:
        raise InputError(f"--downscale is {downscale}; give 1 or more.")
    if str(where) == "generated":
        if (downscale or 1) > 1 or cameras is not None or points is not None:
            raise InputError("the generated scene takes no downscale, cameras or points of others.")
        return generated.make(seed)
    folder = Path(where)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with photos and their cameras.")
    model = colmap.find(folder)
    if model is not None and cameras is None:
        shots, cloud = colmap.read(model, folder)
    else:
        shots, cloud = transforms.read(folder, cameras), None
    cloud = _points_of(folder, points) or cloud
    return assemble(str(folder), shots, downscale, cloud, seed)


def assemble(
    name: str,
    shots: Sequence[Shot],
    downscale: int | None,
    cloud: tuple[Tensor, Tensor] | None,
    seed: int = 0,
) -> Scene:
    """Returns the scene of these shots, undistorted and made smaller, in the order of names."""
    if len(shots) < 2:
        raise InputError(
            f"{name}: {'no' if not shots else 'one'} image with a camera; give two views or more."
        )
    shots = sorted(shots, key=lambda shot: str(shot.path))
    if downscale is None:
        downscale = math.ceil(max(load_photo(shots[0].path).shape) / USUAL_SIDE)
    pairs = [load_shot(one, downscale) for one in shots]
    cameras = tuple(camera for camera, _ in pairs)
    points, colours = cloud if cloud is not None else random_points(cameras, seed)
    _check_in_view(name, cameras, points)
    images = tuple(image for _, image in pairs)
    return Scene(name, cameras, images, points, colours, held_out(len(cameras)))


def load_shot(shot: Shot, downscale: int) -> tuple[Camera, Tensor]:
    """Returns the pinhole camera and the picture that it would have taken."""
    image = load_photo(shot.path)
    height, width = image.shape[:2]
    if shot.size not in (None, (width, height)):
        raise InputError(
            f"{shot.path}: {width} x {height} pixels, but the camera file says "
            f"{shot.size[0]} x {shot.size[1]}; give the file that belongs to these images."
        )
    if min(width, height) // downscale < LEAST_SIDE:
        raise InputError(
            f"{shot.path}: --downscale {downscale} leaves under {LEAST_SIDE} of {width} x {height} "
            "pixels; give a smaller one."
        )
    if not torch.isfinite(shot.view).all() or min(shot.lens.fx, shot.lens.fy) <= 0:
        raise InputError(f"{shot.path}: its camera has no finite pose or focal length; repair it.")
    image = shrink(undistort(image, shot.lens), downscale)
    size = (image.shape[1], image.shape[0])
    return Camera(shot.path.stem, shot.view, shot.lens.smaller(downscale), size), image


def _points_of(folder: Path, given: Path | None) -> tuple[Tensor, Tensor] | None:
    """Returns the points of the file given, or of the folder's only .npz."""
    found = [given] if given is not None else sorted(folder.glob("*.npz"))
    return load_points(found[0]) if len(found) == 1 else None


def load_points(path: Path) -> tuple[Tensor, Tensor]:
    """Returns xyz [M, 3] and rgb [M, 3] in 0..1 of an .npz whose rgb is uint8 or in 0..1."""
    try:
        with np.load(path, allow_pickle=False) as data:
            xyz, rgb = data["xyz"], data["rgb"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no .npz with xyz and rgb ({error}); give another.") from error
    if xyz.ndim != 2 or xyz.shape[1:] != (3,) or rgb.shape != xyz.shape or not len(xyz):
        raise InputError(f"{path}: xyz is {xyz.shape} and rgb {rgb.shape}; both must be [M, 3].")
    if not np.isfinite(xyz).all():
        raise InputError(f"{path}: some points are not finite; remove them.")
    scale = 255.0 if rgb.dtype == np.uint8 else 1.0
    colours = torch.from_numpy(rgb.astype(np.float32) / scale)
    return torch.from_numpy(xyz.astype(np.float32)), colours


def random_points(cameras: Sequence[Camera], seed: int) -> tuple[Tensor, Tensor]:
    """Returns grey points within the frames of the cameras, at the depths around their centre."""
    rng = torch.Generator().manual_seed(seed)
    centre = nearest_point(tuple(cameras))
    drawn = []
    for camera in cameras:
        count = RANDOM_POINTS // len(cameras) + 1
        middle = float((camera.view[:3, :3] @ centre + camera.view[:3, 3])[2])
        depths = max(middle, 1.0) * (0.3 + 1.7 * torch.rand(count, 1, generator=rng))
        pixels = torch.rand(count, 2, generator=rng) * torch.tensor(camera.size)
        slopes = (pixels - camera.intrinsics[2:]) / camera.intrinsics[:2]
        local = torch.cat([slopes, torch.ones(count, 1)], 1) * depths
        drawn.append((local - camera.view[:3, 3]) @ camera.view[:3, :3])
    points = torch.cat(drawn)
    return points, torch.full_like(points, 0.5)


def _check_in_view(name: str, cameras: Sequence[Camera], points: Tensor) -> None:
    """Raises InputError where no camera has any of the points in front of it."""
    for camera in cameras:
        if ((points @ camera.view[2, :3] + camera.view[2, 3]) > 0).any():
            return
    raise InputError(
        f"{name}: all {len(points)} points lie behind all cameras; are the poses camera-to-world?"
    )
