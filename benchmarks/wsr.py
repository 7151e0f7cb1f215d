"""Suite `wsr`: image quality, popping and cost of splatting with a sort and without.

Each training is a group and keeps its files and checkpoints in benchmarks/results/wsr, so that an
interrupted one goes on. What frames cost is in `benchmarks.wsr_frames`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from edgeport_recipes.wsr_splatting import evaluate
from edgeport_recipes.wsr_splatting.ply import load_ply
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.train import advance, first_run, train

from benchmarks import wsr_frames
from benchmarks.data import data_folder
from benchmarks.tables import Results, Row, timing_fields
from benchmarks.wsr_runs import BUDGETS, FOX, SUITE, Training, folder_of, scene_of
from benchmarks.wsr_tables import tables
from edgeport.measure import environment, interleave
from edgeport.stages import host_threads

__all__ = ["run", "tables"]

STEP_SECONDS = {"default": 40.0, "full": 200.0}


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
    data = data_folder(SUITE, FOX, wsr_frames.GARDEN)
    for group, measure in wsr_frames.garden_groups(data, results.budget):
        _once(results, group, measure)
    _once(results, "step", partial(_steps, data, results.budget))
    for one in trainings(full):
        _once(results, one.group, partial(_train, one, data, results.budget))
    for group, measure in wsr_frames.fox_groups(data, results.budget):
        _once(results, group, measure)


def _once(results: Results, group: str, measure: Callable[[], Sequence[Row]]) -> None:
    if not results.finished(group):
        print(f"running {group}", file=sys.stderr, flush=True)
        results.add(measure())


# Training


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
