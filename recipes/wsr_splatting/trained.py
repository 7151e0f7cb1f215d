"""What `--scene` names: a folder that train.py wrote, a .ply or .splat file, or "generated"."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from edgeport_recipes.wsr_splatting import generated
from edgeport_recipes.wsr_splatting.cameras import Camera, held_out, look_at
from edgeport_recipes.wsr_splatting.ply import load_scene
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.splats import RULES, Blend, Rule, Splats
from edgeport_recipes.wsr_splatting.train import train
from edgeport_recipes.wsr_splatting.trainable import start
from torch import Tensor

from edgeport.errors import InputError

GENERATED = "generated"
SMALL = {"views": 40, "size": (96, 72), "points": 3000}
SMALL_SPLATS = 4000  # of the generated scene where it is trained on the way
_FRAME = (960, 540)  # of a file without cameras
_ORBIT = 8  # its views

Trained = tuple[Splats, Blend]


@dataclass(frozen=True)
class SplatScene:
    """Splats by the rule they were trained with, and the views to see them from.

    `held_out` are the indices of the cameras that no training saw; `scores` what train.py wrote.
    """

    name: str
    sets: Mapping[Rule, Trained]
    cameras: tuple[Camera, ...]
    held_out: tuple[int, ...]
    centre: Tensor
    scores: Mapping[Rule, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, rule: Rule) -> Trained:
        """Returns the set trained with a rule; where there is none, another set so blended.

        The splats stay as they are. LC's weight then falls to 0 at twice the farthest splat, EXP's
        by e over half the way to it.
        """
        if rule in self.sets:
            return self.sets[rule]
        splats, blend = next(iter(self.sets.values()))
        sigma = 2 / self.farthest() if rule == "exp" else 2 * self.farthest()
        return splats, Blend(rule, sigma, 1.0, blend.background, blend.background_weight)

    def farthest(self) -> float:
        """Returns the depth of the splat that is farthest from any of the cameras."""
        splats, _ = next(iter(self.sets.values()))
        views = torch.stack([camera.view[2] for camera in self.cameras])
        depths = splats.positions @ views[:, :3].T + views[:, 3]
        return max(float(depths.max()), 1e-3)


def load_trained(scene: str) -> SplatScene:
    """Returns the scene of a folder or file; raises InputError with what is wrong with it."""
    path = Path(scene)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        splats, blend = load_scene(path)
        cameras = _around(splats)
        centre = splats.positions.median(0).values
        return SplatScene(path.stem, {blend.rule: (splats, blend)}, cameras, (0,), centre)
    raise InputError(
        f"--scene {scene}: no such file or folder; give {GENERATED!r}, what train.py wrote, a .ply"
        " or a .splat file"
    )


def _of_folder(path: Path) -> SplatScene:
    folders = {rule: path / rule for rule in RULES if (path / rule / "splats.ply").is_file()}
    if not folders and (path / "splats.ply").is_file():
        folders = {load_scene(path / "splats.ply")[1].rule: path}
    if not folders:
        raise InputError(
            f"--scene {path}: no METHOD/splats.ply in it; make one with python -m"
            f" edgeport_recipes.wsr_splatting.train --scene {path} --method lc -o OUT, and give OUT"
        )
    sets = {rule: load_scene(folder / "splats.ply") for rule, folder in folders.items()}
    scores = {rule: _json(folder / "metrics.json") for rule, folder in folders.items()}
    facts = _json(next(iter(folders.values())) / "cameras.json")
    cameras = tuple(Camera.from_dict(one) for one in facts["cameras"])
    kept = tuple(index for index, one in enumerate(facts["cameras"]) if one["held_out"])
    centre = torch.tensor(facts["centre"], dtype=torch.float32)
    return SplatScene(path.name, sets, cameras, kept or (0,), centre, scores)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); train the scene again") from None


def _around(splats: Splats) -> tuple[Camera, ...]:
    """Returns views on a circle around the splats of a file, which tells no cameras.

    y points down, as in the files that reconstruction writes.
    """
    centre = splats.positions.median(0).values
    distances = (splats.positions - centre).norm(dim=1)
    radius = max(2.0 * float(distances.quantile(0.8)), 1.0)
    width, height = _FRAME
    intrinsics = torch.tensor([0.9 * width, 0.9 * width, width / 2, height / 2])
    cameras = []
    for index in range(_ORBIT):
        turn = 2 * math.pi * index / _ORBIT
        away = torch.tensor([math.sin(turn), -0.3, -math.cos(turn)])
        view = look_at(centre + radius * away, centre, torch.tensor([0.0, -1.0, 0.0]))
        cameras.append(Camera(f"orbit {index}", view, intrinsics, _FRAME))
    return tuple(cameras)


@lru_cache(maxsize=2)
def starting(seed: int) -> SplatScene:
    """Returns the generated scene's splats before any training, for each blend."""
    with _one_thread():
        scene = generated.make(seed, **SMALL)
        sets = {}
        for rule in RULES:
            made = start(scene, Settings(method=rule), torch.Generator().manual_seed(seed))
            sets[rule] = made.final()
    cameras = scene.cameras
    return SplatScene(GENERATED, sets, cameras, held_out(len(cameras)), scene.centre)


def train_small(seed: int, iterations: int, folder: Path) -> SplatScene:
    """Returns the generated scene trained for a few iterations with either blend, in `folder`."""
    scene = generated.make(seed, **SMALL)
    with _one_thread():
        for rule in ("sorted", "lc"):
            settings = Settings(
                method=rule, iterations=iterations, seed=seed, max_splats=SMALL_SPLATS, degree=2
            )
            train(scene, settings, folder, origin={"scene": GENERATED, "seed": seed})
    return replace(_of_folder(folder), name=GENERATED)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch to one thread: tiles of a small frame are done before a second one wakes up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
