"""Both splat renderers on the GPU against PyTorch's, the sort against numpy, and bad scenes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgeport_recipes.wsr_splatting import model
from edgeport_recipes.wsr_splatting.frames import camera_feed, frame_times
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.pack import morton_order, pack
from edgeport_recipes.wsr_splatting.program import Settings, weight_scale, write_program
from edgeport_recipes.wsr_splatting.splats import NEAR, Blend, Splats
from gpu import need_gpu

from edgeport.errors import InputError

need_gpu()

from edgeport.runtimes.webgpu import Session, load  # noqa: E402 - it needs wgpu

SIZE = (96, 72)
CAMERA = {
    "name": "front",
    "view": np.eye(4).ravel().tolist(),
    "intrinsics": [80.0, 84.0, 45.0, 38.0],
    "size": list(SIZE),
}
BACKGROUND = (0.2, 0.3, 0.1)
SORTED = Blend("sorted", background=BACKGROUND)
LC = Blend("lc", sigma=8.0, background=BACKGROUND, background_weight=0.05)
EXP = Blend("exp", sigma=3.0, beta=1.2, background=BACKGROUND, background_weight=1e-6)
DIR = Blend("dir", background=BACKGROUND, background_weight=0.1)
FINE = Settings(sums="rgba32float", canvas="rgba32float", key_bits=32, projection="vertex")


def cloud(count: int, degree: int = 3, seed: int = 0, own_opacity: bool = True) -> Splats:
    """Returns random splats around (0, 0, 4), some of them behind the camera or out of sight."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    harmonics = (degree + 1) ** 2
    sh, factor = normal(count, harmonics, 3) * 0.15, normal(count, harmonics) * 0.1
    sh[:, 0], factor[:, 0] = normal(count, 3) * 0.8, 3.0 + normal(count) * 0.3
    return Splats(
        positions=normal(count, 3) * torch.tensor([2.0, 1.5, 1.6]) + torch.tensor([0, 0, 4.0]),
        log_scales=normal(count, 3) * 0.5 - 2.6,
        rotations=normal(count, 4),
        opacity_logits=normal(count) * 1.5,
        sh=sh,
        opacity_sh=factor if own_opacity else None,
    )


def spots(places: list[tuple[float, float, float]], colours: list[float], size: float) -> Splats:
    """Returns round grey splats, nearly opaque."""
    count = len(places)
    sh = (torch.tensor(colours)[:, None, None].repeat(1, 1, 3) - 0.5) / C0
    return Splats(
        positions=torch.tensor(places),
        log_scales=torch.full((count, 3), float(np.log(size))),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        opacity_logits=torch.full((count,), 6.0),
        sh=sh,
    )


def written(
    directory: Path,
    splats: Splats,
    blend: Blend = LC,
    settings: Settings = Settings(),  # noqa: B008
) -> Session:
    ordered = Blend("sorted", background=blend.background)
    sets = {"sort_free": (splats, blend), "sorted": (splats, ordered)}
    write_program(directory, sets, [CAMERA], SIZE, settings)
    return load(directory, {})


def camera(at: Mapping[str, Any] = CAMERA) -> dict[str, np.ndarray]:
    return camera_feed(at, (at["size"][0], at["size"][1]))


def reference(splats: Splats, blend: Blend, at: Mapping[str, Any] = CAMERA) -> np.ndarray:
    one = {name: torch.from_numpy(value) for name, value in camera(at).items()}
    return model.render_dense(splats, blend, one["view"], one["intrinsics"], SIZE).numpy()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    difference = np.clip(one, 0, 1) - np.clip(other, 0, 1)
    return float(-10 * np.log10(np.mean(np.square(difference, dtype=np.float64)) + 1e-15))


# The images


@pytest.mark.parametrize(
    ("settings", "own_opacity", "free_db", "sorted_db"),
    [
        (FINE, True, 65, 75),
        (FINE, False, 65, 75),
        (Settings(projection="vertex"), True, 55, 50),
        (Settings(key_bits=24, discard=True), True, 55, 50),
        (Settings(canvas="rgba8unorm", key_bits=16), True, 55, 42),
    ],
)
def test_both_paths_give_pytorchs_image(
    tmp_path: Path, settings: Settings, own_opacity: bool, free_db: float, sorted_db: float
) -> None:
    splats = cloud(800, own_opacity=own_opacity)
    free, ordered = written(tmp_path, splats, LC, settings).run(camera())
    assert psnr(free, reference(splats, LC)) > free_db
    assert psnr(ordered, reference(splats, SORTED)) > sorted_db
    # The control: neither is the other's image, nor the other order's.
    assert psnr(free, ordered) < 30
    mirrored = replace(splats, positions=splats.positions * torch.tensor([1, 1, -1.0]))
    assert psnr(ordered, reference(mirrored, SORTED)) < 30


@pytest.mark.parametrize("blend", [DIR, EXP, LC], ids=lambda one: one.rule)
@pytest.mark.parametrize("projection", ["vertex", "compute"])
def test_each_rule(tmp_path: Path, blend: Blend, projection: Any) -> None:
    splats = cloud(600, seed=1)
    session = written(tmp_path, splats, blend, Settings(projection=projection))
    image = session.image("sort_free", camera())
    expected = {one.rule: psnr(image, reference(splats, one)) for one in (DIR, EXP, LC)}
    assert expected.pop(blend.rule) > 52
    assert max(expected.values()) < 40


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_each_degree_of_harmonics_from_another_side(tmp_path: Path, degree: int) -> None:
    splats = cloud(400, degree)
    turn = np.array([[0, 0, -1, 4], [0, 1, 0, 0.2], [1, 0, 0, 4], [0, 0, 0, 1]], float)
    side = {**CAMERA, "view": turn.ravel().tolist()}
    session = written(tmp_path, splats, LC, FINE)
    for at in (CAMERA, side):
        free, ordered = session.run(camera(at))
        assert psnr(free, reference(splats, LC, at)) > 65
        assert psnr(ordered, reference(splats, SORTED, at)) > 75
    if degree:
        flat = reference(splats.at_degree(degree - 1), LC, side)
        assert psnr(free, flat) < 55


def test_a_huge_splat_before_the_camera_and_thin_ones(tmp_path: Path) -> None:
    """Quads far larger than the frame, and needles whose ellipse is the low-pass filter's width."""
    splats = spots([(0.5, 0.2, 0.35), (0.0, 0.0, 3.0), (0.3, 0.1, 2.0)], [0.9, 0.2, 0.6], 0.5)
    needle = splats.log_scales.clone()
    needle[1:] = torch.tensor([0.0, -9.0, -9.0])
    needle[2] = needle[2].roll(1)
    splats = replace(splats, log_scales=needle, opacity_logits=torch.tensor([0.0, 2.0, 2.0]))
    free, ordered = written(tmp_path, splats, LC, FINE).run(camera())
    assert psnr(free, reference(splats, LC)) > 65
    assert psnr(ordered, reference(splats, SORTED)) > 75


def test_an_opacity_above_one_reaches_further_into_the_frame(tmp_path: Path) -> None:
    """The splat's middle is 34 pixels outside, 3.4 of its deviations: u = 10 brings it in."""
    splats = spots([(-2.96, 0.0, 3.0)], [1.0], 0.3)
    factor = torch.tensor([[10.0 / C0]])
    splats = replace(splats, opacity_logits=torch.tensor([0.0]), opacity_sh=factor)
    free, ordered = written(tmp_path, splats, LC, FINE).run(camera())
    assert np.abs(free[:, 0] - np.array(BACKGROUND)).max() > 0.05
    assert psnr(free, reference(splats, LC)) > 65
    assert psnr(ordered, reference(splats, SORTED)) > 75


def test_nothing_in_sight_is_the_background(tmp_path: Path) -> None:
    for number, settings in enumerate((FINE, Settings(projection="compute"))):
        behind = spots([(0.0, 0.0, -3.0), (0.0, 0.0, NEAR)], [0.5, 0.5], 0.1)
        session = written(tmp_path / str(number), behind, LC, settings)
        for image in session.run(camera()):
            np.testing.assert_allclose(image, np.broadcast_to(BACKGROUND, image.shape), atol=3e-4)


def test_the_weighted_sum_has_no_order(tmp_path: Path) -> None:
    splats = cloud(400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    shuffled = splats.map(lambda one: one[order])
    sessions = [
        written(tmp_path / name, one, LC, FINE)
        for name, one in (("given", splats), ("shuffled", shuffled))
    ]
    # The export puts splats into an order of its own; this one has to be the shuffled one.
    unpacked = pack(shuffled, "it", morton=False)
    for part, content in (("geometry", unpacked.geometry), ("sh", unpacked.harmonics)):
        (tmp_path / f"shuffled/scene/scene_{part}.bin").write_bytes(content.tobytes())
    sessions[1] = load(tmp_path / "shuffled", {})
    given, other = (one.image("sort_free", camera()) for one in sessions)
    assert np.abs(given - other).max() <= 2e-6


def test_two_frames_are_the_same(tmp_path: Path) -> None:
    """The sorted path blends ties and near ties in one order always: nothing flickers."""
    splats = cloud(3000)
    session = written(tmp_path, splats)
    first, second = (session.image("sorted", camera()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_dark_spot_before_a_bright_wall(tmp_path: Path) -> None:
    """Untrained, a weighted sum lets the wall shine through; sorted, the spot hides it."""
    wall = [(0.25 * x, 0.25 * y, 4.0) for x in range(-8, 9) for y in range(-8, 9)]
    splats = spots([*wall, (0.0, 0.0, 2.0)], [1.0] * len(wall) + [0.05], 0.2)
    free, ordered = written(tmp_path, splats, Blend("dir", background_weight=0.01)).run(camera())
    middle = np.s_[36:40, 43:47]
    assert ordered[middle].mean() < 0.08
    assert free[middle].mean() > 0.3


# The sort


def keys_of(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted splats' indices and, by splat, the keys as the projection wrote them."""
    document = json.loads((session.document.directory / "program.json").read_text())
    steps = document["programs"]["sorted"]["passes"]
    order = steps[-1]["bindings"]["4"]
    session.frame("sorted", camera(), passes=1)
    keys = session.read_buffer("keys_a").copy()
    session.frame("sorted", camera())
    count = int(session.read_buffer("sorted_drawn")[1])
    return session.read_buffer(order)[:count], keys


def sorted_alone(directory: Path, splats: Splats, settings: Settings) -> Session:
    """Returns the sorted program without the other, which takes as long to compile."""
    scenes = {"sort_free": (splats, DIR), "sorted": (splats, SORTED)}
    path = write_program(directory, scenes, [CAMERA], SIZE, settings)
    document = json.loads(path.read_text())
    del document["programs"]["sort_free"], document["outputs"][0]
    path.write_text(json.dumps(document))
    return load(directory, {})


def column(depths: np.ndarray) -> Splats:
    """Returns splats on the axis, at these depths."""
    places = [(0.0, 0.0, float(depth)) for depth in depths]
    return spots(places, [0.5] * len(places), 0.01)


RANDOM = np.random.default_rng(0)
DEPTHS = {
    "one": np.array([2.0]),
    "one culled": np.array([-2.0]),
    "all culled": np.linspace(-3, 0.2, 700),
    "equal": np.full(5000, 3.0),
    "two in turn": np.tile([3.0, 2.0], 2049),
    "falling": np.linspace(100, 0.3, 4096),
    "rising, some culled": np.linspace(-1, 9, 4097),
    "neighbouring floats": np.nextafter(2, 3) + np.arange(1000) % 7 * np.spacing(np.float32(2)),
    "all magnitudes": np.exp(RANDOM.uniform(np.log(0.21), np.log(1e7), 9001)),
}


@pytest.mark.parametrize(
    ("key_bits", "names"),
    [
        (32, ("one", "all culled", "falling", "rising, some culled", "neighbouring floats")),
        (24, ("one culled", "two in turn", "neighbouring floats")),
        (16, ("equal", "all magnitudes")),
    ],
)
def test_the_sort_is_stable_and_exact(
    tmp_path: Path, key_bits: Any, names: tuple[str, ...]
) -> None:
    for name, depths in ((name, DEPTHS[name]) for name in names):
        settings = Settings(key_bits=key_bits, rounds=int(RANDOM.integers(1, 9)))
        session = sorted_alone(tmp_path / name, column(depths), settings)
        order, keys = keys_of(session)
        # From the last to the first: of two equal keys the smaller index is drawn later.
        backwards = np.arange(len(depths))[::-1]
        expected = backwards[np.argsort(keys[::-1], kind="stable")]
        expected = expected[keys[expected] != 0xFFFFFFFF]
        np.testing.assert_array_equal(order, expected, err_msg=name)
        seen = np.sort(pack(column(depths), "it").geometry[:, 2][order])[::-1]
        drawn = pack(column(depths), "it").geometry[:, 2][order]
        close = 0.0 if key_bits == 32 else 2.0 ** (4 - key_bits)
        if name != "all magnitudes":  # some lie beyond NEAR times 2^16, the last of short keys
            np.testing.assert_allclose(drawn, seen, rtol=2 * close, atol=0, err_msg=name)
        assert (len(order) == 0) == (name in ("one culled", "all culled"))


# The files


def test_what_an_export_holds(tmp_path: Path) -> None:
    splats = cloud(10)
    trained = {"sort_free": (splats, LC), "sorted": (cloud(12, seed=1), SORTED)}
    write_program(tmp_path, trained, [CAMERA], SIZE)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == [
        "program.json",
        *(f"scene/{name}_{part}.bin" for name in ("lc", "sorted") for part in ("geometry", "sh")),
        *(
            f"shaders/{name}.wgsl"
            for name in ("draw_records", "normalise", "project", "sort", "sort_free")
        ),
    ]
    assert (tmp_path / "scene/lc_geometry.bin").stat().st_size == 10 * 40
    assert (tmp_path / "scene/sorted_sh.bin").stat().st_size == 12 * 16 * 8
    facts = json.loads((tmp_path / "program.json").read_text())["facts"]
    assert facts["splats"] == {"sort_free": 10, "sorted": 12}


def test_packing_keeps_the_splats() -> None:
    splats = cloud(300)
    packed = pack(splats, "it", morton=False)
    np.testing.assert_array_equal(packed.geometry[:, :3], splats.positions)
    np.testing.assert_allclose(packed.harmonics[..., :3], splats.sh.numpy(), rtol=5e-4, atol=1e-7)
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    factors = model.basis(directions, 3) @ splats.opacity_sh.T
    assert float(factors.max()) < packed.most_factor < 2 * float(factors.max())
    order = morton_order(splats.positions.numpy())
    np.testing.assert_array_equal(np.sort(order), np.arange(300))
    apart = np.linalg.norm(np.diff(splats.positions.numpy(), axis=0), axis=1).mean()
    along = np.linalg.norm(np.diff(splats.positions.numpy()[order], axis=0), axis=1).mean()
    assert along < 0.5 * apart


def test_the_scale_of_weights_changes_no_image(tmp_path: Path) -> None:
    splats = cloud(300)
    faint = replace(EXP, sigma=8.0, beta=1.0, background_weight=1e-16)
    assert weight_scale(splats, LC, [CAMERA]) == 1.0
    scale = weight_scale(splats, faint, [CAMERA])
    assert 1e3 < scale < 1e16
    image = written(tmp_path, splats, faint).image("sort_free", camera())
    near = replace(splats, positions=splats.positions)  # the same; weights down to exp(-64)
    seen = reference(near, faint)
    drawn = np.abs(seen - np.array(BACKGROUND)).max(-1) > 0.05
    assert drawn.mean() > 0.1
    assert psnr(image[drawn], seen[drawn]) > 20


def test_times_of_frames(tmp_path: Path) -> None:
    written(tmp_path, cloud(50))
    times = frame_times(tmp_path, CAMERA, 0.1, (64, 32), rounds=5)
    assert set(times.timings) >= {"sort_free", "sorted", "sorted before drawing"}
    assert times.frame == (64, 32)
    assert times.speedup.low <= times.speedup.value <= times.speedup.high
    assert times.bytes["sorted"] > 50 * (40 + 128 + 32)


# Bad input


def spoiled(name: str, value: float) -> Splats:
    splats = cloud(20)
    changed = getattr(splats, name).clone()
    changed[7] = value
    return replace(splats, **{name: changed})


@pytest.mark.parametrize(
    ("splats", "words"),
    [
        (cloud(0), "no splats"),
        (spoiled("positions", np.nan), "positions .*not finite.*splat 7"),
        (spoiled("sh", np.inf), "sh .*not finite.*splat 7"),
        (spoiled("rotations", 0.0), "splat 7 has a quaternion of length 0"),
        (spoiled("log_scales", 80.0), "splat 7 is too large"),
        (spoiled("sh", 1e5), "splat 7 has a harmonic beyond 65504"),
    ],
)
def test_a_scene_that_cannot_be_drawn(tmp_path: Path, splats: Splats, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        write_program(tmp_path, {"sort_free": (splats, LC), "sorted": (splats, SORTED)}, [], SIZE)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sets", "size", "settings", "words"),
    [
        ({"sort_free": LC}, SIZE, Settings(), "no scene for the program sorted"),
        ({"sort_free": SORTED, "sorted": SORTED}, SIZE, Settings(), "sort_free takes"),
        ({"sort_free": LC, "sorted": LC}, SIZE, Settings(), "of rule sorted"),
        ({"sort_free": LC, "sorted": SORTED}, (0, 9), Settings(), "a frame of"),
        ({"sort_free": LC, "sorted": SORTED}, SIZE, Settings(key_bits=8), "keys of 8 bits"),  # type: ignore[arg-type]
    ],
)
def test_a_request_that_makes_no_sense(
    tmp_path: Path, sets: dict[str, Blend], size: Any, settings: Settings, words: str
) -> None:
    scenes = {name: (cloud(5), blend) for name, blend in sets.items()}
    with pytest.raises(InputError, match=words):
        write_program(tmp_path, scenes, [CAMERA], size, settings)
