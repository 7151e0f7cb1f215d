"""Posed photographs: camera files of two kinds, lens distortion, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeport_recipes.wsr_splatting import generated, scenes, transforms
from edgeport_recipes.wsr_splatting.photos import Lens, load_photo, save_photo, shrink, undistort
from edgeport_recipes.wsr_splatting.scenes import Scene

from edgeport.errors import InputError

pytest.importorskip("PIL", reason="needs pillow: pip install pillow")
SIZE = (48, 36)


@pytest.fixture(scope="module")
def room() -> Scene:
    return generated.make(views=10, size=SIZE, points=400)


@pytest.fixture
def folder(room: Scene, tmp_path: Path) -> Path:
    transforms.write(room, tmp_path / "scene")
    return tmp_path / "scene"


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "transforms.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def check_same(found: Scene, wanted: Scene) -> None:
    assert [one.name for one in found.cameras] == [one.name for one in wanted.cameras]
    for one, other in zip(found.cameras, wanted.cameras):
        torch.testing.assert_close(one.view, other.view, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.intrinsics, other.intrinsics)
        assert one.size == other.size
    for one, other in zip(found.images, wanted.images):
        assert torch.equal(one, other)
    assert found.held_out == wanted.held_out == (0, 8)
    torch.testing.assert_close(found.points, wanted.points)
    torch.testing.assert_close(found.colours, wanted.colours, atol=1 / 255, rtol=0)


def test_a_scene_is_written_and_read_back(room: Scene, folder: Path) -> None:
    check_same(scenes.load(folder), room)


def test_the_seed_decides_the_generated_scene() -> None:
    one, same, other = (generated.make(seed, 2, (32, 24), 50) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.images, same.images))
    assert torch.equal(one.points, same.points)
    assert not torch.equal(one.images[0], other.images[0])


def test_points_of_the_generated_scene_project_onto_their_colours(room: Scene) -> None:
    camera, image = room.cameras[3], room.images[3].float() / 255
    own = slice(3 * 41, 4 * 41)  # those that this camera's rays met
    points = room.points[own] @ camera.view[:3, :3].T + camera.view[:3, 3]
    pixels = points[:, :2] / points[:, 2:] * camera.intrinsics[:2] + camera.intrinsics[2:]
    columns, rows = pixels.floor().long().unbind(1)
    inside = (columns >= 0) & (columns < SIZE[0]) & (rows >= 0) & (rows < SIZE[1])
    assert int(inside.sum()) > 30
    shown = image[rows[inside], columns[inside]]
    assert float((shown - room.colours[own][inside]).abs().median()) < 0.05


def test_smaller_photos_keep_the_projection(folder: Path, room: Scene) -> None:
    small = scenes.load(folder, 2)
    assert small.cameras[0].size == (24, 18)
    torch.testing.assert_close(small.cameras[0].intrinsics * 2, room.cameras[0].intrinsics)
    block = room.images[0][:2, :2].float().mean((0, 1))
    torch.testing.assert_close(small.images[0][0, 0].float(), block, atol=0.51, rtol=0)


def test_names_of_the_nerf_sets_and_one_angle_of_view(folder: Path, room: Scene) -> None:
    def edit(data: dict) -> None:
        data["camera_angle_x"] = 2 * math.atan(1 / 1.6)
        for frame in data["frames"]:
            frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
            for name in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
                del frame[name]

    change(folder, edit)
    check_same(scenes.load(folder), room)


def test_the_camera_file_of_the_images_own_size_is_taken(folder: Path, room: Scene) -> None:
    data = json.loads((folder / "transforms.json").read_text())
    for frame in data["frames"]:
        frame.update(w=2 * frame["w"], h=2 * frame["h"])
    (folder / "transforms_full.json").write_text(json.dumps(data))
    check_same(scenes.load(folder), room)
    with pytest.raises(InputError, match=r"48 x 36 pixels, but the camera file says 96 x 72"):
        scenes.load(folder, cameras="transforms_full.json")
    shutil.copy(folder / "transforms.json", folder / "transforms_again.json")
    with pytest.raises(InputError, match=r"2 of .* fit the images; name one with --cameras"):
        scenes.load(folder)
    check_same(scenes.load(folder, cameras="transforms_again.json"), room)


def test_points_are_drawn_where_the_cameras_look(folder: Path, room: Scene) -> None:
    (folder / "points.npz").unlink()
    scene = scenes.load(folder)
    assert len(scene.points) >= scenes.RANDOM_POINTS
    for camera in scene.cameras:
        local = scene.points @ camera.view[:3, :3].T + camera.view[:3, 3]
        pixels = local[:, :2] / local[:, 2:] * camera.intrinsics[:2] + camera.intrinsics[2:]
        inside = (local[:, 2] > 0) & (pixels > 0).all(1) & (pixels < torch.tensor(SIZE)).all(1)
        assert float(inside.float().mean()) > 0.2
    assert torch.equal(scene.points, scenes.load(folder).points)


# COLMAP


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Returns w, x, y, z: the last eigenvector of a matrix made from the rotation (Bar-Itzhack)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    rows = [
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e],
    ]
    return np.linalg.eigh(np.array(rows))[1][:, -1]


def poses(scene: Scene) -> list[tuple[np.ndarray, np.ndarray, str]]:
    found = []
    for camera in scene.cameras:
        view = camera.view.double().numpy()
        found.append((quaternion(view[:3, :3]), view[:3, 3], f"{camera.name}.png"))
    return found


def write_text(scene: Scene, model: Path, camera: str) -> None:
    (model / "cameras.txt").write_text(f"# one camera\n7 {camera}\n")
    lines = ["# two lines an image"]
    for index, (q, t, name) in enumerate(poses(scene)):
        numbers = " ".join(repr(float(one)) for one in (*q, *t))
        lines += [f"{index + 1} {numbers} 7 {name}", "1.5 2.5 -1 3 4 12" if index % 2 else ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [
        f"{at} {' '.join(map(repr, xyz))} {' '.join(map(str, rgb))} 0.5 1 2 3 4"
        for at, (xyz, rgb) in enumerate(points(scene))
    ]
    (model / "points3D.txt").write_text("# points\n" + "\n".join(rows) + "\n")


def points(scene: Scene) -> list[tuple[list[float], list[int]]]:
    colours = (scene.colours * 255).round().int().tolist()
    return list(zip(scene.points.tolist(), colours))


def write_binary(scene: Scene, model: Path, number: int, parameters: list[float]) -> None:
    head = struct.pack("<QiiQQ", 1, 7, number, *SIZE)
    (model / "cameras.bin").write_bytes(head + struct.pack(f"<{len(parameters)}d", *parameters))
    data = struct.pack("<Q", len(scene.cameras))
    for index, (q, t, name) in enumerate(poses(scene)):
        data += struct.pack("<i7di", index + 1, *q, *t, 7) + name.encode() + b"\0"
        data += struct.pack("<Q", index) + struct.pack("<ddq", 1.0, 2.0, -1) * index
    (model / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(scene.points))
    for at, (xyz, rgb) in enumerate(points(scene)):
        data += struct.pack("<Q3d3Bd", at, *xyz, *rgb, 0.5)
        data += struct.pack("<Q", 2) + struct.pack("<4i", 1, 2, 3, 4)
    (model / "points3D.bin").write_bytes(data)


@pytest.fixture
def colmap(room: Scene, tmp_path: Path) -> Path:
    """A folder with the photos and an empty sparse/0."""
    folder = tmp_path / "colmap"
    (folder / "images").mkdir(parents=True)
    (folder / "sparse" / "0").mkdir(parents=True)
    for camera, image in zip(room.cameras, room.images):
        save_photo(folder / "images" / f"{camera.name}.png", image)
    return folder


FOCAL = 0.8 * SIZE[0]
CENTRE = (SIZE[0] / 2, SIZE[1] / 2)


@pytest.mark.parametrize(
    ("name", "number", "parameters"),
    [
        ("SIMPLE_PINHOLE", 0, [FOCAL, *CENTRE]),
        ("PINHOLE", 1, [FOCAL, FOCAL, *CENTRE]),
        ("SIMPLE_RADIAL", 2, [FOCAL, *CENTRE, 0.0]),
        ("RADIAL", 3, [FOCAL, *CENTRE, 0.0, 0.0]),
        ("OPENCV", 4, [FOCAL, FOCAL, *CENTRE, 0.0, 0.0, 0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("form", ["bin", "txt"])
def test_a_colmap_model_is_the_same_scene(
    room: Scene, colmap: Path, form: str, name: str, number: int, parameters: list[float]
) -> None:
    model = colmap / "sparse" / "0"
    if form == "bin":
        write_binary(room, model, number, parameters)
    else:
        write_text(room, model, f"{name} {SIZE[0]} {SIZE[1]} {' '.join(map(repr, parameters))}")
    check_same(scenes.load(colmap), room)


@pytest.mark.parametrize("part", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_truncated_colmap_model_is_refused(room: Scene, colmap: Path, part: str) -> None:
    model = colmap / "sparse" / "0"
    write_binary(room, model, 1, [FOCAL, FOCAL, *CENTRE])
    (model / part).write_bytes((model / part).read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{part}: truncated, or no COLMAP") as caught:
        scenes.load(colmap)
    assert "\n" not in str(caught.value)


def test_a_lens_that_is_not_undone_is_refused(room: Scene, colmap: Path) -> None:
    write_text(room, colmap / "sparse" / "0", "FOV 48 36 40 40 24 18 0.9")
    with pytest.raises(InputError, match="camera model FOV is not read; undistort"):
        scenes.load(colmap)


# Lens distortion


LENS = Lens(300.0, 305.0, 161.0, 118.0, k1=-0.25, k2=0.08, p1=0.003, p2=-0.002)


def pattern(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns smooth bands as a function of the undistorted direction."""
    waves = [torch.sin(14 * x + 3 * y), torch.sin(17 * y - 2 * x), torch.sin(9 * (x + y))]
    return (torch.stack(waves, -1) * 0.4 + 0.5) * 255


def test_distortion_is_undone() -> None:
    """A pinhole and a lens look at one pattern; the lens's picture becomes the pinhole's."""
    width, height = 320, 240
    u = torch.arange(width, dtype=torch.float64) + 0.5
    v = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    x, y = (u - LENS.cx) / LENS.fx + 0 * v, (v - LENS.cy) / LENS.fy + 0 * u
    straight = pattern(x, y).round().byte()
    a, b = x.clone(), y.clone()
    for _ in range(60):  # where the ray through a pixel comes from: the distortion's inverse
        c, d = LENS.distort(a, b)
        a, b = a + (x - c), b + (y - d)
    distorted = pattern(a, b).round().byte()
    inner = (slice(20, -20), slice(20, -20))
    before = (distorted[inner].float() - straight[inner].float()).abs().mean()
    found = undistort(distorted, LENS)
    after = (found[inner].float() - straight[inner].float()).abs().mean()
    assert before > 5
    assert after < 0.7  # of 255; the rest is rounding and interpolation


def test_distortion_is_opencvs() -> None:
    """Figures of OpenCV's formula, worked out by hand for x = 0.5, y = 0.25."""
    lens = Lens(1, 1, 0, 0, k1=0.1, k2=0.01, p1=0.02, p2=0.03, k3=0.001)
    x, y = lens.distort(torch.tensor(0.5).double(), torch.tensor(0.25).double())
    square = 0.3125
    radial = 1 + 0.1 * square + 0.01 * square**2 + 0.001 * square**3
    assert float(x) == pytest.approx(0.5 * radial + 2 * 0.02 * 0.125 + 0.03 * (square + 0.5))
    assert float(y) == pytest.approx(0.25 * radial + 0.02 * (square + 0.125) + 2 * 0.03 * 0.125)


def test_distortion_in_the_camera_file_is_undone(folder: Path, room: Scene) -> None:
    change(folder, lambda data: data.update(k1=0.3))
    found = scenes.load(folder)
    lens = Lens(*room.cameras[0].intrinsics.tolist(), k1=0.3)
    assert torch.equal(found.images[0], undistort(room.images[0], lens))
    assert not torch.equal(found.images[0], room.images[0])


def test_shrinking_averages() -> None:
    image = torch.arange(2 * 5 * 3, dtype=torch.uint8).view(2, 5, 3)
    small = shrink(image, 2)
    assert small.shape == (1, 2, 3)
    torch.testing.assert_close(small[0, 0, 0].float(), torch.tensor(9.0), atol=0.51, rtol=0)


# What is refused


def only(count: int) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda data: data.update(frames=data["frames"][:count]))


def turned_around(folder: Path) -> None:
    def edit(data: dict) -> None:
        for frame in data["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, :3] = pose[:3, :3] @ np.diag([-1, 1, -1])
            pose[:3, 3] *= 30
            frame["transform_matrix"] = pose.tolist()

    change(folder, edit)


def nan_pose(folder: Path) -> None:
    def edit(data: dict) -> None:
        data["frames"][2]["transform_matrix"][1][3] = float("nan")

    change(folder, edit)


def nan_point(folder: Path) -> None:
    xyz = np.zeros((4, 3), np.float32)
    xyz[1, 1] = np.nan
    np.savez(folder / "points.npz", xyz=xyz, rgb=np.zeros((4, 3), np.uint8))


def edited(**facts: object) -> Callable[[Path], None]:
    return lambda folder: change(
        folder, lambda data: [frame.update(facts) for frame in data["frames"]]
    )


REFUSED = {
    "no images": (only(0), "no image with a camera; give two views"),
    "one image": (only(1), "one image with a camera; give two views"),
    "a photo is missing": (
        lambda folder: (folder / "images" / "004.png").unlink(),
        r"004\.png: not found",
    ),
    "a photo is broken": (
        lambda folder: (folder / "images" / "004.png").write_bytes(b"\x89PNG"),
        r"004\.png: cannot be read as a picture",
    ),
    "another size": (edited(w=50), r"48 x 36 pixels, but the camera file says 50 x 36"),
    "cameras behind everything": (turned_around, "behind all cameras"),
    "a pose that is not finite": (nan_pose, r"002\.png: its camera has no finite pose"),
    "no focal length": (edited(fl_x=0.0), r"no finite pose or focal length"),
    "points that are not finite": (nan_point, "some points are not finite"),
    "points of another kind": (
        lambda folder: (folder / "points.npz").write_bytes(b"no zip"),
        r"no \.npz with xyz and rgb",
    ),
    "a fisheye": (
        lambda folder: change(folder, lambda data: data.update(camera_model="OPENCV_FISHEYE")),
        "camera_model OPENCV_FISHEYE",
    ),
    "a singular pose": (edited(transform_matrix=[[0.0] * 4] * 4), "no camera file"),
    "no frames": (lambda folder: change(folder, lambda data: data.pop("frames")), "no camera file"),
    "no JSON": (
        lambda folder: (folder / "transforms.json").write_text("{"),
        r"transforms\.json: not JSON",
    ),
    "no camera file": (
        lambda folder: (folder / "transforms.json").unlink(),
        r"no transforms\.json and no COLMAP model",
    ),
    "no folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_scene_is_refused_in_one_line(folder: Path, case: str) -> None:
    spoil, words = REFUSED[case]
    spoil(folder)
    with pytest.raises(InputError, match=words) as caught:
        scenes.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("factor", "words"), [(0, "give 1 or more"), (5, "leaves under 16")])
def test_a_downscale_that_leaves_nothing_is_refused(folder: Path, factor: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        scenes.load(folder, factor)


def test_transparent_pixels_lie_on_black(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    found = load_photo(tmp_path / "a.png")
    assert found.tolist() == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]


def test_the_generated_scene_is_as_it_is() -> None:
    with pytest.raises(InputError, match="takes no downscale, cameras or points"):
        scenes.load("generated", 2)
