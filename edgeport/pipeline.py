"""The one-way flow: source -> capture -> passes -> quantize -> lower -> run -> manifest.

`export` is that line as one function. Planning checks everything that can be checked without
work; every slow step goes through the cache; files reach the output directory in one swap.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from edgeport import report, written
from edgeport.cache import Cache, default_root
from edgeport.errors import InputError, StageFailed
from edgeport.flow import Flow, Step
from edgeport.places import JOURNAL, find_place
from edgeport.plan import Options, Plan, make_plan
from edgeport.private import scratch_directory
from edgeport.runtimes import RUNTIMES
from edgeport.staging import staged_directory
from edgeport.types import Artifact, plain


@dataclass(frozen=True)
class Export:
    """What `export` made: the directory, its artifacts in the order of the flow, the manifest.

    `steps` counts the slow steps, `cached_steps` those whose result was in the cache.
    """

    directory: Path
    artifacts: tuple[Artifact, ...]
    manifest: Mapping[str, Any]
    steps: int
    cached_steps: int

    def artifact(self, stage: str, runtime: str | None = None) -> Artifact:
        """Returns the artifact of a stage, "lower" and "run" those of a runtime, else the first.

        Raises KeyError with the stages there are.
        """
        for artifact in self.artifacts:
            if artifact.stage == stage and runtime in (None, artifact.runtime):
                return artifact
        made = [f"{one.stage} {one.runtime}".rstrip() for one in self.artifacts]
        raise KeyError(f"no stage {stage!r} of {runtime or 'any runtime'}; there are {made}")


def export(
    source: str,
    *,
    output_dir: Path | str,
    on: str = "",
    cache_dir: Path | str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Unpack[Options],
) -> Export:
    """Exports a model for a device, compares every stage with the reference, writes `output_dir`.

    `source` and `options` are what the command line takes (`edgeport.plan.Options`); one of
    `device` and `chipset` is needed. `on` names a place (`edgeport.places`) where the files are run
    once they are written. `cache_dir` replaces the user's cache directory; `progress` is
    told the step that starts. Raises InputError for what cannot be done, most of it before any
    work, and StageFailed when a stage fails: then `output_dir` is as it was, and the files made so
    far are in `<output_dir>.failed`.
    """
    plan = make_plan(source, output_dir=output_dir, **options)
    assert plan.output_dir is not None
    place = find_place(on) if on else None
    if place is not None:
        place.check(plan.runtimes)
    with (
        Cache(Path(cache_dir) if cache_dir else default_root()) as cache,
        staged_directory(plan.output_dir) as staging,
    ):
        make = _write if plan.written else _compile
        artifacts, manifest, hits = make(plan, cache, staging, progress, options)
    if place is not None:
        from edgeport.running import read_manifest, run_at  # heavy, where most exports are cached

        runs = run_at(
            plan.output_dir,
            place,
            limits=plan.limits,
            calib_data=plan.calibration_data,
            progress=progress,
        )
        artifacts += tuple(run.artifact for run in runs)
        manifest = read_manifest(plan.output_dir)
    return Export(plan.output_dir, artifacts, manifest, len(hits), sum(hits))


Made = tuple[tuple[Artifact, ...], dict[str, Any], list[bool]]
"""The artifacts, the manifest, and which steps were in the cache."""


def _write(
    plan: Plan,
    cache: Cache,
    staging: Path,
    progress: Callable[[str], None],
    options: Mapping[str, Any],
) -> Made:
    """Returns what a recipe's exporter made of its source."""
    made = written.export(plan, cache, staging, progress)
    manifest = {**made.manifest, "request": _request(plan, options)}
    report.write_manifest(staging, manifest)
    return made.artifacts, manifest, [entry.hit for entry in made.entries]


def _compile(
    plan: Plan,
    cache: Cache,
    staging: Path,
    progress: Callable[[str], None],
    options: Mapping[str, Any],
) -> Made:
    """Returns what the flow made of a model."""
    assert plan.output_dir is not None
    flow = Flow(plan, cache, staging, progress)
    captured = flow.capture()
    try:
        _make(flow, plan, captured)
    except StageFailed:  # compare and bisect look at what was made until then
        report.write_manifest(staging, _manifest(flow, plan, captured, options))
        raise
    _carry_journal(plan.output_dir, staging)
    manifest = _manifest(flow, plan, captured, options)
    report.write_files(staging, manifest)
    return tuple(flow.artifacts), manifest, [entry.hit for entry in flow.entries]


def _make(flow: Flow, plan: Plan, captured: Step) -> None:
    """Runs the steps behind capture."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        # The emulator takes one core for a while: the baseline is captured on the other.
        if plan.shared:
            optimized = flow.passes(captured)
            model = flow.quantize(optimized, captured)  # the same file where it is float
            flow.run_on_host(model, captured)
        comparisons = beside.submit(flow.comparisons)
        if plan.shared:
            _lower(flow, plan.shared, model, captured)
        if plan.converted:
            _lower(flow, plan.converted, flow.passes_for_converters(captured), captured)
    # Last: nothing else may run beside a measurement.
    flow.latency(comparisons.result(), captured)


def _manifest(flow: Flow, plan: Plan, captured: Step, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**flow.manifest(captured), "request": _request(plan, options)}


def _request(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was asked for as `reproduce` asks for it again: plain values, no defaults.

    Paths are as they were given.
    """
    defaults = {name: one.default for name, one in inspect.signature(make_plan).parameters.items()}
    told = {
        key: str(value) if isinstance(value, Path) else plain(value)
        for key, value in options.items()
        if key in defaults and value and value != defaults[key]
    }
    if plan.source.recipe is not None:
        told["options"] = plain(plan.source.options)  # those that were left out have defaults
    return {"source": plan.source.text, **{key: told[key] for key in sorted(told)}}


def _carry_journal(output_dir: Path, staging: Path) -> None:
    """Keeps the jobs that a place was given: an interrupted export goes on with them."""
    if (output_dir / JOURNAL).is_file():
        shutil.copyfile(output_dir / JOURNAL, staging / JOURNAL)


def _lower(flow: Flow, runtimes: Sequence[str], model: Step, captured: Step) -> None:
    """Compiles the model for each of these runtimes, and runs what this machine can run."""
    for name in runtimes:
        if name == "onnx":  # the model itself; it was run when it was made
            continue
        lowered = flow.lower(name, model, captured)
        if RUNTIMES[name].runs_as is not None:
            flow.run(name, lowered, model, captured)


def sensitivity(
    source: str,
    *,
    cache_dir: Path | str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Unpack[Options],
) -> list[dict[str, Any]]:
    """Returns, per layer, the SQNR in dB of the outputs with that layer alone quantized.

    The worst layer comes first. `options` are those of `export`; "auto" ranks as w8a8. Everything
    runs on this machine, and nothing is written but the cache. Raises InputError and StageFailed.
    """
    with (
        scratch_directory() as folder,
        Cache(Path(cache_dir) if cache_dir else default_root()) as cache,
    ):
        plan = make_plan(source, output_dir=folder / "out", **options)
        if plan.quantization is None:
            raise InputError("float is not quantized: name --precision w8a8, w8a16 or w4a16")
        # The precision is that of one layer at a time, and contradicts nothing.
        flow = Flow(replace(plan, precision_given=False), cache, folder, progress)
        captured = flow.capture()
        if flow.plan.own_precision:
            raise InputError(
                f"{source} is quantized already: give the float model to rank its layers"
            )
        optimized = flow.passes(captured)
        return flow.sensitivity(optimized, captured)
