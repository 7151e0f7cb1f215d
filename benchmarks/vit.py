"""Suite `vit`: what the faster vision transformers score, cost and keep when they are quantized.

PADRe and ToSA beside full attention: trained on CIFAR-10 (EDGEPORT_DATA) and on generated tasks.
Each training is a group and keeps its files in benchmarks/results/vit, so that an interrupted one
goes on. Latency is in `benchmarks.vit_latency`, quantization in `benchmarks.vit_quantized`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from edgeport_recipes._shared.vision.cifar import FILE
from edgeport_recipes._shared.vision.tasks import find_task

from benchmarks import vit_distil, vit_latency, vit_quantized
from benchmarks.data import data_folder
from benchmarks.tables import Results, Row
from benchmarks.vit_runs import (
    PADRE,
    PADRE_CONTROLS,
    SEEDS,
    SUITE,
    TOSA,
    TOSA_CONTROLS,
    Training,
    difference,
    scores_of,
    trainings,
)
from benchmarks.vit_tables import tables
from edgeport.measure import environment
from edgeport.metrics import bootstrap_interval

__all__ = ["run", "tables"]


def run(results: Results, full: bool) -> None:
    """Runs what is not finished: the trainings, and then what is made of them."""
    data = data_folder(SUITE, FILE)
    for one in trainings(full):
        _once(results, one.group, partial(_train, one))
    for recipe, tasks, baseline, arms in (
        ("padre", ("cifar10", "shapes", "boxes"), PADRE[0], (*PADRE[1:], *PADRE_CONTROLS)),
        ("tosa", ("cifar10", "rooms", "shapes"), TOSA[0], (*TOSA[1:], *TOSA_CONTROLS)),
    ):
        for task in tasks:
            made = partial(_compare, recipe, task, baseline, arms)
            _once(results, f"compare {recipe} {task}", made)
    for group, measure in (
        *vit_distil.groups(data),
        *vit_quantized.groups(data, results.budget),
        *vit_latency.groups(results.budget),
    ):
        _once(results, group, measure)


def _once(results: Results, group: str, measure: Callable[[], Sequence[Row]]) -> None:
    if not results.finished(group):
        print(f"running {group}", file=sys.stderr, flush=True)
        results.add(measure())


def _train(one: Training) -> list[Row]:
    metrics = one.run()
    threads = environment(int(metrics["threads"]))
    each = scores_of(one)
    metric = find_task(one.task).metric
    parameters = {"recipe": one.recipe, "task": one.task, "seed": one.seed}
    values: dict[str, tuple[float, str, Any]] = {
        name: (float(value), "1", bootstrap_interval(each) if name == metric else None)
        for name, value in metrics["mean"].items()
    }
    for name in ("parameters", "macs", "macs_saving"):
        if name in metrics:
            values[name] = (float(metrics[name]), "1", None)
    for stage, told_of in metrics.get("overlap", {}).items():
        for name, value in told_of["mean"].items():
            spread = bootstrap_interval(np.asarray(told_of["by_image"][name]))
            values[f"overlap after {stage}:{name}"] = (float(value), "1", spread)
    return [
        Row(
            SUITE, one.group, one.arm, name, value, unit,
            parameters={**parameters, **_budget(metrics)}, interval=interval, environment=threads,
        )
        for name, (value, unit, interval) in values.items()
    ]  # fmt: skip


def _budget(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {"budget": metrics.get("budgets", metrics.get("budget"))}


def _compare(recipe: str, task: str, baseline: str, arms: Sequence[str]) -> list[Row]:
    """Returns how much more each arm scores than the baseline of the same seed."""
    told = environment(torch.get_num_threads())
    rows = []
    for arm in arms:
        pairs = [
            (Training(recipe, task, arm, s), Training(recipe, task, baseline, s)) for s in SEEDS
        ]
        found = difference(pairs)
        if found is not None:
            rows.append(
                Row(
                    SUITE, f"compare {recipe} {task}", arm, "difference", found.value, "1",
                    parameters={"recipe": recipe, "task": task, "baseline": baseline},
                    interval=found.interval, samples=found.seeds, environment=told,
                )
            )  # fmt: skip
    return rows
