"""Suite `cifar_vit`: top-1 at every stage of a network that somebody else trained.

A vision transformer for CIFAR-10 with softmax attention, calibrated on 256 training images, judged
on 1,000 test images and, in the emulator, on the first 64 of them (256 with --full). It needs
EDGEPORT_DATA.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import CIFAR, Labels, cifar_images, data_folder
from benchmarks.tables import DEFAULT, FULL, NOT_RUN, Results, Row, markdown
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.runtimes.qnn_context_binary import NAME as NPU
from edgeport.types import PRECISIONS, Provenance

SUITE = "cifar_vit"
DEVICE = "s24"
MODEL = f"{Path(__file__).with_name('cifar_vit_model.py')}:vit"
WEIGHTS = "weights/cifar_vit/vit_cifar10.pth"
CALIBRATION_FILE = "cifar_train.npz"
INPUT = "image:float32[1,3,32,32]"
CALIBRATION_IMAGES, TEST_IMAGES = 256, 1000
EMULATED_IMAGES = {DEFAULT: 64, FULL: 256}  # by budget
EMULATOR_SECONDS = 3600.0
THREADS = 2
PUBLISHED = (
    "Published for these weights: 73.72 % on the original test images. This set holds JPEG copies\n"
    "of them; on all its 10,000 about 71.2 % was measured."
)


@dataclass(frozen=True)
class Truth:
    """The test images, their labels, torch's predictions, and how many the emulator runs."""

    images: NDArray[Any]
    labels: Labels
    reference: Labels
    emulated: int


def run(results: Results, full: bool) -> None:
    """Exports in every precision and adds top-1 and agreement at every stage."""
    import torch

    data = data_folder(SUITE, WEIGHTS, CIFAR)
    torch.set_num_threads(THREADS)
    images, labels = cifar_images(data, "test", TEST_IMAGES)
    reference = _torch_predictions(data, images)
    truth = Truth(images, labels, reference, EMULATED_IMAGES[results.budget])
    with scratch_directory() as folder:
        # One more: the first one is export's parity sample, which it keeps out of calibration.
        calibration, _ = cifar_images(data, "train", CALIBRATION_IMAGES + 1)
        np.savez(Path(folder, CALIBRATION_FILE), image=calibration)
        for precision in PRECISIONS:
            if not results.finished(precision):
                print(f"running {precision}", file=sys.stderr, flush=True)
                rows = _run_precision(precision, data, folder, truth)
                results.add([replace(row, budget=results.budget) for row in rows])


def _run_precision(precision: str, data: Path, work: Path, truth: Truth) -> list[Row]:
    import edgeport

    exported = edgeport.export(
        MODEL,
        output_dir=work / precision,
        cache_dir=work / "cache",
        device=DEVICE,
        precision=precision,
        inputs=[INPUT],
        weights=data / WEIGHTS,
        calib_data=work / CALIBRATION_FILE,
        calib_samples=CALIBRATION_IMAGES,
    )
    rows = _rows(precision, "torch", truth.reference, truth, "host", "")
    for artifact in exported.artifacts:
        if artifact.path.endswith(".onnx") and not artifact.stage.startswith("run"):
            found = _onnx_predictions(exported.directory / artifact.path, truth.images)
            rows += _rows(precision, artifact.path, found, truth, "host", artifact.sha256)
    lowered = exported.artifact("lower", NPU)
    found = _emulated_predictions(exported.directory, work, truth.images[: truth.emulated])
    return rows + _rows(precision, lowered.path, found, truth, "emulated", lowered.sha256)


def _rows(
    precision: str,
    stage: str,
    predicted: Labels,
    truth: Truth,
    provenance: Provenance,
    sha256: str,
) -> list[Row]:
    """Returns top-1 and agreement on all images that were predicted and on the emulated ones."""
    rows = []
    for count in sorted({len(predicted), truth.emulated}):
        for metric, expected in (("top1", truth.labels), ("agreement", truth.reference)):
            hits = int((predicted[:count] == expected[:count]).sum())
            row = Row(SUITE, precision, stage, metric, hits / count, "fraction", provenance)
            parameters = {"precision": precision, "images": count, "artifact_sha256": sha256}
            interval = wilson_interval(hits, count)
            told = environment(THREADS)
            rows.append(replace(row, parameters=parameters, interval=interval, environment=told))
    return rows


def _torch_predictions(data: Path, images: NDArray[Any]) -> Labels:
    import torch

    from edgeport.catalog import find_source
    from edgeport.sources import build_module

    module = build_module(find_source(MODEL, inputs=[INPUT], weights=data / WEIGHTS), seed=0)
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(images)).argmax(1).numpy())


def _onnx_predictions(path: Path, images: NDArray[Any]) -> Labels:
    from edgeport.runtimes.onnx import Session

    session = Session(path, THREADS, spin=False)
    return np.array([session.run({"image": image[None]})[0].argmax() for image in images])


def _emulated_predictions(exported: Path, work: Path, images: NDArray[Any]) -> Labels:
    from edgeport.devices import find_device
    from edgeport.runtimes.lowering import run_compiled
    from edgeport.runtimes.samples import save_samples
    from edgeport.runtimes.worker import Limits

    inputs = work / "emulated_inputs.npz"
    save_samples(inputs, [{"image": image[None]} for image in images])
    limits = Limits(EMULATOR_SECONDS, 16 << 30)
    outputs = run_compiled(
        "qnn_context_binary", exported, work, inputs, find_device(DEVICE), limits
    )
    return np.array([next(iter(sample.values())).argmax() for sample in outputs])


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share. Source: Wilson, JASA 22 (1927), 209-212."""
    z, share = 1.959964, hits / count
    centre = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - reach) / scale, (centre + reach) / scale


def tables(results: Results) -> str:
    """Returns top-1 at every stage, and agreement with torch, on all and on the emulated images."""
    sections = []
    for metric, what in (("top1", "Top-1"), ("agreement", "Predictions that agree with torch's")):
        for count in (TEST_IMAGES, EMULATED_IMAGES[results.budget]):
            title = f"### {what}, first {count:,} test images (95 % interval)"
            sections.append(f"{title}\n\n{_table(results, metric, count)}")
    return "\n\n".join([*sections, PUBLISHED])


def _table(results: Results, metric: str, count: int) -> str:
    stages = ("torch", "model.onnx", "optimized.onnx", "quantized.onnx", "model.bin")
    lines = []
    for stage in stages:
        if stage == "model.bin" and count == TEST_IMAGES:
            continue
        if stage == "torch" and metric == "agreement":
            continue
        where = "emulated" if stage == "model.bin" else "host"
        cells = [_cell(results, metric, stage, p, count) for p in PRECISIONS]
        lines.append([stage, where, *cells])
    return markdown(["stage", "provenance", *PRECISIONS], lines)


def _cell(results: Results, metric: str, stage: str, precision: str, count: int) -> str:
    rows: Sequence[Row] = results.find(metric, stage, precision=precision, images=count)
    if stage == "quantized.onnx" and precision == "float":
        return "-"
    if not rows or rows[-1].value is None or rows[-1].interval is None:
        return NOT_RUN
    low, high = rows[-1].interval
    return f"{rows[-1].value:.1%} ({low:.1%} to {high:.1%})"
