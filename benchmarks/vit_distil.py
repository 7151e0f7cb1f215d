"""PADRe put into a net that somebody else trained with attention, for suite `vit`.

The CIFAR-10 transformer of EDGEPORT_DATA (CLS token, 8 x 8 grid, 6 layers), distilled layer by
layer on 5,000 training images and then whole on twice as many; scored on 2,000 test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes.padre.distil import open_net
from edgeport_recipes.padre.distillation import LAYERS, WHOLE, Plan, distil

from benchmarks.cifar_vit import MODEL, WEIGHTS
from benchmarks.tables import NOT_RUN, Results, Row, markdown
from benchmarks.vit_runs import SUITE, WORK
from edgeport.measure import environment

IMAGES, SCORED = 5000, 2000


@dataclass(frozen=True)
class Drop:
    """One replacement: PADRe-3 with a kernel, and how the CLS token is carried."""

    kernel: int
    prefix: str

    @property
    def group(self) -> str:
        return f"distil kernel {self.kernel}, CLS {self.prefix}"

    @property
    def plan(self) -> Plan:
        budgets = {
            "layers": replace(LAYERS, images=IMAGES),
            "whole": replace(WHOLE, images=IMAGES),
        }
        return Plan(3, self.kernel, (8, 8), prefix_tokens=1, prefix=self.prefix, **budgets)


DROPS = (*(Drop(kernel, "pool") for kernel in (5, 7, 11)), Drop(7, "identity"))


def groups(data: Path) -> Iterator[tuple[str, Callable[[], Sequence[Row]]]]:
    """Yields a name and a measurement for every replacement."""
    for one in DROPS:
        yield one.group, partial(measure, one, data)


def measure(one: Drop, data: Path) -> list[Row]:
    """Returns the score after N steps, the first row being the net with its own attention."""
    teacher = open_net(MODEL, data / WEIGHTS)
    folder = WORK / "distil" / f"kernel{one.kernel}-{one.prefix}"
    found = distil(teacher, find_task("cifar10"), one.plan, folder, resume=True, limit=SCORED)
    told = environment(torch.get_num_threads())
    points = [
        ("attention", 0, found["teacher"]["top1"], ()),
        *(
            (point["stage"], point["step"], point["scores"]["top1"], point["layer_errors"])
            for point in found["curve"]
        ),
    ]
    return [
        Row(
            SUITE, one.group, f"{stage} {step}", "top1", value, "fraction",
            parameters={
                "kernel": one.kernel, "prefix": one.prefix, "stage": stage, "step": step,
                "images": found["images"], "layer_errors": list(errors),
                "parameters": found["parameters"],
            },
            environment=told,
        )
        for stage, step, value, errors in points
    ]  # fmt: skip


def tables(results: Results) -> str:
    """Returns accuracy after N steps by kernel and by how CLS is carried."""
    shown: dict[str, None] = {}
    for row in results.find("top1"):
        if "prefix" in row.parameters:
            shown.setdefault(row.arm)
    header = ["PADRe-3 in the trained net, top-1", *(f"{d.kernel}, {d.prefix}" for d in DROPS)]
    lines = [[_words(arm), *(_cell(results, drop, arm) for drop in DROPS)] for arm in shown]
    title = (
        f"Columns: kernel (the grid is 8 x 8), and how CLS is carried. {SCORED:,} test images; the"
        " layers learn for one epoch, each by itself, then the whole for two, of"
        f" {IMAGES:,} images in batches of {LAYERS.batch}."
    )
    return f"{title}\n\n{markdown(header, lines)}" if lines else f"Drop-in: {NOT_RUN}."


def _words(arm: str) -> str:
    stage, _, step = arm.partition(" ")
    said = {
        "attention": "its own attention",
        "untrained": "replaced, untrained",
        "layers": f"layer by layer, {step} steps",
    }
    return said.get(stage, f"then whole, {step} steps")


def _cell(results: Results, drop: Drop, arm: str) -> str:
    rows = results.find("top1", arm, kernel=drop.kernel, prefix=drop.prefix)
    return f"{rows[-1].value:.1%}" if rows and rows[-1].value is not None else NOT_RUN
