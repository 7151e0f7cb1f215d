"""Top-1 of trained PADRe and ToSA through the quantized path, for suite `vit`.

Calibrated on 256 training images; 1,000 test images at each ONNX stage on this machine, and 64 of
them in the NPU's emulator (256 with --full).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes._shared.vision.feeds import training_feeds
from edgeport_recipes._shared.vision.tasks import find_task

from benchmarks.tables import DEFAULT, FULL, Row
from benchmarks.vit_runs import SUITE, WORK
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.runtimes.qnn_context_binary import NAME as NPU
from edgeport.runtimes.worker import Limits
from edgeport.types import TensorSpec

Groups = Iterator[tuple[str, Callable[[], Sequence[Row]]]]
DEVICE, TASK = "s24", "cifar10"
CALIBRATION_IMAGES, TEST_IMAGES = 256, 1000
EMULATED_IMAGES = {DEFAULT: 64, FULL: 256}
NETS = Path(__file__).with_name("vit_nets.py")
LIMITS = Limits(3600.0, 16 << 30)


@dataclass(frozen=True)
class Quantized:
    """One export: the recipe and variant, the training whose weights it takes, the precision."""

    recipe: str
    variant: str
    arm: str
    precision: str

    @property
    def group(self) -> str:
        return f"quantized {self.recipe} {self.variant} {self.precision}"

    @property
    def weights(self) -> Path:
        return WORK / self.recipe / TASK / f"{self.arm}-seed0" / "weights.safetensors"


ARMS = (
    ("padre", "attention", "attention"),
    ("padre", "padre2", "padre2"),
    ("padre", "padre3", "padre3"),
    ("tosa", "full", "full"),
    ("tosa", "topk", "tosa"),
    ("tosa", "onehot", "tosa"),
)


def groups(data: Path, budget: str) -> Groups:
    """Yields a name and a measurement for every arm and precision."""
    for recipe, variant, arm in ARMS:
        for precision in ("float", "w8a16", "w8a8"):
            one = Quantized(recipe, variant, arm, precision)
            yield one.group, partial(_measure, one, EMULATED_IMAGES[budget], budget)


def _measure(one: Quantized, emulated: int, budget: str) -> list[Row]:
    import edgeport
    from edgeport.evaluate import evaluate

    if not one.weights.exists():
        print(f"{one.group}: {one.weights} is not there, not run", file=sys.stderr)
        return []
    with scratch_directory() as folder:
        data = folder / "test.npz"
        _save_test(data)
        made = edgeport.export(
            f"{NETS}:{one.variant}",
            output_dir=folder / "export",
            device=DEVICE,
            precision=one.precision,
            inputs=["image:float32[1,3,32,32]"],
            weights=one.weights,
            calib_data=_save_calibration(folder / "calibration.npz"),
            calib_samples=CALIBRATION_IMAGES,
        )
        cpu = sum(node.unit == "cpu" for node in made.artifact("lower", NPU).nodes)
        rows = [_row(one, "nodes on the CPU", "cpu_ops", float(cpu), 0, budget)]
        stages = ("passes",) if one.precision == "float" else ("passes", "quantize")
        for chosen, count in ((stages, TEST_IMAGES), (("passes", NPU), emulated)):
            found = evaluate(
                made.directory, data=data, metric="top1", stages=chosen, limit=count, limits=LIMITS
            )
            for score in found.rows:
                if score.measurement is None:
                    rows.append(_row(one, score.stage, "top1", None, count, budget, score.problem))
                    continue
                rows.append(
                    _row(
                        one, score.stage, "top1", score.measurement.value, count, budget,
                        interval=score.measurement.interval, drop=score.drop,
                        drop_interval=score.drop_interval,
                        provenance=score.measurement.provenance,
                    )
                )  # fmt: skip
    return rows


def _save_calibration(file: Path) -> Path:
    """Writes training images: one more, as the first is export's parity sample."""
    spec = TensorSpec("image", "float32", (1, 3, 32, 32))
    feeds = training_feeds(find_task(TASK), [spec], CALIBRATION_IMAGES + 1, 0)
    np.savez(file, image=np.concatenate([feed["image"] for feed in feeds]))
    return file


def _save_test(file: Path) -> None:
    """Writes 1,000 test images of all classes, in 0..1, with their labels."""
    test = find_task(TASK).data("test", 0)
    chosen = torch.linspace(0, test.count - 1, TEST_IMAGES).long()
    images = np.asarray(test.images[chosen].float() / 255)
    np.savez(file, image=images, label=np.asarray(test.targets["label"][chosen]))


def _row(
    one: Quantized,
    stage: str,
    metric: str,
    value: float | None,
    images: int,
    budget: str,
    note: str = "",
    *,
    interval: tuple[float, float] | None = None,
    drop: float | None = None,
    drop_interval: tuple[float, float] | None = None,
    provenance: str = "host",
) -> Row:
    return Row(
        SUITE,
        one.group,
        one.variant,
        metric,
        value,
        "fraction" if metric == "top1" else "nodes",
        provenance,
        parameters={
            "recipe": one.recipe,
            "precision": one.precision,
            "stage": stage,
            "images": images,
            "drop": drop,
            "drop_interval": drop_interval,
        },
        interval=interval,
        note=note,
        budget=budget,
        environment=environment(torch.get_num_threads()),
    )
