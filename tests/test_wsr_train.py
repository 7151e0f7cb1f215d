"""Training: what it learns, what a kill leaves, what its files say, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeport_recipes.wsr_splatting import evaluate, generated, model, scenes, transforms
from edgeport_recipes.wsr_splatting.cameras import Camera, look_at
from edgeport_recipes.wsr_splatting.densify import Sightings, densify, halved
from edgeport_recipes.wsr_splatting.losses import psnr, ssim, training_loss
from edgeport_recipes.wsr_splatting.ply import load_ply
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.splats import RULES, Blend, Rule
from edgeport_recipes.wsr_splatting.train import CHECKPOINT, train
from edgeport_recipes.wsr_splatting.trainable import neighbour_distances, start
from support import command_environment
from wsr_scene import PARAMETERS, random_splats

from edgeport.errors import InputError

pytest.importorskip("PIL", reason="needs pillow: pip install pillow")
SMALL = Settings(iterations=40, max_splats=400, degree=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiles of a small frame gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def room() -> Scene:
    return generated.make(views=10, size=(48, 36), points=300)


@pytest.mark.parametrize("method", RULES)
def test_every_method_learns_the_room(room: Scene, tmp_path: Path, method: Rule) -> None:
    settings = replace(SMALL, method=method, iterations=90)
    first = start(room, settings, torch.Generator().manual_seed(0))
    before = evaluate.score(*first.final(), room)["psnr_db"]
    metrics = train(room, settings, tmp_path)
    assert metrics["psnr_db"] > before + 2
    assert metrics["psnr_db"] > 17
    assert metrics["splats"] == 400  # the same for all of them
    splats, blend = load_ply(tmp_path / method / "splats.ply")
    assert blend.rule == method
    assert (splats.opacity_sh is None) == (method == "sorted")
    again = evaluate.score(splats, blend, room)
    assert again["psnr_db"] == pytest.approx(metrics["psnr_db"], abs=1e-3)


def test_the_files_say_what_was_done(room: Scene, tmp_path: Path) -> None:
    train(room, replace(SMALL, view_opacity=False), tmp_path, origin={"scene": "room"})
    folder = tmp_path / "lc"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["settings"]["iterations"] == 40
    assert metrics["origin"] == {"scene": "room"}
    assert [view["name"] for view in metrics["held_out"]] == ["000", "008"]
    assert metrics["seconds_per_iteration"] > 0
    cameras = json.loads((folder / "cameras.json").read_text())["cameras"]
    assert [one["held_out"] for one in cameras] == [at in (0, 8) for at in range(10)]
    camera = Camera.from_dict(cameras[3])
    assert torch.equal(camera.view, room.cameras[3].view)
    assert camera.size == (48, 36)
    assert load_ply(folder / "splats.ply")[0].opacity_sh is None


# Killed runs


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from edgeport_recipes.wsr_splatting import scenes
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.train import train

torch.set_num_threads(1)
settings = Settings(iterations=40, max_splats=400, degree=1)

def progress(run, loss):
    if run.step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

train(scenes.load(sys.argv[1]), settings, Path(sys.argv[2]), origin={"scene": "room"},
      resume=True, checkpoint_every=10, progress=progress)
"""


def run_until(folder: Path, out: Path, kill_at: int) -> int:
    words = [sys.executable, "-c", KILLED, str(folder), str(out), str(kill_at)]
    return subprocess.run(words, env=command_environment(), timeout=120, check=False).returncode


def test_a_killed_run_goes_on_to_the_same_result(room: Scene, tmp_path: Path) -> None:
    """Killed between two checkpoints, with densification behind and before it."""
    folder, out, whole = (tmp_path / name for name in ("scene", "out", "whole"))
    transforms.write(room, folder)
    assert run_until(folder, out, 34) == -signal.SIGKILL
    assert sorted(one.name for one in (out / "lc").iterdir()) == [CHECKPOINT]
    assert run_until(folder, out, -1) == 0
    settings = Settings(iterations=40, max_splats=400, degree=1)
    train(scenes.load(folder), settings, whole, origin={"scene": "room"})
    found, wanted = (load_ply(one / "lc" / "splats.ply") for one in (out, whole))
    assert found[1] == wanted[1]
    for name in PARAMETERS:
        assert torch.equal(getattr(found[0], name), getattr(wanted[0], name)), name
    scores = [json.loads((one / "lc" / "metrics.json").read_text()) for one in (out, whole)]
    assert scores[0]["held_out"] == scores[1]["held_out"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_reads(room: Scene, tmp_path: Path) -> None:
    folder, out = tmp_path / "scene", tmp_path / "out"
    transforms.write(room, folder)
    code = KILLED.replace("checkpoint_every=10", "checkpoint_every=1").replace(
        "iterations=40", "iterations=4000"
    )
    for turn in range(4):
        words = [sys.executable, "-c", code, str(folder), str(out), "-1"]
        process = subprocess.Popen(words, env=command_environment())
        deadline = time.monotonic() + 60
        while not (out / "lc" / CHECKPOINT).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3 + 0.13 * turn)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    settings = Settings(iterations=4000, max_splats=400, degree=1)
    from edgeport_recipes.wsr_splatting import checkpoint

    assert checkpoint.read(out / "lc" / CHECKPOINT, settings, {"scene": "room"}).step > 4


def test_nothing_of_another_run_is_replaced(room: Scene, tmp_path: Path) -> None:
    few = replace(SMALL, iterations=3)
    train(room, few, tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "lc").iterdir()}
    with pytest.raises(InputError, match=r"holds a run; go on with --resume"):
        train(room, few, tmp_path)
    with pytest.raises(InputError, match=r"another seed; give the same, or another -o"):
        train(room, replace(few, seed=1), tmp_path, resume=True)
    assert kept == {path: path.read_bytes() for path in (tmp_path / "lc").iterdir()}
    assert train(room, few, tmp_path, resume=True)["settings"]["iterations"] == 3
    (tmp_path / "lc" / CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"broken, or of another program"):
        train(room, few, tmp_path, resume=True)
    (tmp_path / "lc" / CHECKPOINT).unlink()
    with pytest.raises(InputError, match=r"splats\.ply of no run of ours"):
        train(room, few, tmp_path)


def test_cameras_that_see_no_splat_are_refused(room: Scene, tmp_path: Path) -> None:
    camera = room.cameras[1]
    behind = camera.eye - 3 * camera.view[2, :3]
    blind = replace(room, cameras=(camera,) * 10, points=room.points * 0.1 + behind)
    with pytest.raises(InputError, match="no camera sees any splat"):
        train(blind, SMALL, tmp_path)


# The command


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "edgeport_recipes.wsr_splatting.train", *arguments]
    return subprocess.run(
        words, env=command_environment(), capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_trains_and_says_so(tmp_path: Path, room: Scene) -> None:
    transforms.write(room, tmp_path / "scene")
    small = ("--iterations", "5", "--max-splats", "200", "--threads", "1")
    out = ("-o", str(tmp_path / "out"))
    done = run_command("--scene", str(tmp_path / "scene"), "--method", "dir", *small, *out)
    assert done.returncode == 0, done.stderr
    assert "dir: PSNR" in done.stdout and "2 held-out views, 200 splats" in done.stdout
    assert "5/5" in done.stderr
    refused = run_command("--scene", str(tmp_path / "none"), *small, *out)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "lc").exists()


# Loss and metrics


def test_ssim_is_the_published_one() -> None:
    structural = pytest.importorskip(
        "skimage.metrics", reason="needs skimage: pip install scikit-image"
    )
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(40, 56, 3, generator=rng, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, generator=rng, dtype=torch.float64)).clamp(0, 1)
    wanted = structural.structural_similarity(
        a.numpy(), b.numpy(), channel_axis=2, data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert float(ssim(a, b)) == pytest.approx(wanted, abs=1e-9)


def test_ssim_by_its_formula_at_every_window() -> None:
    """The same from plain loops over the windows."""
    rng = np.random.default_rng(0)
    a, b = rng.random((14, 15)), rng.random((14, 15))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(4):
        for column in range(5):
            x, y = (one[row : row + 11, column : column + 11] for one in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            xx, yy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
            xy = (window * x * y).sum() - mx * my
            like = (2 * mx * my + 1e-4) * (2 * xy + 9e-4)
            values.append(like / ((mx**2 + my**2 + 1e-4) * (xx + yy + 9e-4)))
    planes = [torch.from_numpy(one)[:, :, None].repeat(1, 1, 3) for one in (a, b)]
    assert float(ssim(*planes)) == pytest.approx(float(np.mean(values)), abs=1e-12)


def test_psnr_and_the_loss() -> None:
    wanted = torch.full((16, 16, 3), 0.5)
    assert psnr(wanted + 0.1, wanted) == pytest.approx(20.0, abs=1e-4)
    assert psnr(wanted + 7, wanted) == pytest.approx(psnr(torch.ones_like(wanted), wanted))
    assert float(training_loss(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    image = torch.full((16, 16, 3), 1.5, requires_grad=True)
    training_loss(image, wanted).backward()
    assert bool((image.grad > 0).all())  # too bright a pixel still learns to be darker


# Densification


def test_densification_doubles_what_the_picture_asks_for(room: Scene) -> None:
    settings = replace(SMALL, method="lc")
    scene = start(room, settings, torch.Generator().manual_seed(0))
    count = scene.count
    before = {name: value.detach().clone() for name, value in scene.values.items()}
    for name in scene.moments:
        scene.moments[name] += 1
    sightings = Sightings(count)
    sightings.views += 1
    sightings.opacities += 0.5
    sightings.opacities[7] = 0.001  # was never seen well: goes
    sightings.slopes[[3, 11]] = 5.0
    with torch.no_grad():
        scene.values["log_scales"][3] = -9.0  # small: cloned; 11 is split
        scene.values["log_scales"][11] = 0.0
    before["log_scales"] = scene.values["log_scales"].detach().clone()
    rng = torch.Generator().manual_seed(1)
    densify(scene, sightings, count + 1, room.extent, rng)
    assert scene.count == count + 1
    values = {name: value.detach() for name, value in scene.values.items()}
    rows = [at for at in range(count) if at != 7]
    new = {old: rows.index(old) for old in (3, 11)}
    twins = {tuple(values["sh"][at].flatten().tolist()): at for at in (count - 1, count)}
    clone = twins[tuple(before["sh"][3].flatten().tolist())]
    assert torch.equal(values["positions"][clone], before["positions"][3])
    part = twins[tuple(before["sh"][11].flatten().tolist())]
    for at in (part, new[11]):
        assert not torch.equal(values["positions"][at], before["positions"][11])
        torch.testing.assert_close(values["log_scales"][at], torch.full((3,), -np.log(1.6)).float())
    opacities = torch.sigmoid(values["opacity_logits"])
    torch.testing.assert_close(opacities[[clone, new[3], part]], torch.full((3,), 0.15))
    assert float(opacities[0]) == pytest.approx(0.3)
    moved = scene.moments["first.positions"]
    assert float(moved[clone].sum()) == 0 and float(moved[0].sum()) == 3
    assert all(value.requires_grad and value.is_leaf for value in scene.values.values())


@pytest.mark.parametrize("weighted", [True, False])
def test_two_splats_of_half_the_opacity_look_as_one(weighted: bool) -> None:
    logit = torch.tensor([1.3])
    each = torch.sigmoid(halved(logit, weighted))
    both = 2 * each if weighted else 1 - (1 - each) ** 2
    torch.testing.assert_close(both, torch.sigmoid(logit))


def test_the_schedule_fills_the_limit_for_all_methods() -> None:
    settings = Settings(iterations=2000, max_splats=1000)
    steps = [step for step in range(1, 2001) if settings.densifies_at(step)]
    assert (steps[0], steps[-1], len(steps)) == (200, 1000, 9)
    assert [settings.count_at(step, 600) for step in (0, 200, 600, 1000, 2000)] == [
        *(600, 600, 800, 1000, 1000)
    ]
    assert [settings.degree_at(step) for step in (0, 199, 200, 600, 1999)] == [0, 0, 1, 3, 3]


def test_distances_to_neighbours() -> None:
    points = torch.tensor([[0, 0, 0], [1.0, 0, 0], [0, 2, 0], [0, 0, 2], [50, 0, 0]])
    assert float(neighbour_distances(points)[0]) == pytest.approx(3**0.5)
    assert neighbour_distances(points[:1]).shape == (1,)


# Popping


def test_popping_shows_where_depths_change_places() -> None:
    """Two large splats cross in depth while the camera turns: the sorted picture jumps."""
    splats = random_splats(2, 0, dtype=torch.float32)
    splats = replace(
        splats,
        positions=torch.tensor([[-0.3, 0, 0.0005], [0.3, 0, -0.0005]]),
        log_scales=torch.full((2, 3), -0.7),
        opacity_logits=torch.tensor([2.0, 2.0]),
        sh=torch.tensor([[[1.5, -1.5, 0]], [[-1.5, 1.5, 0]]]),
        opacity_sh=None,
    )
    eye, up = torch.tensor([0, 0, -3.0]), torch.tensor([0, 1.0, 0])
    view = look_at(eye, torch.zeros(3), up)
    camera = Camera("a", view, torch.tensor([40.0, 40, 16, 16]), (32, 32))
    changes = {
        rule: evaluate.popping(splats, Blend(rule, sigma=8.0), camera, torch.zeros(3), 10)
        for rule in ("sorted", "lc")
    }
    assert changes["sorted"]["largest_change"] > 0.3
    assert changes["lc"]["largest_change"] < 0.1
    assert changes["sorted"]["largest_jump"] > 5 * changes["lc"]["largest_jump"]
    assert changes["lc"]["mean_change"] > 0


def test_a_picture_is_held_to_its_range() -> None:
    splats = random_splats(20, 0, dtype=torch.float32)
    splats = replace(splats, sh=splats.sh + 9)
    camera = Camera("a", torch.eye(4), torch.tensor([40.0, 40, 16, 16]), (32, 32))
    shown = evaluate.picture(splats, Blend("dir"), camera)
    raw = model.render(splats, Blend("dir"), camera.view, camera.intrinsics, camera.size)
    assert float(raw.max()) > 1 and float(shown.max()) == 1


def test_the_backgrounds_weight_does_not_fall_below_its_first(room: Scene) -> None:
    """Where it is tiny, one splat that passes the cut at 1/255 changes an empty pixel at once."""
    scene = start(room, SMALL, torch.Generator().manual_seed(0))
    scene.values["background_weight"].grad = torch.tensor(1.0)
    scene.step(0, room.extent)
    assert float(scene.blend().background_weight.detach()) == pytest.approx(0.05)
    scene.values["background_weight"].grad = torch.tensor(-100.0)
    scene.step(1, room.extent)
    assert float(scene.blend().background_weight.detach()) > 0.0501
