"""What the suite `wsr` computes by itself, and its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from edgeport_recipes.wsr_splatting import generated
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.splats import Blend, Splats

from benchmarks.tables import DEFAULT, NOT_RUN, Results, Row
from benchmarks.wsr import trainings
from benchmarks.wsr_frames import contributions, overdraw
from benchmarks.wsr_tables import ARMS, tables

SCENE = generated.make(0, views=9, size=(24, 18), points=40)
WHITE = Blend("sorted", background=(0.0, 0.0, 0.0))


def spheres(opacity: float, *depths: float) -> Splats:
    """Returns white balls, one behind the other, before the scene's first training camera."""
    camera = SCENE.cameras[SCENE.training[0]]
    forward = camera.view[2, :3]
    positions = torch.stack([camera.eye + depth * forward for depth in depths])
    count = len(depths)
    return Splats(
        positions,
        torch.full((count, 3), -1.5),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count,), opacity).logit(),
        torch.full((count, 1, 3), 0.5 / 0.28209479177387814),
    )


def test_contributions_add_up_to_the_images_and_know_what_is_hidden() -> None:
    splats = spheres(0.98, 2.0, 2.2, 2.4)
    found = contributions(splats, WHITE, SCENE)
    white = sum(
        float(render(splats, WHITE, one.view, one.intrinsics, one.size)[..., 0].sum())
        for one in (SCENE.cameras[index] for index in SCENE.training)
    )
    assert float(found.sum()) == pytest.approx(white, rel=1e-4)
    assert found[0] > found[1] > 0  # most cameras stand on the first one's side


def test_overdraw_is_the_area_of_what_is_drawn() -> None:
    camera = SCENE.cameras[SCENE.training[0]]
    one, two = (overdraw(spheres(0.5, *depths), WHITE, camera, (240, 180)) for depths in
                ((2.0,), (2.0, 2.0)))  # fmt: skip
    assert two == pytest.approx(2 * one) and one > 0
    alphas = render(spheres(0.5, 2.0), WHITE, camera.view, 10 * camera.intrinsics, (240, 180))
    assert one == pytest.approx(float((alphas[..., 0] > 0).float().mean()), rel=0.05)


def test_three_seeds_carry_the_claim_and_one_the_controls() -> None:
    runs = [(one.arm, one.seed) for one in trainings(False) if one.scene == "fox"]
    assert {arm for arm, _ in runs} == set(ARMS)
    assert [sum(arm == name for arm, _ in runs) for name in ARMS] == [3, 3, 1, 1, 1]


def test_the_tables_show_what_was_not_run(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl", DEFAULT)
    assert tables(results).count(NOT_RUN) > 40
    told = {"scene": "fox", "iterations": 2000, "size": [135, 240], "seed": 0}
    results.add(
        [
            Row("wsr", f"train fox {arm} seed 0", arm, "psnr_db", value, "dB", parameters=told)
            for arm, value in (("sorted", 31.0), ("lc", 30.75))
        ]
    )
    (line,) = [one for one in tables(results).splitlines() if one.startswith("| lc ")][:1]
    assert "30.75" in line and "-0.25" in line and "27.19 / 0.804" in line
