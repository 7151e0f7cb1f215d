"""What the suite `vit` computes by itself, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import vit_distil, vit_runs, vit_tables
from benchmarks.tables import Results, Row
from benchmarks.vit_runs import Training, difference, trainings


def finish(one: Training, scores: list[float]) -> None:
    one.folder.mkdir(parents=True)
    (one.folder / "metrics.json").write_text(json.dumps({"scores": {"top1": scores}}))


def test_the_difference_is_of_the_same_images_and_of_finished_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vit_runs, "WORK", tmp_path)
    pairs = [
        (
            Training("padre", "shapes", "padre3", seed),
            Training("padre", "shapes", "attention", seed),
        )
        for seed in range(3)
    ]
    assert difference(pairs) is None
    rng = np.random.default_rng(0)
    for ours, theirs in pairs[:2]:
        first = rng.integers(0, 2, 400).astype(float)
        better = np.where(np.arange(400) < 40, 1.0, first)  # 40 images are gained where not right
        finish(ours, better.tolist())
        finish(theirs, first.tolist())
    found = difference(pairs)
    assert found is not None and len(found.seeds) == 2
    assert found.value == pytest.approx(np.mean(found.seeds)) and 0 < found.value < 0.1
    low, high = found.interval
    assert 0 < low < found.value < high < 0.1  # unpaired it would span 0: the images vary by 0.025


def test_claims_have_three_seeds_and_controls_one_until_all_are_asked_for() -> None:
    def seeds(full: bool, *what: str) -> int:
        found = [one for one in trainings(full) if (one.recipe, one.task, one.arm) == what]
        assert len({one.group for one in found}) == len({one.folder for one in found}) == len(found)
        return len(found)

    assert [seeds(False, "padre", "cifar10", arm) for arm in ("attention", "padre3")] == [3, 3]
    assert [seeds(False, "tosa", task, "tosa") for task in ("cifar10", "rooms")] == [3, 3]
    assert seeds(False, "padre", "cifar10", "convolutions") == 1
    assert seeds(True, "padre", "cifar10", "convolutions") == 3


def training_row(arm: str, seed: int, value: float, metric: str = "top1") -> Row:
    told = {"recipe": "padre", "task": "cifar10", "seed": seed}
    budget = {"epochs": 8, "rate": 1e-3, "batch": 64}
    return Row(
        "vit", f"{arm} {seed}", arm, metric, value, "1", parameters={**told, "budget": budget}
    )


def test_the_tables_give_the_mean_with_its_seeds_and_say_what_was_not_run(tmp_path: Path) -> None:
    results = Results(tmp_path / "vit.jsonl", "default")
    results.add([training_row("padre3", seed, value) for seed, value in enumerate((0.5, 0.6, 0.7))])
    told = {"recipe": "padre", "task": "cifar10", "baseline": "attention"}
    results.add(
        [
            Row(
                "vit", "compare", "padre3", "difference", 0.021, "1",
                parameters=told, interval=(0.01, 0.03), samples=(0.02, 0.022),
            ),
            Row(
                "vit", "quantized", "padre3", "top1", 0.48, "fraction",
                parameters={
                    "recipe": "padre", "precision": "w8a8", "stage": "quantize", "images": 1000,
                    "drop": 0.012, "drop_interval": (0.004, 0.02),
                },
            ),
        ]
    )  # fmt: skip
    text = vit_tables.tables(results)
    (line,) = [one for one in text.splitlines() if one.startswith("| PADRe-3 ") and "0.6000" in one]
    assert "0.6000 (0.5000 to 0.7000)" in line
    assert "+2.1 (+1.0 to +3.0; seeds +2.0, +2.2)" in line
    assert "8 epochs at 0.001; batches of 64" in text
    assert "+1.2 (+0.4 to +2.0)" in text and text.count("not run") > 20


def test_the_curve_of_a_replacement_has_a_column_for_each(tmp_path: Path) -> None:
    results = Results(tmp_path / "vit.jsonl", "default")
    told = {"kernel": 5, "prefix": "pool"}
    results.add([Row("vit", "d", "whole 50", "top1", 0.61, "fraction", parameters=told)])
    (line,) = [one for one in vit_distil.tables(results).splitlines() if "then whole" in one]
    assert [one.strip() for one in line.split("|")[1:3]] == ["then whole, 50 steps", "61.0%"]
    assert line.count("not run") == 3
