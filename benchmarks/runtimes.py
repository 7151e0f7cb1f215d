"""Suite `runtimes`: our file and the plain path's on the same executor, taking turns, with peers.

For each model and precision every arm is a file, timed as `edgeport bench` does: blocks of turns in
processes of their own, on the same input and number of threads. `plain onnx again` is the plain
ONNX file a second time: what it differs from itself is the noise floor of that run.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import cifar_images, data_folder
from benchmarks.plain_paths import FILES
from benchmarks.tables import NOT_RUN, Results, Row, cell, markdown, number
from edgeport import compare
from edgeport.bench import AGAIN as SECOND
from edgeport.bench import Arm, Settings, bench
from edgeport.blocks import HostBlocks
from edgeport.errors import EdgeportError, StageFailed
from edgeport.measure import environment
from edgeport.places.served import Request, Served
from edgeport.private import scratch_directory
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.samples import Sample, load_samples, save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.traces import Trace, block_ratio
from edgeport.types import Measurement

SUITE = "runtimes"
DEVICE = "s24"
THREADS = 2
SHARED = ("onnx", "tflite", "executorch")  # with a plain path and ours
PEERS = ("openvino", "mnn", "ncnn")
MODULES = {"openvino": "openvino", "mnn": "MNN", "ncnn": "ncnn"}
IMAGES = "images.npz"
BASE = "plain onnx"
AGAIN = f"{BASE} {SECOND}"
EXECUTORS = "benchmarks.executors"
PRECISIONS = ("float", "w8a8")
CALIBRATION = {"default": 16, "full": 64}
SECONDS = {"default": 120.0, "full": 600.0}
LIMITS = Limits(seconds=1200.0, memory_bytes=14 << 30)


@dataclass(frozen=True)
class Model:
    """A network as both sides build it; `images` are real ones where there are some."""

    source: str
    inputs: tuple[str, ...] = ()
    weights: str = ""
    images: bool = False


_HERE = Path(__file__)
CIFAR_INPUT = ("image:float32[1,3,32,32]",)
MODELS = {
    "padre": Model("padre"),
    "cifar_vit": Model(
        f"{_HERE.with_name('cifar_vit_model.py')}:vit",
        CIFAR_INPUT,
        "weights/cifar_vit/vit_cifar10.pth",
        images=True,
    ),
    "resnet20": Model(
        f"{_HERE.with_name('real_models.py')}:resnet20",
        CIFAR_INPUT,
        "weights/cifar_resnet/resnet20-12fca82f.th",
        images=True,
    ),
    "mobilenetv3_small": Model("timm:mobilenetv3_small_100"),
    "deit_tiny": Model("timm:deit_tiny_patch16_224"),
}


def run(results: Results, full: bool) -> None:
    """Measures every model and precision that is not finished."""
    data = data_folder(SUITE, *(one.weights for one in MODELS.values() if one.weights))
    for name, model in MODELS.items():
        for precision in PRECISIONS:
            group = f"{name} {precision}"
            if not results.finished(group):
                print(f"running {group}", file=sys.stderr, flush=True)
                with scratch_directory() as work:
                    results.add(_measure(group, model, precision, data, work, results.budget))


def _measure(
    group: str, model: Model, precision: str, data: Path, work: Path, budget: str
) -> list[Row]:
    told = environment(THREADS)
    made, problems = _make(model, precision, data, work, budget)
    inputs = work / "parity_inputs.npz"
    outputs, failed = _outputs(made, inputs, work)
    problems |= failed
    rows = [Row(SUITE, group, arm, "size", None, "MB", note=why) for arm, why in problems.items()]
    arms = [
        Arm(name, kind, (path,), inputs, "")
        for name, (kind, path) in made.items()
        if name in outputs
    ]
    arms.sort(key=lambda arm: arm.name != BASE)  # it runs twice, which gives the noise floor
    settings = Settings(THREADS, seconds=SECONDS[budget])
    where = HostBlocks(settings, work / "timed", EXECUTORS)
    traces: list[Trace] = []
    found = bench(arms, where, settings, lambda step: None, traces.extend)
    for arm in found.arms:
        numbers = {
            "sqnr_db": (_sqnr_db(outputs[arm.name], work), "dB"),
            "size": (_bytes(made[arm.name][1]) / 1e6, "MB"),
            "load_ms": (arm.value("load_ms"), "ms"),
            "first_ms": (arm.value("first_ms"), "ms"),
            "peak": (arm.value("peak_bytes") / 1e6, "MB"),
        }
        rows += [Row(SUITE, group, arm.name, key, *value) for key, value in numbers.items()]
        rows.append(_latency_row(group, arm.name, arm.measurement("latency_ms")))
    rows += list(_ratios(group, {trace.name: trace for trace in traces}))
    parameters = {"precision": precision, "blocks": found.blocks}
    return [
        Row(**{**vars(row), "parameters": parameters, "environment": told, "budget": budget})
        for row in rows
    ]


def _outputs(
    made: Mapping[str, tuple[str, Path]], inputs: Path, work: Path
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Returns what each file answers, and why one does not: the others are timed all the same."""
    outputs: dict[str, list[Sample]] = {}
    problems: dict[str, str] = {}
    for arm, (kind, path) in made.items():
        folder = work / "served" / arm.replace(" ", "_")
        request = Request(
            kind, str(path.resolve()), str(inputs), str(work / "answers.npz"), THREADS
        )
        with _noting(problems, arm), Served(request, folder, EXECUTORS) as served:
            outputs[arm] = served.outputs()
    return outputs, problems


def _sqnr_db(outputs: Sequence[Sample], work: Path) -> float:
    references = load_samples(work / "parity_outputs.npz")
    return min(
        compare.sqnr_db(reference[key], answer[key].reshape(reference[key].shape))
        for reference, answer in zip(references, outputs, strict=True)
        for key in reference
    )


def _latency_row(group: str, arm: str, measured: Measurement) -> Row:
    return Row(
        SUITE,
        group,
        arm,
        measured.metric,
        measured.value,
        measured.unit,
        interval=measured.interval,
        samples=tuple(float(f"{sample:.4g}") for sample in measured.samples),
        note="; ".join(measured.warnings),
    )


def _bytes(path: Path) -> int:
    """Returns the size of a file with the weights beside it (ncnn's are in a .bin)."""
    beside = (path.with_name(f"{path.name}.data"), path.with_suffix(".bin"))
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def _ratios(group: str, traces: Mapping[str, Trace]) -> Iterator[Row]:
    """Yields plain over ours for each runtime, and the plain ONNX file over itself."""
    pairs = {f"edgeport {kind}": (f"plain {kind}", f"edgeport {kind}") for kind in SHARED}
    pairs[AGAIN] = (BASE, AGAIN)
    for arm, (above, below) in pairs.items():
        if above in traces and below in traces:
            gain = block_ratio(traces[above], traces[below])
            interval = (gain.low, gain.high)
            yield Row(SUITE, group, arm, "speedup", gain.value, "ratio", interval=interval)


# The files


def _make(
    model: Model, precision: str, data: Path, work: Path, budget: str
) -> tuple[dict[str, tuple[str, Path]], dict[str, str]]:
    """Returns arm -> (executor, file), and arm -> why there is none.

    Leaves parity_inputs.npz and parity_outputs.npz, torch's answers, in `work`.
    """
    arms: dict[str, tuple[str, Path]] = {}
    problems: dict[str, str] = {}
    _save_images(model, data, work, budget)
    for kind in SHARED:  # one export each: where one converter refuses, the others still run
        with _noting(problems, f"edgeport {kind}"):
            arms[f"edgeport {kind}"] = (kind, _export(model, kind, precision, data, work, budget))
    request = _request(model, precision, data, work, budget)
    kinds = (*SHARED, *(PEERS if precision == "float" else ()))
    for kind in kinds:
        arm = kind if kind in PEERS else f"plain {kind}"
        if kind in PEERS and importlib.util.find_spec(MODULES[kind]) is None:
            problems[arm] = f"{MODULES[kind]} is not installed"
            continue
        with _noting(problems, arm):
            arms[arm] = (kind, _plain(kind, request, work))
    return arms, problems


@contextmanager
def _noting(problems: dict[str, str], arm: str) -> Iterator[None]:
    """Notes under the arm's name, in one line, what fails in the block."""
    print(f"  {arm}", file=sys.stderr, flush=True)
    try:
        yield
    except EdgeportError as error:
        problems[arm] = str(error)[:200]


def _save_images(model: Model, data: Path, work: Path, budget: str) -> None:
    """Writes real images to calibrate on; the first one judges."""
    if model.images:
        images, _ = cifar_images(data, "train", CALIBRATION[budget] + 1)
        np.savez(work / IMAGES, image=images)


def _export(model: Model, kind: str, precision: str, data: Path, work: Path, budget: str) -> Path:
    import edgeport

    exported = edgeport.export(
        model.source,
        output_dir=work / f"ours_{kind}",
        cache_dir=work / "cache",
        device=DEVICE,
        target_runtimes=[kind],
        precision=precision,
        inputs=model.inputs,
        weights=data / model.weights if model.weights else None,
        calib_data=work / IMAGES if model.images else None,
        calib_samples=CALIBRATION[budget],
    )
    for name in ("parity_inputs.npz", "parity_outputs.npz"):
        (work / name).write_bytes((exported.directory / name).read_bytes())
    files = (exported.directory / name for name in RUNTIMES[kind].files)
    return next(file for file in files if file.is_file())


def _request(model: Model, precision: str, data: Path, work: Path, budget: str) -> dict[str, Any]:
    """Returns what the plain paths are given: the same module and the same calibration feeds."""
    from edgeport.feeds import calibration_feeds
    from edgeport.flow import feed_plan
    from edgeport.plan import make_plan
    from edgeport.sources import build

    plan = make_plan(
        model.source,
        device=DEVICE,
        precision=precision,
        inputs=model.inputs,
        weights=data / model.weights if model.weights else None,
        calib_data=work / IMAGES if model.images else None,
        calib_samples=CALIBRATION[budget],
    )
    feeds = feed_plan(plan)
    if not plan.source.inputs:
        feeds = replace(feeds, specs=build(plan.source, plan.seed).inputs)
    save_samples(work / "calibration.npz", list(calibration_feeds(feeds)))
    return {
        "source": model.source,
        "inputs": list(model.inputs),
        "weights": str(data / model.weights) if model.weights else "",
        "seed": 0,
        "precision": precision,
        "calibration": str(work / "calibration.npz"),
    }


def _plain(kind: str, request: Mapping[str, Any], work: Path) -> Path:
    """Returns the file that the runtime's own path makes, in a child process."""
    folder = work / f"plain_{kind}"
    folder.mkdir()
    file = folder / "request.json"
    file.write_text(json.dumps({**request, "directory": str(folder)}), encoding="utf-8")
    run_in_child(
        "benchmarks.plain_paths:make",
        {"kind": kind, "request_file": str(file)},
        stage="plain",
        workdir=folder,
        limits=LIMITS,
    )
    if not (folder / FILES[kind]).is_file():
        raise StageFailed("benchmark", f"the plain path of {kind} wrote no {FILES[kind]}")
    return folder / FILES[kind]


# The tables


def tables(results: Results) -> str:
    """Returns a table per model and precision, then the verdict on the target."""
    return "\n\n".join([*(_table(results, group) for group in _groups()), _verdict(results)])


def _groups() -> list[str]:
    return [f"{name} {precision}" for name in MODELS for precision in PRECISIONS]


def _arms() -> Sequence[str]:
    shared = [f"{who} {kind}" for kind in SHARED for who in ("edgeport", "plain")]
    return [*shared, AGAIN, *PEERS]


_COLUMNS: tuple[tuple[str, str, Callable[[Row | None], str]], ...] = (
    ("size MB", "size", cell),
    ("SQNR dB", "sqnr_db", cell),
    ("load ms", "load_ms", cell),
    ("first ms", "first_ms", cell),
    ("steady ms (quartiles)", "latency_ms", cell),
    ("peak MB", "peak", cell),
    ("plain / edgeport", "speedup", cell),
)


def _table(results: Results, group: str) -> str:
    lines = []
    for arm in _arms():
        found = {r.metric: r for r in results.rows if r.group == group and r.arm == arm}
        failed = next((row for row in found.values() if row.value is None), None)
        if failed is not None:
            lines.append([arm, failed.note, *[""] * (len(_COLUMNS) - 1)])
        elif found or not group.endswith("w8a8") or arm not in PEERS:
            cells = [show(found.get(metric)) for _, metric, show in _COLUMNS]
            absent = arm in PEERS or arm.startswith("plain")
            lines.append([arm, *cells[:-1], "" if absent and arm != AGAIN else cells[-1]])
    return f"### {group}\n\n{markdown(['arm', *(title for title, _, _ in _COLUMNS)], lines)}"


def _verdict(results: Results) -> str:
    """Returns for each runtime whether ours is slower than the plain path beyond the floor."""
    lines = []
    for group in _groups():
        own = {
            row.arm: row for row in results.rows if row.group == group and row.metric == "speedup"
        }
        if AGAIN not in own:
            lines.append([group, *[NOT_RUN] * (len(SHARED) + 1)])
            continue
        floor = _floor(own[AGAIN])
        verdicts = [_one_verdict(own.get(f"edgeport {kind}"), floor) for kind in SHARED]
        lines.append([group, f"{floor:.0%}", *verdicts])
    title = "### Is our file slower than the plain path's? (plain / edgeport; below 1 is slower)"
    return f"{title}\n\n{markdown(['model', 'noise floor', *SHARED], lines)}"


def _floor(again: Row) -> float:
    """Returns how far the same file's ratio to itself may be from 1: the end of its interval."""
    assert again.interval is not None
    return max(abs(end - 1.0) for end in again.interval)


def _one_verdict(row: Row | None, floor: float) -> str:
    if row is None or row.value is None or row.interval is None:
        return NOT_RUN
    low, high = row.interval
    word = "faster" if low > 1 + floor else "SLOWER" if high < 1 - floor else "no slower"
    return f"{word} {number(row.value)} ({number(low)} to {number(high)})"
