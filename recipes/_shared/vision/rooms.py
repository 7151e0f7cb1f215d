"""Monocular depth of generated rooms: a box with floor, walls and ceiling, boxes and spheres in it.

A patch by itself says little of depth: textures have no fixed scale, walls no fixed place. The
metric scale is in where walls meet the floor and the ceiling, patches away. Metres, z up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from edgeport_recipes._shared.vision import depth
from edgeport_recipes._shared.vision.tasks import Part, Split, Task
from numpy.typing import NDArray

from edgeport.errors import InputError

COUNTS = {"train": 10_000, "test": 2_000}
BOXES, SPHERES = 3, 2
SURFACES = 3 + BOXES + SPHERES
"""Floor, ceiling, walls, boxes, spheres."""
CHUNK = 250
"""Images cast at once: some 100 MB."""

Array = NDArray[np.float32]
Bound = float | tuple[float, ...] | Array
Generator = np.random.Generator


@dataclass(frozen=True)
class Cameras:
    """Positions `n x 3`; axes `n x 3 x 3` in rows right, down, forward; half widths at depth 1."""

    position: Array
    axes: Array
    reach: Array

    def rays(self, side: int) -> Array:
        """Returns directions `n x side*side x 3` whose part along the optical axis is 1.

        The length of a ray in these units is the depth of its end.
        """
        steps = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
        v, u = np.meshgrid(steps, steps, indexing="ij")
        pixels = np.stack([u.ravel(), v.ravel()], axis=-1)[None] * self.reach[:, None, None]
        return pixels @ self.axes[:, :2] + self.axes[:, 2:]


@dataclass(frozen=True)
class Rooms:
    """n rooms from the origin to `size` (n x 3), and what is in them; a size of 0 means absent.

    `low` and `high` are corners of boxes, n x 3 boxes x 3; spheres have centres n x 2 x 3 and radii
    n x 2.
    """

    size: Array
    low: Array
    high: Array
    centre: Array
    radius: Array


@dataclass(frozen=True)
class Hits:
    """What each ray meets first: depth, surface (0 floor, 1 ceiling, 2 walls, ...), normal."""

    depth: Array
    surface: NDArray[np.int64]
    normal: Array


@dataclass(frozen=True)
class Looks:
    """Two colours, two waves and their phases for each surface; lamps `n x 3`; ambient light."""

    colours: Array
    waves: Array
    phases: Array
    lamp: Array
    ambient: Array


def data(part: Part, seed: int) -> Split:
    """Returns images and `depth` in metres, `n x 32 x 32`; the test part is that of any seed."""
    return _made(COUNTS[part], *((2, 0) if part == "test" else (1, seed)))


@functools.lru_cache(maxsize=2)
def _made(count: int, *seed: int) -> Split:
    return generate(count, list(seed))


def generate(count: int, seed: int | list[int]) -> Split:
    """Returns `count` rooms that follow from the seed; raises InputError for a count below 1."""
    if count < 1:
        raise InputError(f"rooms: cannot make {count} images; give 1 or more.")
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, depth.SIDE, depth.SIDE), np.uint8)
    depths = np.empty((count, depth.SIDE, depth.SIDE), np.float32)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        images[part], depths[part] = _draw(rng, part.stop - part.start)
    return Split(torch.from_numpy(images), {"depth": torch.from_numpy(depths)})


def _draw(rng: Generator, count: int) -> tuple[NDArray[np.uint8], Array]:
    size = _spread(rng, (count, 3), (4, 4, 2.4), (9, 9, 3.0))
    cameras = draw_cameras(rng, size)
    rooms = draw_rooms(rng, size, cameras)
    rays = cameras.rays(depth.SIDE)
    hits = cast(rooms, cameras.position, rays)
    points = cameras.position[:, None] + rays * hits.depth[..., None]
    colour = shade(draw_looks(rng, size), hits, points)
    noisy = 255 * colour + rng.normal(0, 4, colour.shape)
    shape = (count, depth.SIDE, depth.SIDE)
    images = noisy.clip(0, 255).astype(np.uint8).reshape(*shape, 3).transpose(0, 3, 1, 2)
    return images, hits.depth.reshape(shape)


def _uniform(rng: Generator, shape: tuple[int, ...], low: Bound, high: Bound) -> Array:
    return rng.uniform(low, high, shape).astype(np.float32)


def _spread(rng: Generator, shape: tuple[int, ...], low: Bound, high: Bound) -> Array:
    """Draws uniformly in the logarithm."""
    return np.exp(_uniform(rng, shape, np.log(low), np.log(high)))


def draw_cameras(rng: Generator, size: Array) -> Cameras:
    """Returns cameras inside rooms of this size, looking across them and not far off level.

    Most walls are then far enough for their foot to be seen: it says where they are.
    """
    count = len(size)
    position = size * _uniform(rng, (count, 3), 0.1, 0.9)
    position[:, 2] = _uniform(rng, (count,), 1.3, 1.7)
    inward = size[:, :2] / 2 - position[:, :2]
    yaw = np.arctan2(inward[:, 1], inward[:, 0]) + _uniform(rng, (count,), -0.8, 0.8)
    pitch, roll = (_uniform(rng, (count,), -limit, limit) for limit in (0.2, 0.05))
    reach = np.tan(_uniform(rng, (count,), np.radians(76), np.radians(84)) / 2)
    return Cameras(position, look(yaw, pitch, roll), reach)


def look(yaw: Array, pitch: Array, roll: Array) -> Array:
    """Returns axes `n x 3 x 3` in rows right, down, forward; a positive pitch looks down."""
    zero = np.zeros_like(yaw)
    level = np.stack([np.cos(yaw), np.sin(yaw), zero], axis=-1)
    aside = np.stack([np.sin(yaw), -np.cos(yaw), zero], axis=-1)
    floor = np.broadcast_to(np.array([0, 0, -1], np.float32), level.shape)
    down_part, roll_part = (angle[:, None] for angle in (pitch, roll))
    forward = np.cos(down_part) * level + np.sin(down_part) * floor
    below = np.cos(down_part) * floor - np.sin(down_part) * level
    right = np.cos(roll_part) * aside + np.sin(roll_part) * below
    down = np.cos(roll_part) * below - np.sin(roll_part) * aside
    return np.stack([right, down, forward], axis=1)


def draw_rooms(rng: Generator, size: Array, cameras: Cameras) -> Rooms:
    """Puts 2 to 5 boxes and spheres before the camera, on the floor; what a wall hides is hidden.

    None reaches the camera, whose distance from each is drawn beyond the object's own extent.
    """
    count, things = len(size), BOXES + SPHERES
    half = _spread(rng, (count, things, 3), 0.15, 0.8)
    half[:, BOXES:] = half[:, BOXES:, :1]
    rank = rng.random((count, things)).argsort(1)
    present = rank < rng.integers(2, things + 1, (count, 1))
    near = np.hypot(half[..., 0], half[..., 1]) + 0.4
    away = near + _uniform(rng, (count, things), 0, 4)
    heading = cameras.axes[:, 2, :2]
    bearing = np.arctan2(heading[:, 1], heading[:, 0])[:, None]
    bearing = bearing + _uniform(rng, (count, things), -0.6, 0.6)
    flat = cameras.position[:, None, :2]
    flat = flat + away[..., None] * np.stack([np.cos(bearing), np.sin(bearing)], axis=-1)
    centre = np.concatenate([flat, half[..., 2:]], axis=-1).astype(np.float32)
    half = half * present[..., None]
    boxes, extent = centre[:, :BOXES], half[:, :BOXES]
    return Rooms(size, boxes - extent, boxes + extent, centre[:, BOXES:], half[:, BOXES:, 0])


def cast(rooms: Rooms, origin: Array, rays: Array) -> Hits:
    """Returns what each ray `n x rays x 3` meets first from `origin` (n x 3), inside the rooms."""
    toward = np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
    start, inverse = origin[:, None], 1 / toward
    ahead = (np.where(toward > 0, rooms.size[:, None], 0) - start) * inverse
    axis = ahead.argmin(-1)
    nearest = ahead.min(-1)
    normal = _face(axis, toward)
    surface = np.where(axis < 2, 2, (np.take_along_axis(toward, axis[..., None], -1)[..., 0] > 0))
    for index in range(BOXES):
        bounds = rooms.low[:, index, None], rooms.high[:, index, None]
        first, second = ((bound - start) * inverse for bound in bounds)
        entry, leave = np.minimum(first, second), np.maximum(first, second).min(-1)
        axis, found = entry.argmax(-1), entry.max(-1)
        hit = (found > 0) & (found < leave) & (found < nearest)
        nearest, surface = np.where(hit, found, nearest), np.where(hit, 3 + index, surface)
        normal = np.where(hit[..., None], _face(axis, toward), normal)
    for index in range(SPHERES):
        centre, radius = rooms.centre[:, index, None], rooms.radius[:, index, None]
        found = _meet_sphere(start - centre, radius, rays)
        hit = found < nearest
        nearest, surface = np.where(hit, found, nearest), np.where(hit, 3 + BOXES + index, surface)
        outward = (start + rays * nearest[..., None] - centre) / np.maximum(radius, 1e-6)[..., None]
        normal = np.where(hit[..., None], outward, normal)
    return Hits(nearest, surface, normal)


def _face(axis: NDArray[np.int64], toward: Array) -> Array:
    """Returns the unit normal, against the ray, of the face across `axis` that each ray meets."""
    return np.where(np.arange(3) == axis[..., None], -np.sign(toward), np.float32(0))


def _meet_sphere(start: Array, radius: Array, rays: Array) -> Array:
    """Returns how far along the rays a sphere around the origin lies; infinity where it is missed.

    The smaller root t of |start + t ray|^2 = radius^2.
    """
    along, square = (start * rays).sum(-1), (rays * rays).sum(-1)
    inside = along * along - square * ((start * start).sum(-1) - radius * radius)
    found = (-along - np.sqrt(np.maximum(inside, 0))) / square
    return np.where((inside > 0) & (found > 0) & (radius > 0), found, np.float32(np.inf))


def draw_looks(rng: Generator, size: Array) -> Looks:
    """Returns textures of no fixed scale, waves 0.25 to 2.5 m long, and a lamp in each room."""
    count = len(size)
    ways = rng.normal(size=(count, SURFACES, 2, 3))
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    waves = ways * 2 * np.pi / _spread(rng, (count, SURFACES, 1, 1), 0.25, 2.5)
    colours = _uniform(rng, (count, SURFACES, 2, 3), 0.2, 1.0)
    colours[:, 0] *= 0.6  # floors are dark and ceilings light, more often than not
    colours[:, 1] = 1 - 0.4 * (1 - colours[:, 1])
    colours[:, :, 1] = 0.7 * colours[:, :, 0] + 0.3 * colours[:, :, 1]
    return Looks(
        colours=colours,
        waves=waves.astype(np.float32),
        phases=_uniform(rng, (count, SURFACES, 2), 0, 2 * np.pi),
        lamp=size * _uniform(rng, (count, 3), (0.1, 0.1, 0.6), (0.9, 0.9, 1.0)),
        ambient=_uniform(rng, (count, 1), 0.3, 0.6),
    )


def shade(looks: Looks, hits: Hits, points: Array) -> Array:
    """Returns colours `n x rays x 3` in 0..1: two waves blend two colours, the lamp lights them."""
    image = np.arange(len(points))[:, None]
    waves, phases = looks.waves[image, hits.surface], looks.phases[image, hits.surface]
    first, second = np.moveaxis(np.sin((waves * points[..., None, :]).sum(-1) + phases), -1, 0)
    blend = 0.5 + 0.5 * np.tanh(4 * first * second)[..., None]
    pair = looks.colours[image, hits.surface]
    colour = pair[..., 0, :] * blend + pair[..., 1, :] * (1 - blend)
    to_lamp = looks.lamp[:, None] - points
    facing = (hits.normal * to_lamp).sum(-1) / np.maximum(np.linalg.norm(to_lamp, axis=-1), 1e-6)
    light = looks.ambient + (1 - looks.ambient) * np.maximum(facing, 0)
    return colour * light[..., None]


TASK = Task(
    name="rooms",
    side=depth.SIDE,
    outputs=depth.OUTPUTS,
    dense=True,
    data=data,
    loss=depth.loss,
    score=depth.score,
    metric="absrel",
    better="less",
    restricted=False,
)
