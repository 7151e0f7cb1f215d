"""Suite `wsr`: image quality, popping and cost of splatting with a sort and without.

Each training is a group and keeps its files and checkpoints in benchmarks/results/wsr, so that an
interrupted one goes on. Frames are drawn by the two programs of one export on this machine's GPU,
or on a software driver of Vulkan, which its name says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeport_recipes.wsr_splatting import evaluate, scenes
from edgeport_recipes.wsr_splatting.cameras import Camera
from edgeport_recipes.wsr_splatting.frames import FrameTimes, frame_times
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.model import project
from edgeport_recipes.wsr_splatting.ply import load_ply
from edgeport_recipes.wsr_splatting.program import PROGRAMS, write_program
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.splats import Blend, Rule, Splats
from edgeport_recipes.wsr_splatting.train import advance, first_run, train
from edgeport_recipes.wsr_splatting.trainable import neighbour_distances

from benchmarks.data import data_folder
from benchmarks.tables import Results, Row, ratio_fields, timing_fields
from benchmarks.wsr_tables import tables
from edgeport.measure import environment, interleave
from edgeport.private import scratch_directory
from edgeport.stages import host_threads

__all__ = ["run", "tables"]

SUITE = "wsr"
WORK = Path(__file__).parent / "results" / "wsr"
FOX, GARDEN = "gs/fox", "gs/gsplat_garden/test_garden.npz"
SIZES = ((512, 512), (1280, 720))
COUNTS = (10_000, 50_000, 138_766)
FRAME_SECONDS = {"default": 20.0, "full": 120.0}
STEP_SECONDS = {"default": 40.0, "full": 200.0}
GARDEN_OPACITY = 0.5  # the file has points, which have none


@dataclass(frozen=True)
class Training:
    """One run: the scene, the rule, whether opacity depends on the view, and the seed."""

    scene: str
    rule: Rule
    view_opacity: bool
    seed: int

    @property
    def arm(self) -> str:
        return self.rule if self.view_opacity else f"{self.rule}, one opacity for all views"

    @property
    def group(self) -> str:
        return f"train {self.scene} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Budget:
    """What every training of a scene has: the same for all arms."""

    iterations: int
    downscale: int
    max_splats: int


BUDGETS = {"fox": Budget(2000, 4, 50_000), "generated": Budget(2000, 1, 8000)}


def trainings(full: bool) -> Iterator[Training]:
    """Yields the runs: three seeds for the two that carry the claim, one for the others."""
    for scene in BUDGETS:
        for seed in range(3):
            for rule in ("sorted", "lc"):
                yield Training(scene, rule, True, seed)
            if full or seed == 0:
                yield from (Training(scene, rule, True, seed) for rule in ("exp", "dir"))
                yield Training(scene, "lc", False, seed)


def run(results: Results, full: bool) -> None:
    """Runs what is not finished: what takes minutes first, and then the trainings."""
    data = data_folder(SUITE, FOX, GARDEN)
    budget = results.budget
    for count, size in product(COUNTS, SIZES):
        group = f"frames {count} {size[0]}x{size[1]}"
        _once(results, group, partial(_garden_frames, data, count, size, group, budget))
    _once(results, "step", partial(_steps, data, budget))
    for one in trainings(full):
        _once(results, one.group, partial(_train, one, data, budget))
    for size in SIZES:
        group = f"frames fox {size[0]}x{size[1]}"
        _once(results, group, partial(_fox_frames, size, group, budget))


def _once(results: Results, group: str, measure: Callable[[], Sequence[Row]]) -> None:
    if not results.finished(group):
        print(f"running {group}", file=sys.stderr, flush=True)
        results.add(measure())


# Training


def scene_of(name: str, data: Path) -> Scene:
    """Returns the photographs of the fox, a quarter of their width, or the generated scene."""
    source = str(data / FOX) if name == "fox" else name
    return scenes.load(source, BUDGETS[name].downscale, cameras=None, points=None, seed=0)


def settings_of(one: Training) -> Settings:
    """Returns the settings of a run: those of its scene's budget."""
    budget = BUDGETS[one.scene]
    return Settings(
        method=one.rule,
        iterations=budget.iterations,
        seed=one.seed,
        max_splats=budget.max_splats,
        view_opacity=one.view_opacity,
    )


def folder_of(one: Training) -> Path:
    """Returns where a run keeps its files."""
    return WORK / one.group.removeprefix("train ").replace(", ", " ").replace(" ", "-")


def _train(one: Training, data: Path, budget: str) -> list[Row]:
    scene, folder = scene_of(one.scene, data), folder_of(one)
    settings = settings_of(one)
    told = environment(torch.get_num_threads())
    metrics = train(scene, settings, folder, origin={"scene": one.scene}, resume=True)
    splats, blend = load_ply(folder / one.rule / "splats.ply")
    camera = scene.cameras[scene.held_out[0]]
    moving = evaluate.popping(splats, blend, camera, scene.centre)
    values = {
        "psnr_db": (metrics["psnr_db"], "dB"),
        "ssim": (metrics["ssim"], "1"),
        "splats": (metrics["splats"], "splats"),
        "popping_change": (moving["largest_change"], "1"),
        "popping_jump": (moving["largest_jump"], "1"),
    }
    views = tuple(round(float(view["psnr_db"]), 3) for view in metrics["held_out"])
    parameters = {
        "scene": one.scene,
        "rule": one.rule,
        "view_opacity": one.view_opacity,
        "seed": one.seed,
        "iterations": settings.iterations,
        "size": list(camera.size),
    }
    return [
        Row(
            SUITE, one.group, one.arm, metric, float(value), unit, parameters=parameters,
            samples=views if metric == "psnr_db" else (), budget=budget, environment=told,
        )
        for metric, (value, unit) in values.items()
    ]  # fmt: skip


def _steps(data: Path, budget: str) -> list[Row]:
    """Returns the time of a step with each rule, interleaved, from the fox's first splats on."""
    scene, threads = scene_of("fox", data), host_threads()
    torch.set_num_threads(threads)
    calls: dict[str, Callable[[], float]] = {}
    for rule in ("sorted", "dir", "exp", "lc"):
        start = first_run(scene, settings_of(Training("fox", rule, True, 0)))
        calls[rule] = lambda start=start: advance(start, scene)
    timings = interleave(calls, rounds=None, seconds=STEP_SECONDS[budget], warmup_seconds=10.0)
    told = environment(threads)
    return [
        Row(SUITE, "step", rule, **timing_fields(timing), budget=budget, environment=told)
        for rule, timing in timings.items()
    ]


# Frames


def garden(data: Path, count: int) -> tuple[Splats, Camera]:
    """Returns `count` of the garden's points as round splats, as wide as their neighbours are far.

    Which points is drawn with a seed; the camera is the file's first.
    """
    with np.load(data / GARDEN, allow_pickle=False) as arrays:
        points, colours = arrays["means3d"], arrays["colors"]
        view, matrix = arrays["viewmats"][0], arrays["Ks"][0]
        size = (int(arrays["width"]), int(arrays["height"]))
    chosen = np.random.default_rng(0).permutation(len(points))[:count]
    positions = torch.from_numpy(points[chosen])
    shades = torch.from_numpy(colours[chosen]).float() / 255
    scales = neighbour_distances(positions).clamp(min=1e-6).log()[:, None].repeat(1, 3)
    opacity = torch.full((len(chosen),), GARDEN_OPACITY).logit()
    splats = Splats(
        positions,
        scales,
        torch.tensor([1.0, 0, 0, 0]).repeat(len(chosen), 1),
        opacity,
        ((shades - 0.5) / C0)[:, None],
    )
    intrinsics = torch.tensor([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    return splats, Camera("garden", torch.from_numpy(view), intrinsics, size)


def _garden_frames(
    data: Path, count: int, size: tuple[int, int], group: str, budget: str
) -> list[Row]:
    splats, camera = garden(data, count)
    depths = splats.positions @ camera.view[2, :3] + camera.view[2, 3]
    lc = Blend("lc", sigma=1.5 * float(depths.quantile(0.99)))
    sets = {"sort_free": (splats, lc), "sorted": (splats, Blend())}
    return _frames(sets, camera, size, group, budget)


def _fox_frames(size: tuple[int, int], group: str, budget: str) -> list[Row]:
    """Returns the frames of the trained fox: each program draws the splats trained for it."""
    folders = {rule: folder_of(Training("fox", rule, True, 0)) / rule for rule in ("lc", "sorted")}
    sets = {
        name: load_ply(folder / "splats.ply") for name, folder in zip(PROGRAMS, folders.values())
    }
    told = json.loads((folders["lc"] / "cameras.json").read_text(encoding="utf-8"))
    return _frames(sets, Camera.from_dict(told["cameras"][0]), size, group, budget)


def _frames(
    sets: Mapping[str, tuple[Splats, Blend]],
    camera: Camera,
    size: tuple[int, int],
    group: str,
    budget: str,
) -> list[Row]:
    with scratch_directory() as folder:
        write_program(folder, sets, [camera.to_dict()], size)
        found = frame_times(folder, camera.to_dict(), FRAME_SECONDS[budget])
    told = {
        **environment(host_threads()),
        "adapter": f"{found.adapter.name} ({found.adapter.backend})",
    }
    return [
        Row(SUITE, group, arm, budget=budget, environment=told, **fields)
        for arm, fields in _frame_fields(found, sets, camera)
    ]


def _frame_fields(
    found: FrameTimes, sets: Mapping[str, tuple[Splats, Blend]], camera: Camera
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in PROGRAMS:
        splats, blend = sets[name]
        parameters = {"splats": splats.count, "frame": list(found.frame)}
        yield name, {**timing_fields(found.timings[name]), "parameters": parameters}
        mine = {"unit": "B", "parameters": parameters}
        yield name, {"metric": "bytes", "value": float(found.bytes[name]), **mine}
        drawn = overdraw(splats, blend, camera, found.frame)
        yield name, {"metric": "overdraw", "value": drawn, "unit": "splats a pixel",
                     "parameters": parameters}  # fmt: skip
        for label, spent in found.pass_ms.get(name, {}).items():
            yield name, {"metric": f"pass_ms:{label}", "value": spent, "unit": "ms",
                         "parameters": parameters}  # fmt: skip
    yield "sort_free", {**ratio_fields(found.speedup), "parameters": parameters}


@torch.no_grad()
def overdraw(splats: Splats, blend: Blend, camera: Camera, frame: tuple[int, int]) -> float:
    """Returns how many splats reach a pixel on average: areas of ellipses over the frame's area.

    Those that are cut by the frame's border count whole.
    """
    scale = frame[0] / camera.size[0]
    intrinsics = camera.intrinsics * scale
    seen = project(splats, blend, camera.view, intrinsics, frame)
    inside = seen.visible & (seen.means >= 0).all(1) & (seen.means < torch.tensor(frame)).all(1)
    a, b, c = seen.conics[inside].T
    areas = torch.pi * 2 * torch.log(255 * seen.opacities[inside]) / torch.sqrt(a * c - b * b)
    return float(areas.sum()) / (frame[0] * frame[1])
