"""The one-way flow: source -> capture -> passes -> quantize -> lower -> run -> manifest.

`export` is that line as one function. Planning checks everything that can be checked without
work; every slow step goes through the cache; files reach the output directory in one swap.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeport
from edgeport import catalog, report
from edgeport.cache import Cache, Entry, default_root
from edgeport.catalog import Source
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS, FeedPlan, data_files
from edgeport.fingerprint import (
    SourceTracker,
    digest,
    environment_digest,
    file_sha256,
    tree_sha256,
    unchanged,
)
from edgeport.plan import NPU, Plan, make_plan
from edgeport.staging import staged_directory
from edgeport.types import Artifact, TensorSpec

if TYPE_CHECKING:
    from torch import nn

LATENCY_SECONDS = 1.5  # of measured time per comparison, after as much warm-up


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

    def artifact(self, stage: str) -> Artifact:
        """Returns the artifact of a stage; raises KeyError with the stages there are."""
        for artifact in self.artifacts:
            if artifact.stage == stage:
                return artifact
        raise KeyError(f"no stage {stage!r}; there are {[a.stage for a in self.artifacts]}")


def export(
    source: str,
    *,
    output_dir: Path | str,
    cache_dir: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> Export:
    """Exports a model for a device, compares every stage with the reference, writes `output_dir`.

    `options` are those of `make_plan`; `cache_dir` replaces the user's cache directory;
    `progress` is told the step that starts. Raises InputError before any work for what cannot be
    done, StageFailed when a stage fails: then `output_dir` is as it was, and the files made so far
    are in `<output_dir>.failed`.
    """
    plan = make_plan(source, output_dir=output_dir, **options)
    with Cache(cache_dir or default_root()) as cache, staged_directory(plan.output_dir) as staging:
        flow = _Flow(plan, cache, staging, progress)
        captured = flow.capture()
        optimized = flow.passes(captured)
        model = flow.quantize(optimized, captured)  # the same as optimized where it is float
        flow.run_on_host(model, captured)
        if NPU in plan.runtimes:
            lowered = flow.lower(model)
            flow.emulate(lowered, captured)
        flow.latency(captured, optimized)  # last: nothing else may run beside a measurement
        manifest = flow.manifest(captured)
        report.write_files(staging, manifest)
    hits = [entry.hit for entry in flow.entries]
    return Export(plan.output_dir, tuple(flow.artifacts), manifest, len(hits), sum(hits))


@dataclass(frozen=True)
class _Step:
    """A finished step: the key that stands for everything it depends on, and its cache entry."""

    key: Mapping[str, Any]
    entry: Entry
    file: str

    @property
    def path(self) -> Path:
        return self.entry.directory / self.file


class _Flow:
    """The steps of one export; each chains its cache key to the one before and keeps its files."""

    def __init__(
        self, plan: Plan, cache: Cache, staging: Path, progress: Callable[[str], None]
    ) -> None:
        self.plan, self.cache, self.staging, self.progress = plan, cache, staging, progress
        self.artifacts: list[Artifact] = []
        self.entries: list[Entry] = []
        self.latencies: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self._module: nn.Module | None = None
        self._feeds = _feed_plan(plan)
        self._base = _base_key()

    def capture(self) -> _Step:
        step = self._captured(self.plan.source, self._files_read_by_source())
        self._keep(step, "model.onnx", PARITY_INPUTS, PARITY_OUTPUTS)
        return step

    def passes(self, captured: _Step) -> _Step:
        step = self._optimized(captured)
        self._keep(step, "optimized.onnx")
        return step

    def quantize(self, optimized: _Step, captured: _Step) -> _Step:
        plan = self.plan
        if plan.precision == "float":
            return optimized
        key = {
            "precision": plan.precision,
            "samples": plan.calibration_samples,
            "seed": plan.seed,
            "data": self._data_digests(),
        }
        feeds = self._feeds
        if not feeds.specs:  # an ONNX file states its own inputs; capture has read them
            feeds = replace(feeds, specs=_specs(captured.entry.result["inputs"]))
        step = self._step(
            "quantize",
            "quantized.onnx",
            key,
            optimized,
            lambda directory: _stages().quantize(
                directory,
                optimized.entry.directory,
                captured.entry.directory,
                feeds,
                plan.precision,
            ),
        )
        self._keep(step, "quantized.onnx")
        for name in ("calibrated_on", "io_scales"):
            self.facts[name] = step.entry.result[name]
        self.facts["calibration"] = feeds.origin()
        return step

    def lower(self, model: _Step) -> _Step:
        plan = self.plan
        step = self._step(
            "lower",
            "model.bin",
            {"device": plan.device.to_dict(), "precision": plan.precision},
            model,
            lambda directory: _stages().lower(
                directory, model.path, plan.device, plan.precision, plan.limits
            ),
        )
        self._keep(step, "model.bin", "model_ctx.onnx")
        self.facts["qairt_version"] = step.entry.result["qairt_version"]
        return step

    def emulate(self, lowered: _Step, captured: _Step) -> None:
        plan = self.plan
        step = self._step(
            "run-emulated",
            "model.bin",
            {"reference": captured.key},
            lowered,
            lambda directory: _stages().emulate(
                directory,
                lowered.entry.directory,
                captured.entry.directory,
                plan.source,
                plan.device,
                plan.precision,
                plan.limits,
            ),
        )
        self._keep(step)

    def run_on_host(self, model: _Step, captured: _Step) -> None:
        step = self._step(
            "run-host",
            model.file,
            {"reference": captured.key},
            model,
            lambda _: _stages().run_on_host(
                model.path, captured.entry.directory, self.plan.precision
            ),
        )
        self._keep(step)

    def latency(self, captured: _Step, optimized: _Step) -> None:
        recipe, variant = self.plan.source.recipe, self.plan.source.variant
        if recipe is None or recipe.baseline in (None, variant):
            return
        models, inputs, keys = [], [], []
        for label, overrides in recipe.comparisons:
            options = {**self.plan.source.options, **overrides}
            pair = [self._at(recipe.name, one, options) for one in (variant, recipe.baseline)]
            models.append((label, pair[0][1].path, pair[1][1].path))
            inputs.append(pair[0][0].entry.directory / PARITY_INPUTS)
            keys.append([step.key for _, step in pair])
        machine = {"node": platform.node(), "processor": platform.processor()}
        step = self._step(
            "latency",
            "",
            {"models": keys, "labels": [label for label, *_ in models], **machine},
            optimized,
            lambda _: _stages().latency(models, inputs, _stages().host_threads(), LATENCY_SECONDS),
        )
        self.latencies = step.entry.result["comparisons"]

    def manifest(self, captured: _Step) -> dict[str, Any]:
        result, recipe = captured.entry.result, self.plan.source.recipe
        return report.make_manifest(
            self.plan.describe(),
            self.artifacts,
            inputs=result["inputs"],
            outputs=result["outputs"],
            latency=self.latencies,
            facts={**self.facts, "baseline": recipe.baseline if recipe else None},
            files=self.staging,
            warnings=self.cache.warnings,
        )

    def _at(
        self, name: str, variant: str | None, options: Mapping[str, Any]
    ) -> tuple[_Step, _Step]:
        """Returns the captured and optimized steps of a recipe's variant at these options."""
        source = catalog.find_source(name, variant=variant, options=options)
        captured = self._captured(source, {})
        return captured, self._optimized(captured)

    def _captured(self, source: Source, files: Mapping[str, str]) -> _Step:
        feeds = replace(self._feeds, source=source, specs=source.inputs)
        data = self._data_digests() if source is self.plan.source else {}
        if source is not self.plan.source:  # a comparison is timed on seeded inputs
            feeds = replace(feeds, data=None, parity_samples=1)
        key = {
            "source": source.describe(),
            "files": files,
            "seed": feeds.seed,
            "samples": feeds.parity_samples,
            "data": data,
        }
        return self._step(
            "capture",
            "model.onnx",
            key,
            None,
            lambda directory: _stages().capture(
                directory, feeds, self._module if source is self.plan.source else None
            ),
        )

    def _optimized(self, captured: _Step) -> _Step:
        return self._step(
            "passes",
            "optimized.onnx",
            {},
            captured,
            lambda directory: _stages().run_passes(directory, captured.entry.directory),
        )

    def _step(
        self,
        name: str,
        file: str,
        key: Mapping[str, Any],
        before: _Step | None,
        build: Callable[[Path], Mapping[str, Any]],
    ) -> _Step:
        self.progress(name)
        chained = {"base": self._base, "own": key, "before": digest(before.key) if before else ""}
        entry = self.cache.step(name, chained, build, self.staging)
        self.entries.append(entry)
        return _Step(chained, entry, file)

    def _keep(self, step: _Step, *files: str) -> None:
        for file in files:
            for found in sorted(step.entry.directory.glob(f"{file}*")):  # with .data beside it
                shutil.copyfile(found, self.staging / found.name)
        artifact = Artifact.from_dict(step.entry.result["artifact"])
        self.artifacts.append(replace(artifact, seconds=round(step.entry.seconds, 3)))

    def _files_read_by_source(self) -> Mapping[str, str]:
        """Returns path -> sha256 of the local files that this source was built from.

        What a factory reads is known only after it ran: the list of its last run is remembered,
        and where a file on it changed the factory runs again, for a new list.
        """
        source = self.plan.source
        own = {str(path): file_sha256(path) for path in (source.path, source.weights) if path}
        if source.kind == "recipe":
            return own
        key = {"base": self._base, "path": str(source.path), "attribute": source.attribute}
        known = self.cache.recall("sources", key)
        if known is not None and unchanged(known["files"]):
            return {**known["files"], **own}
        files = self._build_tracked() if source.kind == "factory" else _external_data(source)
        self.cache.remember("sources", key, {"files": files})
        return {**files, **own}

    def _build_tracked(self) -> Mapping[str, str]:
        self.progress("build")
        with SourceTracker() as used:
            self._module = catalog.build_module(self.plan.source, self.plan.seed)
        return used.files

    def _data_digests(self) -> dict[str, str]:
        if self.plan.calibration_data is None:
            return {}
        return {str(file): file_sha256(file) for file in data_files(self.plan.calibration_data)}


def _stages() -> Any:
    """Imports the stages, with onnx and numpy, when the first step has to be built."""
    from edgeport import stages

    return stages


def _feed_plan(plan: Plan) -> FeedPlan:
    return FeedPlan(
        source=plan.source,
        specs=plan.source.inputs,
        seed=plan.seed,
        parity_samples=plan.parity_samples,
        calibration_samples=plan.calibration_samples,
        data=plan.calibration_data,
    )


def _base_key() -> dict[str, str]:
    """Returns what every step depends on: the pins, edgeport's own source and the recipes'."""
    import edgeport_recipes

    return {
        "environment": environment_digest(),
        "edgeport": tree_sha256(Path(edgeport.__file__).parent),
        "recipes": tree_sha256(Path(next(iter(edgeport_recipes.__path__)))),
    }


def _specs(tables: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in tables)


def _external_data(source: Source) -> dict[str, str]:
    """Returns path -> sha256 of the files beside an ONNX model that hold its weights."""
    from edgeport.capture import external_data_files

    assert source.path is not None
    return {str(file): file_sha256(file) for file in external_data_files(source.path)}
