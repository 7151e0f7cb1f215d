"""A room of textured spheres and boxes, made by casting rays: a scene that needs no download.

Every surface is matt, and the light comes from above, so that what a view shows is known exactly.
A dark ball stands before a wall with bright stripes: the case a weighted sum finds hardest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, held_out, look_at
from edgeport_recipes.wsr_splatting.photos import as_bytes
from edgeport_recipes.wsr_splatting.scenes import Scene
from torch import Tensor

VIEWS, SIZE, POINTS = 40, (128, 96), 4000
_FOCAL = 0.8  # of the frame's width
_FAR = 1e6
_LIGHT = (0.35, 0.87, 0.35)


@dataclass(frozen=True)
class Solid:
    """A sphere (radii equal) or a box around `centre`; two colours in a pattern `scale` wide."""

    kind: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    scale: float


# y points up; the room's floor is y = 0
ROOM = Solid("room", (0, 1.5, 0), (4.5, 1.5, 4.5), ((0.93, 0.91, 0.84), (0.66, 0.72, 0.79)), 0.9)
SOLIDS = (
    Solid("sphere", (0.9, 0.55, 0.2), (0.55,) * 3, ((0.85, 0.2, 0.15), (0.95, 0.75, 0.2)), 0.25),
    Solid("sphere", (-0.9, 0.5, 0.5), (0.5,) * 3, ((0.03, 0.03, 0.04), (0.06, 0.05, 0.05)), 0.3),
    Solid("box", (-0.2, 0.4, -0.8), (0.5, 0.4, 0.35), ((0.15, 0.45, 0.3), (0.7, 0.85, 0.6)), 0.2),
    Solid("box", (0.1, 0.9, 0.1), (0.16, 0.9, 0.16), ((0.2, 0.25, 0.6), (0.85, 0.85, 0.9)), 0.22),
)


def make(
    seed: int = 0, views: int = VIEWS, size: tuple[int, int] = SIZE, points: int = POINTS
) -> Scene:
    """Returns the scene: cameras on an orbit at three heights, and points on what they see.

    `seed` moves the solids a little and draws the points.
    """
    rng = torch.Generator().manual_seed(seed)
    solids = (ROOM, *(_moved(solid, rng) for solid in SOLIDS))
    cameras = tuple(_camera(index, views, size) for index in range(views))
    images = tuple(_image(camera, solids) for camera in cameras)
    seen = [_points(camera, solids, points // views + 1, rng) for camera in cameras]
    return Scene(
        "generated",
        cameras,
        images,
        torch.cat([where for where, _ in seen]),
        torch.cat([colour for _, colour in seen]),
        held_out(views),
    )


def _moved(solid: Solid, rng: torch.Generator) -> Solid:
    x, z = ((torch.rand(2, generator=rng) - 0.5) * 0.1).tolist()
    old = solid.centre
    return replace(solid, centre=(old[0] + x, old[1], old[2] + z))


def _camera(index: int, views: int, size: tuple[int, int]) -> Camera:
    # Three turns around the room, each at another height: neighbours in order are near.
    angle = 2 * math.pi * 3 * index / views
    eye = torch.tensor([2.9 * math.sin(angle), 0.9 + 0.6 * (index % 3), 2.9 * math.cos(angle)])
    view = look_at(eye, torch.tensor([0, 0.6, 0]), torch.tensor([0, 1.0, 0]))
    width, height = size
    focal = _FOCAL * width
    intrinsics = torch.tensor([focal, focal, width / 2, height / 2])
    return Camera(f"{index:03d}", view, intrinsics, size)


def _rays(camera: Camera, pixels: Tensor) -> Tensor:
    """Returns the directions [n, 3], in the world, through `pixels` [n, 2]."""
    slopes = (pixels - camera.intrinsics[2:]) / camera.intrinsics[:2]
    local = torch.cat([slopes, torch.ones(len(slopes), 1)], 1)
    return torch.nn.functional.normalize(local @ camera.view[:3, :3], dim=1)


def _image(camera: Camera, solids: tuple[Solid, ...]) -> Tensor:
    """Returns the picture [h, w, 3] of uint8, each pixel the mean of four rays."""
    width, height = camera.size
    x = (torch.arange(2 * width) + 0.5) / 2
    y = (torch.arange(2 * height) + 0.5) / 2
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    colours, _ = cast(camera.eye, _rays(camera, pixels), solids)
    return as_bytes(colours.view(height, 2, width, 2, 3).mean((1, 3)))


def _points(
    camera: Camera, solids: tuple[Solid, ...], count: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns what rays through random pixels meet, moved by about a hundredth as SfM's are."""
    pixels = torch.rand(count, 2, generator=rng) * torch.tensor(camera.size)
    rays = _rays(camera, pixels)
    colours, distances = cast(camera.eye, rays, solids)
    noise = 0.01 * torch.randn(count, 3, generator=rng)
    return camera.eye + rays * distances[:, None] + noise, colours


def cast(eye: Tensor, rays: Tensor, solids: tuple[Solid, ...]) -> tuple[Tensor, Tensor]:
    """Returns the colours [n, 3] and distances [n] of what unit `rays` [n, 3] from `eye` meet."""
    nearest = torch.full((len(rays),), _FAR)
    colours = torch.zeros_like(rays)
    for solid in solids:
        distances, normals = _meet(eye, rays, solid)
        nearer = distances < nearest
        points = eye + rays[nearer] * distances[nearer, None]
        colours[nearer] = _shade(points, normals[nearer], solid)
        nearest = torch.where(nearer, distances, nearest)
    return colours, nearest


def _meet(eye: Tensor, rays: Tensor, solid: Solid) -> tuple[Tensor, Tensor]:
    """Returns the distances [n], far where there is none, and the normals [n, 3]."""
    origin = eye - torch.tensor(solid.centre)
    half = torch.tensor(solid.half)
    if solid.kind == "sphere":
        along = rays @ origin
        root = along**2 - origin @ origin + half[0] ** 2
        distances = torch.where(root > 0, -along - root.clamp(min=0).sqrt(), _FAR)
        normals = (origin + rays * distances[:, None]) / half
        return torch.where(distances > 0, distances, _FAR), normals
    crossings = torch.stack([(-half - origin) / rays, (half - origin) / rays])
    entry, exit_ = crossings.amin(0), crossings.amax(0)
    if solid.kind == "room":  # seen from within
        distances, axis = exit_.min(1)
        return distances, -_axis_normals(rays, axis)
    distances, axis = entry.max(1)
    met = (distances < exit_.amin(1)) & (distances > 0)
    return torch.where(met, distances, _FAR), -_axis_normals(rays, axis)


def _axis_normals(rays: Tensor, axis: Tensor) -> Tensor:
    one = torch.nn.functional.one_hot(axis, 3).to(rays)
    return one * rays.sign()


def _shade(points: Tensor, normals: Tensor, solid: Solid) -> Tensor:
    """Returns a soft pattern of the solid's two colours, under a light from above."""
    first, second = (torch.tensor(colour) for colour in solid.colours)
    wave = torch.sin(math.pi / solid.scale * points).sum(1)
    fine = torch.sin(2.7 * math.pi / solid.scale * (points[:, 0] - points[:, 1] + points[:, 2]))
    mix = torch.sigmoid(4 * wave + 1.5 * fine)[:, None]
    light = 0.55 + 0.45 * (normals @ torch.tensor(_LIGHT)).clamp(min=0)
    return (first * (1 - mix) + second * mix) * light[:, None]
