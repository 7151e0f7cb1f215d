"""Generated rooms: depth against closed forms, and the loss and scores of depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from edgeport_recipes._shared.vision import depth, rooms
from edgeport_recipes._shared.vision.tasks import find_task
from numpy.typing import NDArray

from edgeport.errors import InputError

SIDE = 32
Array = NDArray[np.float32]


def camera(pitch: float = 0.0, reach: float = 0.8) -> rooms.Cameras:
    """Stands at (1, 4, 1.5) and looks along x."""
    position = np.array([[1, 4, 1.5]], np.float32)
    angle = np.array([pitch], np.float32)
    axes = rooms.look(np.zeros(1, np.float32), angle, np.zeros(1, np.float32))
    return rooms.Cameras(position, axes, np.array([reach], np.float32))


def room(
    *, box: tuple[Array, Array] | None = None, sphere: tuple[Array, float] | None = None
) -> rooms.Rooms:
    """A room of 6 x 8 x 3 m with at most one box, given by corners, and one sphere."""
    low = np.zeros((1, rooms.BOXES, 3), np.float32)
    high, centre = low.copy(), np.zeros((1, rooms.SPHERES, 3), np.float32)
    radius = np.zeros((1, rooms.SPHERES), np.float32)
    if box:
        low[0, 1], high[0, 1] = box
    if sphere:
        centre[0, 1], radius[0, 1] = sphere
    return rooms.Rooms(np.array([[6, 8, 3]], np.float32), low, high, centre, radius)


def seen(where: rooms.Rooms, eye: rooms.Cameras) -> tuple[Array, NDArray[np.int64], Array]:
    hits = rooms.cast(where, eye.position, eye.rays(SIDE))
    shape = (SIDE, SIDE)
    return hits.depth.reshape(shape), hits.surface.reshape(shape), hits.normal.reshape(*shape, 3)


def slopes(reach: float = 0.8) -> tuple[Array, Array]:
    """Returns how far each pixel's ray goes to the right and down in one metre of depth."""
    steps = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * reach
    down, right = np.meshgrid(steps, steps, indexing="ij")
    return right, down


def test_wall_floor_and_ceiling_are_where_a_level_camera_must_see_them() -> None:
    found, surface, normal = seen(room(), camera())
    right, down = slopes()
    with np.errstate(divide="ignore"):
        planes = np.stack(
            [
                np.where(down > 0, 1.5 / down, np.inf),
                np.where(down < 0, -1.5 / down, np.inf),
                np.full_like(down, 5.0),
                4 / np.abs(right),
            ]
        )
    np.testing.assert_allclose(found, planes.min(0), rtol=1e-5)
    assert np.array_equal(surface, np.array([0, 1, 2, 2])[planes.argmin(0)])
    faces = np.array([[0, 0, 1], [0, 0, -1], [-1, 0, 0], [0, 0, 0]])[planes.argmin(0)]
    faces[..., 1] = np.where(planes.argmin(0) == 3, np.sign(right), 0)
    np.testing.assert_array_equal(normal, faces)


def test_a_camera_that_looks_down_sees_the_floor_in_the_middle_at_height_over_sine() -> None:
    eye = camera(pitch=0.6)
    hits = rooms.cast(room(), eye.position, eye.axes[:, 2:])  # one ray, along the axis
    assert hits.surface[0, 0] == 0
    assert hits.depth[0, 0] == pytest.approx(1.5 / np.sin(0.6), rel=1e-5)


def test_axes_are_orthonormal_and_right_handed() -> None:
    angles = np.random.default_rng(0).uniform(-1, 1, (3, 50)).astype(np.float32)
    axes = rooms.look(*angles)
    np.testing.assert_allclose(
        axes @ axes.transpose(0, 2, 1), np.eye(3)[None].repeat(50, 0), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(axes), 1, atol=1e-5)  # right x down = forward
    level = rooms.look(*np.zeros((3, 1), np.float32))[0]
    np.testing.assert_allclose(level, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-7)


def test_the_front_of_a_box_covers_its_projection_at_its_distance() -> None:
    box = np.array([3, 3.5, 0], np.float32), np.array([4, 5, 1.2], np.float32)
    found, surface, normal = seen(room(box=box), camera())
    right, down = (
        slopes()
    )  # right is -y; the front is 2 m away, 1 m to the right to .5 m to the left
    front = (2 * right > -1) & (2 * right < 0.5) & (2 * down > 0.3) & (2 * down < 1.5)
    assert 20 < front.sum() < 500
    np.testing.assert_allclose(found[front], 2, rtol=1e-5)
    assert (surface[front] == 4).all()
    np.testing.assert_array_equal(normal[front], np.broadcast_to([-1, 0, 0], (front.sum(), 3)))
    assert not (surface[down < 0] == 4).any()  # its top is below the camera


def test_a_sphere_is_met_where_its_equation_holds_and_only_within_its_outline() -> None:
    centre, radius = np.array([4, 4.3, 1.2], np.float32), 0.7
    found, surface, normal = seen(room(sphere=(centre, radius)), camera())
    eye = camera()
    rays = eye.rays(SIDE).reshape(SIDE, SIDE, 3)
    toward = centre - eye.position[0]
    distance = np.linalg.norm(toward)
    angle = np.arccos(rays @ toward / np.linalg.norm(rays, axis=-1) / distance)
    outline = angle < np.arcsin(radius / distance)
    assert np.array_equal(surface == 3 + rooms.BOXES + 1, outline)
    points = eye.position[0] + rays * found[..., None]
    outward = (points - centre)[outline]
    np.testing.assert_allclose(np.linalg.norm(outward, axis=-1), radius, rtol=1e-4)
    np.testing.assert_allclose(normal[outline], outward / radius, atol=1e-4)
    assert ((normal * rays).sum(-1)[outline] < 1e-3).all()  # the near side
    middle = rooms.cast(room(sphere=(centre, radius)), eye.position, toward[None, None] / distance)
    assert middle.depth[0, 0] == pytest.approx(distance - radius, rel=1e-5)


def test_an_absent_object_is_met_by_no_ray() -> None:
    _, surface, _ = seen(room(), camera())
    assert surface.max() == 2


def test_what_is_drawn_follows_from_the_seed() -> None:
    first, again, other = (rooms.generate(6, seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets["depth"], again.targets["depth"])
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (6, 3, SIDE, SIDE)
    assert first.images.dtype == torch.uint8


def test_the_test_part_is_that_of_any_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "COUNTS", {"train": 4, "test": 4})
    task = find_task("rooms")
    assert torch.equal(task.data("test", 0).images, task.data("test", 5).images)
    assert not torch.equal(task.data("train", 0).images, task.data("train", 5).images)
    assert not torch.equal(task.data("train", 0).images, task.data("test", 0).images)


def test_drawn_rooms_are_before_the_camera_and_within_their_walls() -> None:
    found = rooms.generate(100, 0).targets["depth"]
    assert float(found.min()) > 0.2
    assert float(found.max()) < np.hypot(np.hypot(9, 9), 3)
    assert float(found.flatten(1).std(1).median()) > 0.3  # rooms, not walls


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="cannot make 0 images; give 1 or more"):
        rooms.generate(0, 0)


# Loss and scores


def outputs_of(metres: torch.Tensor) -> torch.Tensor:
    """Returns what a network would give for exactly this depth."""
    return F.pixel_unshuffle(metres.log()[:, None], depth.PATCH)


@pytest.fixture
def truth() -> torch.Tensor:
    return 1 + 4 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_outputs_hold_the_pixels_of_a_patch_row_by_row() -> None:
    outputs = torch.arange(16 * 64.0).reshape(1, 16, 8, 8)
    pixels = depth.to_pixels(outputs)
    assert pixels.shape == (1, 32, 32)
    assert pixels[0, 4 * 5 + 1, 4 * 2 + 3] == outputs[0, 4 * 1 + 3, 5, 2]


def test_the_exact_depth_scores_perfectly_and_has_a_slope(truth: torch.Tensor) -> None:
    outputs = outputs_of(truth).requires_grad_()
    found = depth.loss(outputs, {"depth": truth})
    assert float(found.detach()) < 1e-3
    found.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()
    scores = depth.score(outputs.detach(), {"depth": truth})
    assert scores["absrel"].shape == (3,)
    assert float(scores["absrel"].max()) < 1e-5
    assert float(scores["rmse"].max()) < 1e-4
    assert float(scores["delta1"].min()) == 1


def test_twice_the_depth_scores_as_the_definitions_say(truth: torch.Tensor) -> None:
    scores = depth.score(outputs_of(2 * truth), {"depth": truth})
    torch.testing.assert_close(scores["absrel"], torch.ones(3))
    torch.testing.assert_close(scores["rmse"], truth.square().mean((1, 2)).sqrt())
    assert float(scores["delta1"].max()) == 0
    assert float(depth.score(outputs_of(1.2 * truth), {"depth": truth})["delta1"].min()) == 1


def test_the_loss_forgives_a_common_factor_in_part(truth: torch.Tensor) -> None:
    log2 = float(np.log(2))
    found = depth.loss(outputs_of(2 * truth), {"depth": truth})
    assert float(found) == pytest.approx(log2 + 0.5 * log2 * 0.15**0.5, rel=1e-4)


def test_holes_count_neither_in_the_loss_nor_in_the_scores(truth: torch.Tensor) -> None:
    holes = torch.zeros_like(truth, dtype=torch.bool)
    holes[:, 3:9, 5:20] = True
    target = {"depth": truth.masked_fill(holes, 0)}
    guess = truth * 1.1
    wild = guess.masked_fill(holes, 50.0)
    torch.testing.assert_close(
        depth.loss(outputs_of(guess), target), depth.loss(outputs_of(wild), target)
    )
    for name, values in depth.score(outputs_of(wild), target).items():
        torch.testing.assert_close(values, depth.score(outputs_of(guess), target)[name])
    torch.testing.assert_close(
        depth.score(outputs_of(wild), target)["absrel"], torch.full((3,), 0.1)
    )


def test_an_image_of_holes_has_a_loss_of_nothing_and_no_score(truth: torch.Tensor) -> None:
    outputs = outputs_of(truth).requires_grad_()
    empty = {"depth": torch.zeros_like(truth)}
    depth.loss(outputs, empty).backward()
    assert outputs.grad is not None and not outputs.grad.any()
    with pytest.raises(InputError, match="3 images are all holes"):
        depth.score(outputs, empty)


def test_outputs_that_overflow_still_have_a_score(truth: torch.Tensor) -> None:
    scores = depth.score(torch.full((3, 16, 8, 8), 1e4), {"depth": truth})
    assert torch.isfinite(scores["rmse"]).all()
