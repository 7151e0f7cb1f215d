"""The stages of the flow: each writes its files into a directory and returns its Artifact.

The pipeline runs them through the cache; nothing here knows about caching, output directories or
later stages. Importing this module imports onnx and numpy, but torch only where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgeport.capture import (
    Outputs,
    capture_module,
    check_outputs,
    load_onnx,
    model_inputs,
    model_outputs,
    run_module,
    save_model,
)
from edgeport.catalog import Source
from edgeport.compare import sqnr_db
from edgeport.errors import InputError, StageFailed
from edgeport.feeds import (
    PARITY_INPUTS,
    PARITY_INTEGERS,
    PARITY_OUTPUTS,
    Feed,
    FeedPlan,
    calibration_feeds,
    parity_feeds,
)
from edgeport.fingerprint import file_sha256
from edgeport.measure import environment, interleave, ratio, to_measurement
from edgeport.parity import compared, described, hold, proven, tolerance_db
from edgeport.passes import EXACT_DB, Target, passes_for
from edgeport.passes.apply import apply_passes
from edgeport.private import scratch_directory
from edgeport.quantize.apply import layer_losses, quantize_as
from edgeport.quantize.config import Request
from edgeport.quantize.integer_io import (
    decode_outputs,
    edge_scales,
    encode_feed,
    load_edges,
    quantize_edges,
    save_edges,
)
from edgeport.quantize.mixed import describe
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.lowering import compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits
from edgeport.sources import Built, build
from edgeport.sources.half import widen
from edgeport.sources.onnx_file import fix_output_shapes, lookup_ranges, open_onnx
from edgeport.sources.quantized import own_precision
from edgeport.types import Device, Measurement, Precision, plain

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT16_DB = 20.0  # a deep net of float16 loses some 30 dB by rounding alone


def capture(directory: Path, plan: FeedPlan, built: Built | None = None) -> dict[str, Any]:
    """Writes model.onnx, the parity inputs, and the reference outputs: torch's, or the file's own.

    Returns the artifact with the specs of the graph's inputs and outputs, and the ranges of its
    integer inputs.
    """
    source = plan.source
    notes: tuple[str, ...] = ()
    if source.kind == "onnx":
        model, plan, feeds, references = _capture_file(plan)
    else:
        built = built if built is not None else build(source, plan.seed)
        plan = replace(plan, specs=built.inputs, integer_ranges=built.integer_ranges)
        feeds, notes = parity_feeds(plan), built.notes
        inner = _inner(plan, feeds)
        references = run_module(built.module, inner)
        model = capture_module(built.module, inner[0])
    if widen(model):
        plan, feeds, references, note = _widened(model, plan, feeds, references)
        notes += (note,)
    own = own_precision(model)
    if own:
        notes += (f"quantized already ({own}): kept as it is, without passes or a second rounding",)
    plan.boundary.fold(model, plan.specs)
    save_model(model, directory / "model.onnx")
    save_samples(directory / PARITY_INPUTS, feeds)
    save_samples(directory / PARITY_OUTPUTS, [named_outputs(one) for one in references])
    artifact = proven(
        directory / "model.onnx", "capture", own or "fp32", directory, EXACT_DB, notes=notes
    )
    return {
        "artifact": artifact.to_dict(),
        "inputs": [spec.to_dict() for spec in model_inputs(model)],
        "model_inputs": [spec.to_dict() for spec in plan.specs],
        "outputs": [spec.to_dict() for spec in model_outputs(model)],
        "integer_ranges": dict(plan.integer_ranges),
        "own_precision": own,
    }


def _widened(
    model: ir.Model, plan: FeedPlan, feeds: list[Feed], references: list[Outputs]
) -> tuple[FeedPlan, list[Feed], list[Outputs], str]:
    """Returns the plan, the feeds, the answers of a graph that was float16, and a note.

    The new answers are the reference. Raises StageFailed where they are far from those in float16.
    """
    plan = replace(plan, specs=model_inputs(model))
    feeds = [
        {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in feed.items()}
        for feed in feeds
    ]
    with scratch_directory() as folder:
        save_model(model, folder / "model.onnx")
        session = Session(folder / "model.onnx")
        answers = [check_outputs(session.run(feed)) for feed in _inner(plan, feeds)]
    pairs = [pair for old, new in zip(references, answers) for pair in zip(old, new)]
    near_db = min(sqnr_db(new, old) for old, new in pairs)
    if near_db < FLOAT16_DB:
        raise StageFailed(
            "capture", f"in float16 the graph is {near_db:.1f} dB from itself in float32"
        )
    note = "the graph computes in float16 and was written as float32, inputs and outputs too:"
    return plan, feeds, answers, f"{note} {near_db:.1f} dB from its answers in float16"


def _capture_file(plan: FeedPlan) -> tuple[ir.Model, FeedPlan, list[Feed], list[Outputs]]:
    """Returns an ONNX file's model at the sizes asked for, and what the file itself computes."""
    source = plan.source
    assert source.path is not None
    model = open_onnx(source.path, source.inputs)
    ranges = lookup_ranges(model)
    plan = replace(plan, specs=model_inputs(model), integer_ranges=ranges)
    feeds = parity_feeds(plan)
    try:
        original = Session(source.path)
        references = [check_outputs(original.run(feed)) for feed in _inner(plan, feeds)]
    except StageFailed as error:  # nothing was made of the file yet: it is the input that fails
        raise InputError(f"{source.text}: {error}") from error
    fix_output_shapes(model, references[0])
    return model, plan, feeds, references


def _inner(plan: FeedPlan, feeds: Sequence[Feed]) -> list[Feed]:
    """Returns what the model takes for what the app gives; raises where the boundary cannot be."""
    plan.boundary.check(plan.specs)
    return [plan.boundary.to_inner(feed, plan.specs) for feed in feeds]


def run_passes(
    directory: Path, captured: Path, target: Target, computed_in: str, file: str
) -> dict[str, Any]:
    """Writes `file`: the captured model after the target's passes, each one proven."""
    model = load_onnx(captured / "model.onnx")
    feeds = load_samples(captured / PARITY_INPUTS)
    applied = apply_passes(model, passes_for(target), feeds, minimum_db=EXACT_DB)
    save_model(applied.model, directory / file)
    artifact = proven(
        directory / file,
        "passes",
        computed_in,
        captured,
        applied.least_db(EXACT_DB),
        steps=tuple((step.name, step.count) for step in applied.steps),
        notes=applied.notes,
    )
    proofs = [
        {
            "pass": step.name,
            "count": step.count,
            "sqnr_db": plain(step.sqnr_db),
            "rolled_back": step.rolled_back,
        }
        for step in applied.steps
    ]
    return {"artifact": artifact.to_dict(), "passes": proofs}


def quantize(
    directory: Path,
    optimized: Path,
    captured: Path,
    plan: FeedPlan,
    precision: Precision,
    request: Request,
    integer_io: bool,
) -> dict[str, Any]:
    """Writes quantized.onnx, calibrated on the plan's calibration feeds.

    With `integer_io` its inputs and outputs are the integers themselves, and the parity inputs as
    such are written too. The trade-off is one entry per choice of precisions that was tried; empty
    where none was asked.
    """
    target = directory / "quantized.onnx"
    quantized = quantize_as(
        optimized / "optimized.onnx", target, request, lambda: calibration_feeds(plan)
    )
    scales = edge_scales(onnx.load(target))
    edges = quantize_edges(target) if integer_io else {}
    if integer_io:
        save_edges(target, edges)
        stored = [encode_feed(feed, edges) for feed in load_samples(captured / PARITY_INPUTS)]
        save_samples(directory / PARITY_INTEGERS, stored)
    artifact = proven(
        target,
        "quantize",
        quantized.computed,
        captured,
        max(tolerance_db(plan.source, precision), request.least_db or float("-inf")),
        notes=tuple(describe(step) for step in quantized.steps),
    )
    return {
        "artifact": artifact.to_dict(),
        "calibrated_on": quantized.count,
        "io_scales": {name: scale.to_dict() for name, scale in scales.items()},
        "integer_io": sorted(edges),
        "trade_off": [step.to_dict() for step in quantized.steps],
    }


def sensitivity(
    optimized: Path, plan: FeedPlan, request: Request, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the layers of optimized.onnx by what they lose when quantized alone."""
    found = layer_losses(
        optimized / "optimized.onnx",
        request.precision,
        request.method,
        lambda: calibration_feeds(plan),
        lambda done, total: progress(f"layer {done} of {total}"),
    )
    return {"layers": [one.to_dict() for one in found]}


def lower(
    directory: Path,
    runtime: str,
    model: Path,
    device: Device,
    precision: Precision,
    limits: Limits,
    computed_in: str,
    calibration: FeedPlan | None,
) -> dict[str, Any]:
    """Writes the runtime's files, compiled for the device; the facts are its compiler's own.

    `calibration` is given where the runtime's converter quantizes.
    """
    with scratch_directory() as folder:
        feeds = None
        if calibration is not None:
            feeds = folder / "calibration.npz"
            save_samples(feeds, list(calibration_feeds(calibration)))
        compiled = compile_for(runtime, model, directory, device, precision, limits, feeds)
    facts = dict(compiled.facts)
    artifact = described(
        directory / RUNTIMES[runtime].files[0],
        "lower",
        computed_in,
        notes=tuple(f"{runtime}: {note}" for note in facts.pop("notes", ())),
        nodes=compiled.nodes,
        runtime=runtime,
    )
    return {"artifact": artifact.to_dict(), "facts": facts}


def run_here(
    directory: Path,
    runtime: str,
    lowered: Path,
    model: Path,
    captured: Path,
    source: Source,
    device: Device,
    precision: Precision,
    limits: Limits,
    computed_in: str,
) -> dict[str, Any]:
    """Returns the parity of a runtime's files, run on the parity inputs; `model` was compiled.

    An NPU's files run in the vendor's emulator.
    """
    known = RUNTIMES[runtime]
    assert known.runs_as is not None, f"nothing here runs {runtime}"
    file = lowered / known.files[0]
    edges = load_edges(model)
    inputs = model.with_name(PARITY_INTEGERS) if edges else captured / PARITY_INPUTS
    stored = run_compiled(runtime, lowered, directory, inputs, device, limits)
    names = Session(model).output_names()
    actual = [named_outputs(decode_outputs(list(s.values()), names, edges)) for s in stored]
    references = load_samples(captured / PARITY_OUTPUTS)
    parity = compared(references, actual, known.runs_as, file_sha256(file))
    hold(parity, tolerance_db(source, precision), "run", f"{file.name} in {known.runs_here}")
    artifact = described(file, "run", computed_in, parity=parity, runtime=runtime)
    return {"artifact": artifact.to_dict()}


def run_on_host(model: Path, captured: Path, computed_in: str) -> dict[str, Any]:
    """Returns the parity of the model that onnxruntime runs on this machine."""
    artifact = proven(model, "run", computed_in, captured, float("-inf"), runtime="onnx")
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
