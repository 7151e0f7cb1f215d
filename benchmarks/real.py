"""Suite `real`: what quantization costs networks that others trained, on real images.

ResNet20 and ResNet56 (CIFAR-10), the CIFAR vision transformer, VDSR (Set5, x2) and TAEF2's encoder
and decoder. Each is exported by `edgeport.export` with calibration images that are not among the
test images; the metric is that of `quantized.onnx` on the host, beside torch's on the same images.
It needs EDGEPORT_DATA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cifar_vit import wilson_interval
from benchmarks.data import CIFAR, cifar_images, data_folder
from benchmarks.tables import NOT_RUN, Results, Row, cell, markdown
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.runtimes.qnn_context_binary import NAME as NPU

SUITE = "real"
DEVICE = "s24"
PRECISIONS = ("float", "w8a8", "w8a16", "w4a16")
LIMIT = 0.01  # relative loss, the target in w8a16
PHOTOS = "classification/imagenet_500"
CALIBRATION, TEST = 128, 2000
PHOTO, PATCH = 256, 192  # pixels of TAEF2's photos and VDSR's patches
CALIBRATION_PHOTOS, TEST_PHOTOS = 16, 24
MODELS = Path(__file__).with_name("real_models.py")
VIT = Path(__file__).with_name("cifar_vit_model.py")

Images = NDArray[np.float32]
Run = Callable[[Images], Images]
"""Maps one input, with its leading 1, to the network's output."""


@dataclass(frozen=True)
class Task:
    """A trained network, the file of its weights, and how an answer is judged.

    `score(run)` gives (value, interval or None) of the metric over the test images.
    """

    name: str
    factory: str
    weights: str
    input: str
    metric: str
    calibration: Callable[[Path], Images]
    score: Callable[[Path, Run], tuple[float, tuple[float, float] | None]]


def _cifar_calibration(data: Path) -> Images:
    return cifar_images(data, "train", CALIBRATION + 1)[0]


def _top1(data: Path, run: Run) -> tuple[float, tuple[float, float] | None]:
    images, labels = cifar_images(data, "test", TEST)
    hits = sum(int(run(x[None]).argmax()) == y for x, y in zip(images, labels))
    return hits / len(labels), wilson_interval(hits, len(labels))


@cache
def _photos(data: Path) -> Images:
    """Returns photos `N x 3 x 256 x 256` in 0..1: one of each of the first ImageNet classes."""
    from PIL import Image

    files = sorted((data / PHOTOS).glob("*.jpg"))
    chosen = files[:: len(files) // (CALIBRATION_PHOTOS + 1 + TEST_PHOTOS)]
    pixels = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in chosen]
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))


def _test_photos(data: Path) -> Images:
    return _photos(data)[CALIBRATION_PHOTOS + 1 :][:TEST_PHOTOS]


def _encoded(data: Path, photos: Images) -> Images:
    """Returns the latents that torch's encoder gives, `N x 32 x 32 x 32`."""
    return np.concatenate([_in_torch("taef2_encoder", data)(photo[None]) for photo in photos])


def _through_encoder(data: Path, run: Run) -> tuple[float, None]:
    decode = _in_torch("taef2_decoder", data)
    return _mean_psnr([(photo, decode(run(photo[None]))[0]) for photo in _test_photos(data)]), None


def _through_decoder(data: Path, run: Run) -> tuple[float, None]:
    photos = _test_photos(data)
    latents = _encoded(data, photos)
    return _mean_psnr([(p, run(z[None])[0]) for p, z in zip(photos, latents)]), None


def _mean_psnr(pairs: Sequence[tuple[Images, Images]]) -> float:
    """Returns the mean over images of the PSNR in dB, of values in 0..1."""
    errors = [float(np.mean((np.clip(got, 0, 1) - true) ** 2)) for true, got in pairs]
    return float(np.mean([-10 * np.log10(error) for error in errors]))


def _luminance(image: Any) -> Images:
    """Returns Y in 0..1 of an RGB image. Source: ITU-R BT.601, as in the published scores."""
    rgb = np.asarray(image.convert("RGB"), np.float64)
    return ((rgb @ [65.481, 128.553, 24.966]) / 255 + 16).astype(np.float32) / 255


def _halved_and_back(image: Any) -> Any:
    from PIL import Image

    width, height = image.size
    small = image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _set5(data: Path) -> list[tuple[Images, Images]]:
    """Returns (true, upscaled) luminance patches, each `1 x 1 x 192 x 192`, of Set5's middles."""
    from PIL import Image

    pairs = []
    for file in sorted((data / "sr" / "set5").glob("*_GT.png")):
        image = Image.open(file).convert("RGB")
        left, top = ((size - PATCH) // 2 for size in image.size)
        patch = image.crop((left, top, left + PATCH, top + PATCH))
        true, upscaled = _luminance(patch), _luminance(_halved_and_back(patch))
        pairs.append((true[None, None], upscaled[None, None]))
    return pairs


def _sharpened(data: Path, run: Run) -> tuple[float, None]:
    return _mean_psnr([(true, run(upscaled)) for true, upscaled in _set5(data)]), None


def _blurred_photos(data: Path) -> Images:
    from PIL import Image

    photos = _photos(data)[: CALIBRATION_PHOTOS + 1, :, :PATCH, :PATCH].transpose(0, 2, 3, 1)
    images = [Image.fromarray((photo * 255).round().astype(np.uint8)) for photo in photos]
    return np.stack([_luminance(_halved_and_back(image))[None] for image in images])


TASKS = (
    *(
        Task(
            name,
            f"{MODELS}:{name}",
            f"weights/cifar_resnet/{file}",
            "image:float32[1,3,32,32]",
            "top1",
            _cifar_calibration,
            _top1,
        )
        for name, file in (
            ("resnet20", "resnet20-12fca82f.th"),
            ("resnet56", "resnet56-4bfd9763.th"),
        )
    ),
    Task(
        "cifar_vit",
        f"{VIT}:vit",
        "weights/cifar_vit/vit_cifar10.pth",
        "image:float32[1,3,32,32]",
        "top1",
        _cifar_calibration,
        _top1,
    ),
    Task(
        "vdsr",
        f"{MODELS}:vdsr",
        "weights/vdsr/vdsr_epoch50_tensors.pth",
        f"luminance:float32[1,1,{PATCH},{PATCH}]",
        "psnr_db",
        _blurred_photos,
        _sharpened,
    ),
    Task(
        "taef2_encoder",
        f"{MODELS}:taef2_encoder",
        "weights/taef2/taef2_encoder.pth",
        f"image:float32[1,3,{PHOTO},{PHOTO}]",
        "psnr_db",
        lambda data: _photos(data)[: CALIBRATION_PHOTOS + 1],
        _through_encoder,
    ),
    Task(
        "taef2_decoder",
        f"{MODELS}:taef2_decoder",
        "weights/taef2/taef2_decoder.pth",
        f"latent:float32[1,32,{PHOTO // 8},{PHOTO // 8}]",
        "psnr_db",
        lambda data: _encoded(data, _photos(data)[: CALIBRATION_PHOTOS + 1]),
        _through_decoder,
    ),
)


def _in_torch(name: str, data: Path) -> Run:
    """Returns the task's network in torch, with its weights."""
    import torch

    from edgeport.catalog import find_source
    from edgeport.sources import build_module

    task = next(task for task in TASKS if task.name == name)
    source = find_source(task.factory, inputs=[task.input], weights=data / task.weights)
    module = build_module(source, seed=0)

    def run(array: Images) -> Images:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(array)).numpy())

    return run


def run(results: Results, full: bool) -> None:
    """Adds every network's metric in torch and, in every precision, of the exported model."""
    data = data_folder(SUITE, CIFAR, "sr/set5", PHOTOS, *(task.weights for task in TASKS))
    for task in TASKS:
        for precision in PRECISIONS:
            group = f"{task.name} {precision}"
            if not results.finished(group):
                print(f"running {group}", file=sys.stderr, flush=True)
                rows = _rows(task, precision, group, data)
                results.add([replace(row, budget=results.budget) for row in rows])


def _rows(task: Task, precision: str, group: str, data: Path) -> list[Row]:
    import edgeport
    from edgeport.runtimes.onnx import Session

    with scratch_directory() as folder:
        spec = task.input.partition(":")[0]
        np.savez(Path(folder, "calibration.npz"), **{spec: task.calibration(data)})
        exported = edgeport.export(
            task.factory,
            output_dir=Path(folder, "out"),
            device=DEVICE,
            precision=precision,
            inputs=[task.input],
            weights=data / task.weights,
            calib_data=Path(folder, "calibration.npz"),
            calib_samples=CALIBRATION,
        )
        file = "optimized.onnx" if precision == "float" else "quantized.onnx"
        session = Session(exported.directory / file)
        value, interval = task.score(data, lambda array: session.run({spec: array})[0])
        emulated = exported.artifact("run", NPU).parity[0]
    expected, _ = task.score(data, _in_torch(task.name, data))
    parameters = {"model": task.name, "precision": precision, "metric": task.metric}
    unit = "fraction" if task.metric == "top1" else "dB"
    rows = [
        Row(SUITE, group, "torch", "score", expected, unit),
        Row(SUITE, group, file, "score", value, unit, interval=interval),
        Row(SUITE, group, file, "relative_loss", (expected - value) / expected, "1"),
        Row(SUITE, group, "model.bin", "sqnr_db", emulated.value, "dB", "emulated"),
    ]
    told = environment(2)
    return [replace(row, parameters=parameters, environment=told) for row in rows]


def tables(results: Results) -> str:
    """Returns score, relative loss and the emulated binary's SQNR of every network."""
    header = ["network", "torch", *PRECISIONS]
    lines = []
    for task in TASKS:
        scores = [_score(results, task, precision) for precision in PRECISIONS]
        reference = results.find("score", "torch", model=task.name)
        lines.append([task.name, _shown(reference[-1]) if reference else NOT_RUN, *scores])
    loss = "### Score (host): top-1 or PSNR in dB, and the relative loss against torch"
    emulated = [
        [task.name, *(_emulated(results, task, precision) for precision in PRECISIONS)]
        for task in TASKS
    ]
    return "\n\n".join(
        [
            f"{loss}\n\n{markdown(header, lines)}",
            "### SQNR of the binary in the emulator against torch, dB, one image\n\n"
            + markdown(["network", *PRECISIONS], emulated),
            _verdict(results),
        ]
    )


def _shown(row: Row) -> str:
    assert row.value is not None
    return f"{row.value:.1%}" if row.unit == "fraction" else f"{row.value:.2f} dB"


def _score(results: Results, task: Task, precision: str) -> str:
    found = results.find("score", model=task.name, precision=precision)
    loss = results.find("relative_loss", model=task.name, precision=precision)
    rows = [row for row in found if row.arm != "torch"]
    if not rows or not loss or loss[-1].value is None:
        return NOT_RUN
    return f"{_shown(rows[-1])} ({loss[-1].value:+.2%})"


def _emulated(results: Results, task: Task, precision: str) -> str:
    rows = results.find("sqnr_db", model=task.name, precision=precision)
    return cell(rows[-1]) if rows else NOT_RUN


def _verdict(results: Results) -> str:
    rows = [
        row for row in results.find("relative_loss", precision="w8a16") if row.value is not None
    ]
    if len(rows) < len(TASKS):
        return f"Target in w8a16, 1 % relative or less: {NOT_RUN} for all."
    worst = max(rows, key=lambda row: row.value or 0.0)
    assert worst.value is not None
    held = "held" if worst.value <= LIMIT else "missed"
    name = worst.parameters["model"]
    return f"Target in w8a16, 1 % relative or less: {held}; worst {worst.value:.2%} ({name})."
