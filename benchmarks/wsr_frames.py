"""What frames cost in suite `wsr`: the two programs of one export, interleaved on one adapter.

The adapter is this machine's GPU, or a software driver of Vulkan, which its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeport_recipes.wsr_splatting import evaluate
from edgeport_recipes.wsr_splatting.cameras import Camera
from edgeport_recipes.wsr_splatting.frames import FrameTimes, frame_times
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.model import composite, project
from edgeport_recipes.wsr_splatting.ply import load_ply
from edgeport_recipes.wsr_splatting.program import PROGRAMS, Settings, write_program
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.splats import Blend, Rule, Splats
from edgeport_recipes.wsr_splatting.trainable import neighbour_distances

from benchmarks.tables import Row, ratio_fields, timing_fields
from benchmarks.wsr_runs import SUITE, Training, folder_of, scene_of
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.stages import host_threads

GARDEN = "gs/gsplat_garden/test_garden.npz"
SIZES = ((512, 512), (1280, 720))
COUNTS = (10_000, 50_000, 138_766)
KEPT = (0.7, 0.5, 0.3)  # of a trained scene's splats, those that contribute most
OTHERWISE = {
    "projected in the vertex stage": Settings(projection="vertex"),
    "sorted into 8 bits": Settings(canvas="rgba8unorm"),
}
SECONDS = {"default": 15.0, "full": 120.0}
GARDEN_OPACITY = 0.5  # the file has points, which have none
_DRAWN_FOR: Mapping[str, Rule] = {"sort_free": "lc", "sorted": "sorted"}

Trained = tuple[Splats, Blend]
Group = tuple[str, Callable[[], Sequence[Row]]]


def garden_groups(data: Path, budget: str) -> Iterator[Group]:
    """Yields name and measurement of each size of the garden's points, the same for both."""
    for count, size in product(COUNTS, SIZES):
        group = f"frames {count} {size[0]}x{size[1]}"
        yield group, partial(_garden_frames, data, count, size, group, budget)


def fox_groups(data: Path, budget: str) -> Iterator[Group]:
    """Yields those of the trained fox: each program draws the splats that were trained for it."""
    for size in SIZES:
        group = f"frames fox {size[0]}x{size[1]}"
        yield group, partial(_fox_frames, data, 1.0, size, group, budget)
    for what, settings in OTHERWISE.items():
        group = f"frames fox, {what}, 512x512"
        yield group, partial(_fox_frames, data, 1.0, SIZES[0], group, budget, settings)
    for kept in KEPT:
        group = f"frames fox pruned to {kept:.0%} 512x512"
        yield group, partial(_fox_frames, data, kept, SIZES[0], group, budget)


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


def _fox_frames(
    data: Path,
    kept: float,
    size: tuple[int, int],
    group: str,
    budget: str,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> list[Row]:
    scene = scene_of("fox", data)
    sets = {name: _trained(rule) for name, rule in _DRAWN_FOR.items()}
    if kept < 1:
        sets = {name: _pruned(one, scene, kept) for name, one in sets.items()}
    rows = _frames(sets, scene.cameras[0], size, group, budget, settings)
    for name, trained in sets.items():
        score = float(evaluate.score(*trained, scene)["psnr_db"])
        parameters = {"splats": trained[0].count, "kept": kept}
        rows.append(
            Row(SUITE, group, name, "psnr_kept_db", score, "dB", parameters=parameters,
                budget=budget, environment=rows[0].environment)
        )  # fmt: skip
    return rows


def _trained(rule: Rule) -> Trained:
    return load_ply(folder_of(Training("fox", rule, True, 0)) / rule / "splats.ply")


def _pruned(trained: Trained, scene: Scene, kept: float) -> Trained:
    """Returns the share of splats that adds most to the training views; nothing is retrained."""
    splats, blend = trained
    most = contributions(splats, blend, scene).topk(round(kept * splats.count)).indices
    chosen = most.sort().values
    return splats.map(lambda values: values[chosen]), blend


def contributions(splats: Splats, blend: Blend, scene: Scene) -> torch.Tensor:
    """Returns the weight that each splat's colour has in the pixels of all training views, [N].

    A pixel is a sum of colours times weights: the weights are the gradient by the colours.
    """
    total = torch.zeros(splats.count)
    for index in scene.training:
        camera = scene.cameras[index]
        with torch.no_grad():
            seen = project(splats, blend, camera.view, camera.intrinsics, camera.size)
        seen.colours.requires_grad_()
        composite(seen, blend, camera.size)[..., 0].sum().backward()
        assert seen.colours.grad is not None
        total += seen.colours.grad[:, 0]
    return total


def _frames(
    sets: Mapping[str, Trained],
    camera: Camera,
    size: tuple[int, int],
    group: str,
    budget: str,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> list[Row]:
    with scratch_directory() as folder:
        write_program(folder, sets, [camera.to_dict()], size, settings)
        found = frame_times(folder, camera.to_dict(), SECONDS[budget])
    told = {
        **environment(host_threads()),
        "adapter": f"{found.adapter.name} ({found.adapter.backend})",
    }
    return [
        Row(SUITE, group, arm, budget=budget, environment=told, **fields)
        for arm, fields in _frame_fields(found, sets, camera)
    ]


def _frame_fields(
    found: FrameTimes, sets: Mapping[str, Trained], camera: Camera
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of the rows; of passes only where a software driver does not mix them."""
    for name in PROGRAMS:
        splats, blend = sets[name]
        told = {"parameters": {"splats": splats.count, "frame": list(found.frame)}}
        yield name, {**timing_fields(found.timings[name]), **told}
        values = {
            "bytes": (float(found.bytes[name]), "B"),
            "overdraw": (overdraw(splats, blend, camera, found.frame), "splats a pixel"),
        }
        if before := found.timings.get(f"{name} before drawing"):
            values["before_drawing_ms"] = (before.median_ms, "ms")
        if not found.adapter.is_software:
            spent = found.pass_ms.get(name, {}).items()
            values.update({f"pass_ms:{label}": (one, "ms") for label, one in spent})
        for metric, (value, unit) in values.items():
            yield name, {"metric": metric, "value": value, "unit": unit, **told}
    yield "sort_free", {**ratio_fields(found.speedup), **told}


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
