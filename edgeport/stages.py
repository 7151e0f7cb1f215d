"""The stages of the flow: each writes its files into a directory and returns its Artifact.

The pipeline runs them through the cache; nothing here knows about caching, output directories or
later stages. Importing this module imports onnx and numpy, but torch only where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport import compare
from edgeport.capture import (
    capture_module,
    check_outputs,
    load_onnx,
    model_inputs,
    model_outputs,
    run_module,
    save_model,
)
from edgeport.catalog import Source, build_module
from edgeport.errors import StageFailed
from edgeport.feeds import (
    PARITY_INPUTS,
    PARITY_OUTPUTS,
    FeedPlan,
    calibration_feeds,
    parity_feeds,
)
from edgeport.fingerprint import file_sha256
from edgeport.measure import environment, interleave, ratio, to_measurement
from edgeport.passes import EXACT
from edgeport.passes.apply import apply_passes
from edgeport.quantize.apply import boundary_scales, quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes import qnn_context_binary
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits
from edgeport.types import (
    Artifact,
    Device,
    Measurement,
    NodeReport,
    Precision,
    Provenance,
    plain,
)

if TYPE_CHECKING:
    from torch import nn

EXACT_DB = 80.0  # float32 rounding stays above 100 dB here; a wrong graph is far below 80


def capture(directory: Path, plan: FeedPlan, module: nn.Module | None = None) -> dict[str, Any]:
    """Writes model.onnx, the parity inputs, and the reference outputs: torch's, or the file's own.

    Returns the artifact with the specs of the graph's inputs and outputs.
    """
    source = plan.source
    if source.path is not None and source.kind == "onnx":
        model = load_onnx(source.path)
        plan = FeedPlan(**{**vars(plan), "specs": model_inputs(model)})
        feeds = parity_feeds(plan)
        original = Session(source.path)
        references = [check_outputs(original.run(feed)) for feed in feeds]
    else:
        feeds = parity_feeds(plan)
        module = module if module is not None else build_module(source, plan.seed)
        references = run_module(module, feeds)
        model = capture_module(module, feeds[0])
    save_model(model, directory / "model.onnx")
    save_samples(directory / PARITY_INPUTS, feeds)
    save_samples(directory / PARITY_OUTPUTS, [named_outputs(one) for one in references])
    artifact = _proven(directory / "model.onnx", "capture", "fp32", directory, EXACT_DB)
    return {
        "artifact": artifact.to_dict(),
        "inputs": [spec.to_dict() for spec in model_inputs(model)],
        "outputs": [spec.to_dict() for spec in model_outputs(model)],
    }


def run_passes(directory: Path, captured: Path) -> dict[str, Any]:
    """Writes optimized.onnx: the captured model after the exact passes, each proven by itself."""
    model = load_onnx(captured / "model.onnx")
    feeds = load_samples(captured / PARITY_INPUTS)
    applied = apply_passes(model, EXACT, feeds, minimum_db=EXACT_DB)
    save_model(applied.model, directory / "optimized.onnx")
    artifact = _proven(
        directory / "optimized.onnx",
        "passes",
        "fp32",
        captured,
        EXACT_DB,
        steps=tuple((name, count) for name, count, _ in applied.steps),
        notes=applied.notes,
    )
    proofs = [
        {"pass": name, "count": count, "sqnr_db": plain(difference_db)}
        for name, count, difference_db in applied.steps
    ]
    return {"artifact": artifact.to_dict(), "passes": proofs}


def quantize(
    directory: Path, optimized: Path, captured: Path, plan: FeedPlan, precision: Precision
) -> dict[str, Any]:
    """Writes quantized.onnx, calibrated on the plan's calibration feeds."""
    target = directory / "quantized.onnx"
    feeds = calibration_feeds(plan)
    count = quantize_file(optimized / "optimized.onnx", target, CONFIGS[precision], feeds)
    artifact = _proven(
        target, "quantize", precision, captured, _tolerance_db(plan.source, precision)
    )
    return {
        "artifact": artifact.to_dict(),
        "calibrated_on": count,
        "io_scales": boundary_scales(target),
    }


def lower(
    directory: Path, model: Path, device: Device, precision: Precision, limits: Limits
) -> dict[str, Any]:
    """Writes model.bin and model_ctx.onnx, compiled for the device's chip."""
    compiled = qnn_context_binary.compile_model(model, directory, device, precision, limits)
    artifact = _artifact(
        directory / qnn_context_binary.BINARY,
        "lower",
        _computed(precision),
        nodes=compiled.nodes,
    )
    return {"artifact": artifact.to_dict(), "qairt_version": compiled.qairt_version}


def emulate(
    directory: Path,
    lowered: Path,
    captured: Path,
    source: Source,
    device: Device,
    precision: Precision,
    limits: Limits,
) -> dict[str, Any]:
    """Returns the compiled binary's parity: the emulator runs it on the parity inputs."""
    binary = lowered / qnn_context_binary.BINARY
    actual = qnn_context_binary.run_emulated(
        lowered, directory, captured / PARITY_INPUTS, device, limits
    )
    parity = _parity(
        load_samples(captured / PARITY_OUTPUTS), actual, "emulated", file_sha256(binary)
    )
    _hold(parity, _tolerance_db(source, precision), "run", f"{binary.name} in the emulator")
    artifact = _artifact(binary, "run (emulator)", _computed(precision), parity=parity)
    return {"artifact": artifact.to_dict()}


def run_on_host(model: Path, captured: Path, precision: Precision) -> dict[str, Any]:
    """Returns the parity of the model that onnxruntime runs on this machine."""
    computed = "fp32" if precision == "float" else precision
    artifact = _proven(model, "run (host)", computed, captured, float("-inf"))
    return {"artifact": artifact.to_dict()}


def latency(
    compared: Sequence[tuple[str, Path, Path, Path]], threads: int, seconds: float
) -> dict[str, Any]:
    """Returns, per (label, variant, baseline, inputs), both host latencies and their ratio."""
    rows = []
    for label, variant, baseline, inputs in compared:
        feed = load_samples(inputs)[0]
        paths = {"variant": variant, "baseline": baseline}
        timings = interleave(
            {name: partial(Session(p, threads, spin=False).run, feed) for name, p in paths.items()},
            rounds=None,
            seconds=seconds,
            warmup_seconds=seconds,
        )
        gain = ratio(timings["baseline"], timings["variant"])
        measured = {
            name: to_measurement(
                timings[name],
                provenance="host",
                artifact_sha256=file_sha256(path),
                environment=environment(threads),
            )
            for name, path in paths.items()
        }
        measured["speedup"] = Measurement(
            "speedup", gain.value, "ratio", "host", interval=(gain.low, gain.high)
        )
        rows.append({"what": label, **{name: one.to_dict() for name, one in measured.items()}})
    return {"comparisons": rows}


def host_threads() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _computed(precision: Precision) -> str:
    return "fp16" if precision == "float" else precision


def _tolerance_db(source: Source, precision: Precision) -> float:
    tolerances = source.recipe.tolerance_db if source.recipe is not None else {}
    return tolerances.get(precision, float("-inf"))


def _proven(
    path: Path,
    stage: str,
    computed: str,
    captured: Path,
    minimum_db: float,
    steps: tuple[tuple[str, int], ...] = (),
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Returns the artifact of a model that this machine runs, compared with the reference."""
    session = Session(path)
    actual = [named_outputs(session.run(feed)) for feed in load_samples(captured / PARITY_INPUTS)]
    parity = _parity(load_samples(captured / PARITY_OUTPUTS), actual, "host", file_sha256(path))
    _hold(parity, minimum_db, stage, path.name)
    return _artifact(path, stage, computed, steps=steps, notes=notes, parity=parity)


def _artifact(
    path: Path,
    stage: str,
    computed: str,
    *,
    steps: tuple[tuple[str, int], ...] = (),
    notes: tuple[str, ...] = (),
    nodes: tuple[NodeReport, ...] = (),
    parity: tuple[Measurement, ...] = (),
) -> Artifact:
    size, sha = path.stat().st_size, file_sha256(path)
    return Artifact(stage, path.name, computed, sha, size, 0.0, steps, notes, nodes, parity)


def _parity(
    references: Sequence[Sample], actual: Sequence[Sample], provenance: Provenance, sha256: str
) -> tuple[Measurement, ...]:
    """Returns sqnr_db and max_abs: worst over all, and per sample worst over outputs."""
    pairs = [
        [(reference[name], answer[name]) for name in reference]
        for reference, answer in zip(references, actual, strict=True)
    ]
    sqnr = tuple(min(compare.sqnr_db(*pair) for pair in sample) for sample in pairs)
    error = tuple(max(compare.max_abs(*pair) for pair in sample) for sample in pairs)
    return (
        Measurement("sqnr_db", min(sqnr), "dB", provenance, sqnr, artifact_sha256=sha256),
        Measurement("max_abs", max(error), "1", provenance, error, artifact_sha256=sha256),
    )


def _hold(parity: Sequence[Measurement], minimum_db: float, stage: str, name: str) -> None:
    sqnr_db = parity[0].value
    if sqnr_db < minimum_db:
        raise StageFailed(
            stage,
            f"{name} is {sqnr_db:.1f} dB from the reference; {minimum_db:.0f} dB are needed",
        )
