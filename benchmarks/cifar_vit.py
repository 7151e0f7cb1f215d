"""Suite `cifar_vit`: top-1 at every stage of a network that somebody else trained.

A vision transformer for CIFAR-10 with softmax attention, calibrated on 256 training images, judged
on 1,000 test images and on the first 64 of them in the emulator. Needs EDGEPORT_DATA.
"""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import NOT_RUN, Results, Row, markdown
from edgeport.errors import InputError
from edgeport.measure import environment
from edgeport.types import PRECISIONS, Provenance

SUITE = "cifar_vit"
DEVICE = "s24"
MODEL = f"{Path(__file__).with_name('cifar_vit_model.py')}:vit"
INPUT = "image:float32[1,3,32,32]"
CALIBRATION_IMAGES, TEST_IMAGES, EMULATED_IMAGES = 256, 1000, 64
EMULATOR_SECONDS = 3600.0
THREADS = 2

Labels = NDArray[np.int64]


def run(results: Results, full: bool) -> None:
    """Exports in every precision and adds top-1 and agreement at every stage."""
    import torch

    data = _data_folder()
    images, labels = _cifar(data, "test", TEST_IMAGES)
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="edgeport-bench-") as folder:
        work = Path(folder)
        calibration, _ = _cifar(data, "train", CALIBRATION_IMAGES + 1)
        # The first one is export's parity sample, which it keeps out of calibration.
        np.savez(work / "cifar_train.npz", image=calibration)
        reference = _torch_predictions(data, images)
        for precision in PRECISIONS:
            if not results.finished(precision):
                print(f"running {precision}", file=sys.stderr, flush=True)
                rows = _run_precision(precision, data, work, images, labels, reference)
                results.add([replace(row, budget=results.budget) for row in rows])


def _run_precision(
    precision: str, data: Path, work: Path, images: NDArray[Any], labels: Labels, reference: Labels
) -> list[Row]:
    import edgeport

    exported = edgeport.export(
        MODEL,
        output_dir=work / precision,
        cache_dir=work / "cache",
        device=DEVICE,
        precision=precision,
        inputs=[INPUT],
        weights=_weights(data),
        calib_data=work / "cifar_train.npz",
        calib_samples=CALIBRATION_IMAGES,
    )
    before = environment(THREADS)
    rows: list[Row] = []

    def add(stage: str, predicted: Labels, provenance: Provenance, sha256: str) -> None:
        for count in {len(predicted), EMULATED_IMAGES}:
            right = int((predicted[:count] == labels[:count]).sum())
            same = int((predicted[:count] == reference[:count]).sum())
            for metric, hits in (("top1", right), ("agreement", same)):
                rows.append(
                    Row(
                        SUITE,
                        precision,
                        stage,
                        metric,
                        hits / count,
                        "fraction",
                        provenance,
                        {"precision": precision, "images": count, "artifact_sha256": sha256},
                        wilson_interval(hits, count),
                        environment=before,
                    )
                )

    add("torch", reference, "host", "")
    for artifact in exported.artifacts:
        if artifact.path.endswith(".onnx") and not artifact.stage.startswith("run"):
            found = _onnx_predictions(exported.directory / artifact.path, images)
            add(artifact.path, found, "host", artifact.sha256)
    lowered = exported.artifact("lower")
    emulated = _emulated_predictions(exported.directory, work, images[:EMULATED_IMAGES])
    add(lowered.path, emulated, "emulated", lowered.sha256)
    return rows


def _data_folder() -> Path:
    """Returns EDGEPORT_DATA; raises InputError where it does not hold what this suite reads."""
    named = os.environ.get("EDGEPORT_DATA")
    if not named:
        raise InputError("suite cifar_vit needs EDGEPORT_DATA, the folder of weights and images")
    for needed in (_weights(Path(named)), _images(Path(named))):
        if not needed.is_file():
            raise InputError(f"suite cifar_vit reads {needed}: no such file; check EDGEPORT_DATA")
    return Path(named)


def _weights(data: Path) -> Path:
    return data / "weights" / "cifar_vit" / "vit_cifar10.pth"


def _images(data: Path) -> Path:
    return data / "classification" / "cifar10_jpeg_10k_10k.npz"


def _cifar(data: Path, split: str, count: int) -> tuple[NDArray[Any], Labels]:
    """Returns the first images of a split, `count x 3 x 32 x 32` float32 in 0..1, and labels."""
    from PIL import Image

    with np.load(_images(data), allow_pickle=False) as arrays:
        packed, offsets = arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_offsets"]
        labels = arrays[f"{split}_labels"][:count].astype(np.int64)
    files = [packed[offsets[i] : offsets[i + 1]] for i in range(count)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    scaled = pixels.astype(np.float32) / 255
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels


def _torch_predictions(data: Path, images: NDArray[Any]) -> Labels:
    import torch

    from edgeport.catalog import build_module, find_source

    module = build_module(find_source(MODEL, inputs=[INPUT], weights=_weights(data)), seed=0)
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(images)).argmax(1).numpy())


def _onnx_predictions(path: Path, images: NDArray[Any]) -> Labels:
    from edgeport.runtimes.onnx import Session

    session = Session(path, THREADS, spin=False)
    return np.array([session.run({"image": image[None]})[0].argmax() for image in images])


def _emulated_predictions(exported: Path, work: Path, images: NDArray[Any]) -> Labels:
    from edgeport.devices import find_device
    from edgeport.runtimes.qnn_context_binary import run_emulated
    from edgeport.runtimes.samples import save_samples
    from edgeport.runtimes.worker import Limits

    inputs = work / "emulated_inputs.npz"
    save_samples(inputs, [{"image": image[None]} for image in images])
    limits = Limits(EMULATOR_SECONDS, 16 << 30)
    outputs = run_emulated(exported, work, inputs, find_device(DEVICE), limits)
    return np.array([next(iter(sample.values())).argmax() for sample in outputs])


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share. Source: Wilson, JASA 22 (1927), 209-212."""
    z, share = 1.959964, hits / count
    centre = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - reach) / scale, (centre + reach) / scale


def show(results: Results) -> None:
    """Prints top-1 at every stage and, on the emulated images, agreement with torch."""
    for count in (TEST_IMAGES, EMULATED_IMAGES):
        whose = "test images" if count == TEST_IMAGES else "of them, as in the emulator"
        print(f"\n### Top-1, % (95 % interval), on the first {count:,} {whose}\n")
        print(_table(results, "top1", count))
    for count in (TEST_IMAGES, EMULATED_IMAGES):
        print(f"\n### Predictions that agree with torch's, % (95 % interval), {count:,} images\n")
        print(_table(results, "agreement", count))
    print(
        "\nPublished for these weights: 73.72 % on the original test images. This set holds JPEG"
        "\ncopies of them, on all 10,000 of which about 71.2 % was measured."
    )


def _table(results: Results, metric: str, count: int) -> str:
    stages = ("torch", "model.onnx", "optimized.onnx", "quantized.onnx", "model.bin")
    lines = []
    for stage in stages:
        if stage == "model.bin" and count != EMULATED_IMAGES:
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
