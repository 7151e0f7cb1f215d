"""The steps of an export: each is built by a stage, kept by the cache, and copied to the output.

A step's cache key chains to the key of the step before it, and starts from what everything depends
on: the installed packages, edgeport's own source, the source model's files, options and data. Keys
are computed without importing torch or onnx: a repeated export imports neither.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport import catalog, report
from edgeport.boundary import Boundary
from edgeport.cache import Cache, Entry
from edgeport.catalog import Source
from edgeport.config import load_config
from edgeport.errors import InputError
from edgeport.feeds import PARITY_INPUTS, PARITY_INTEGERS, PARITY_OUTPUTS, FeedPlan, data_files
from edgeport.fingerprint import digest, file_sha256, interpreter_digest
from edgeport.footprint import SourceFiles, base_key, shortened
from edgeport.plan import CONVERTED, OPTIMIZED, Plan, keep_quantized
from edgeport.runtimes import RUNTIMES
from edgeport.types import PRECISIONS, Artifact, TensorSpec

if TYPE_CHECKING:
    from edgeport.passes import Target
    from edgeport.sources import Built

LATENCY_SECONDS = 1.5  # of measured time per comparison, after as much warm-up


@dataclass(frozen=True)
class Step:
    """A finished step: the key that stands for everything it depends on, and its cache entry."""

    key: Mapping[str, Any]
    entry: Entry
    file: str

    @property
    def path(self) -> Path:
        return self.entry.directory / self.file


@dataclass(frozen=True)
class Comparison:
    """Two optimized models to time against each other, and the file of their inputs."""

    label: str
    ours: Step
    theirs: Step
    inputs: Path


class Flow:
    """The steps of one export; each chains its cache key to the one before and keeps its files."""

    def __init__(
        self, plan: Plan, cache: Cache, staging: Path, progress: Callable[[str], None]
    ) -> None:
        self.plan, self.cache, self.staging, self.progress = plan, cache, staging, progress
        self.artifacts: list[Artifact] = []
        self.entries: list[Entry] = []
        self.latencies: list[dict[str, Any]] = []
        self.uncompared: list[str] = []
        self.facts: dict[str, Any] = {}
        self._compiled: dict[str, Step] = {}
        self._built: Built | None = None
        self._feeds = feed_plan(plan)
        self._base = base_key()

    def capture(self) -> Step:
        files = SourceFiles(self.plan.source, self.plan.seed, self.progress)
        digests = files.digests(self.cache, self._base)
        self.facts["read"] = shortened({**digests, **self._data_digests})
        self._built = files.built
        step = self._captured(self.plan.source, digests)
        self._built = None  # its weights are in the file now
        if own := step.entry.result["own_precision"]:
            self.plan = keep_quantized(self.plan, own)
        self._keep(step, "model.onnx", PARITY_INPUTS, PARITY_OUTPUTS)
        return step

    def passes(self, captured: Step) -> Step:
        step = self._optimized(captured, self.plan.passes)
        self._keep(step, OPTIMIZED)
        self.facts["passes"] = step.entry.result["passes"]
        return step

    def passes_for_converters(self, captured: Step) -> Step:
        """Returns the float graph for the runtimes whose converters quantize by themselves."""
        step = self._optimized(captured, "gpu", CONVERTED)
        self._keep(step, CONVERTED)
        return step

    def quantize(self, optimized: Step, captured: Step) -> Step:
        plan = self.plan
        if plan.quantization is None:
            return optimized
        key = {
            "precision": plan.precision,
            "request": asdict(plan.quantization),
            "samples": plan.calibration_samples,
            "seed": plan.seed,
            "data": self._data_digests,
            "integer_io": plan.quantize_io,
        }
        feeds = self._calibration_plan(captured)
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
                plan.quantization,
                plan.quantize_io,
            ),
        )
        self._keep(step, "quantized.onnx", PARITY_INTEGERS)
        for name in ("calibrated_on", "io_scales", "integer_io", "trade_off"):
            self.facts[name] = step.entry.result[name]
        self.facts["calibration"] = feeds.origin()
        return step

    def sensitivity(self, optimized: Step, captured: Step) -> list[dict[str, Any]]:
        """Returns the loss of each layer, the worst first."""
        request = self.plan.quantization
        assert request is not None
        key = {
            "precision": request.precision,
            "method": request.method,
            "samples": self.plan.calibration_samples,
            "seed": self.plan.seed,
            "data": self._data_digests,
        }
        feeds = self._calibration_plan(captured)
        step = self._step(
            "sensitivity",
            "",
            key,
            optimized,
            lambda _: _stages().sensitivity(
                optimized.entry.directory, feeds, request, self.progress
            ),
        )
        return list(step.entry.result["layers"])

    def _calibration_plan(self, captured: Step) -> FeedPlan:
        """Returns which feeds calibrate: capture knows the inputs that the model itself states."""
        result = captured.entry.result
        ranges = {name: (low, high) for name, (low, high) in result["integer_ranges"].items()}
        return replace(self._feeds, specs=_specs(result["model_inputs"]), integer_ranges=ranges)

    def lower(self, runtime: str, model: Step, captured: Step) -> Step:
        """Returns the runtime's compiled files, which are kept in the output."""
        step = self._lowered(runtime, model, captured)
        self._keep(step, *RUNTIMES[runtime].files)
        self.facts.setdefault("compiled", {})[runtime] = step.entry.result["facts"]
        return step

    def _lowered(self, runtime: str, model: Step, captured: Step) -> Step:
        """Returns the runtime's compiled files; a converter quantizes on the calibration feeds.

        A runtime that packs another one's files gets those: one compilation serves both.
        """
        if runtime in self._compiled:
            return self._compiled[runtime]
        plan = self.plan
        packed = RUNTIMES[runtime].packs
        before = self._lowered(packed, model, captured) if packed else model
        feeds = None
        if runtime in plan.converted and plan.precision in PRECISIONS and plan.precision != "float":
            feeds = self._calibration_plan(captured)
            self.facts["calibration"] = feeds.origin()
        key = {
            "device": plan.device.to_dict(),
            "precision": plan.precision,
            "calibration": feeds and [plan.calibration_samples, plan.seed, self._data_digests],
            "interpreter": interpreter_digest(load_config().interpreters.get(runtime)),
        }
        step = self._step(
            f"lower-{runtime}",
            RUNTIMES[runtime].files[0],
            key,
            before,
            lambda directory: _stages().lower(
                directory,
                runtime,
                before.path,
                plan.device,
                plan.precision,
                plan.limits,
                plan.computed_by(runtime),
                feeds,
            ),
        )
        self._compiled[runtime] = step
        return step

    def run(self, runtime: str, lowered: Step, model: Step, captured: Step) -> None:
        """Compares what the runtime's files give on this machine; an NPU's in its emulator."""
        plan = self.plan
        step = self._step(
            f"run-{runtime}",
            lowered.file,
            {"reference": captured.key},
            lowered,
            lambda directory: _stages().run_here(
                directory,
                runtime,
                lowered.entry.directory,
                model.path,
                captured.entry.directory,
                plan.source,
                plan.device,
                plan.precision,
                plan.limits,
                plan.computed_by(runtime),
            ),
        )
        self._keep(step)

    def run_on_host(self, model: Step, captured: Step) -> None:
        step = self._step(
            "run-onnx",
            model.file,
            {"reference": captured.key},
            model,
            lambda _: _stages().run_on_host(
                model.path, captured.entry.directory, self.plan.computed_by("onnx")
            ),
        )
        self._keep(step)

    def comparisons(self) -> list[Comparison]:
        """Returns the variant and its baseline, optimized, at each size the recipe compares."""
        recipe, variant = self.plan.source.recipe, self.plan.source.variant
        if recipe is None or recipe.baseline in (None, variant):
            return []
        compared = []
        for label, overrides in recipe.comparisons:
            options = {**self.plan.source.options, **overrides}
            captured, ours = self._at(recipe.name, variant, options)
            try:
                _, theirs = self._at(recipe.name, recipe.baseline, options)
            except InputError as error:  # such as weights that are the variant's alone
                self.uncompared.append(f"{label}: not timed beside {recipe.baseline}: {error}")
                continue
            inputs = captured.entry.directory / PARITY_INPUTS
            compared.append(Comparison(label, ours, theirs, inputs))
        return compared

    def latency(self, compared: list[Comparison], optimized: Step) -> None:
        if not compared:
            return
        key = {
            "compared": [(one.label, one.ours.key, one.theirs.key) for one in compared],
            "machine": [platform.node(), platform.processor()],
        }
        rows = [(one.label, one.ours.path, one.theirs.path, one.inputs) for one in compared]
        step = self._step(
            "latency",
            "",
            key,
            optimized,
            lambda _: _stages().latency(rows, _stages().host_threads(), LATENCY_SECONDS),
        )
        self.latencies = step.entry.result["comparisons"]

    def manifest(self, captured: Step) -> dict[str, Any]:
        result, recipe = captured.entry.result, self.plan.source.recipe
        return report.make_manifest(
            self.plan.describe(),
            self.artifacts,
            inputs=result["inputs"],
            outputs=result["outputs"],
            latency=self.latencies,
            facts={**self.facts, "baseline": recipe.baseline if recipe else None},
            files=self.staging,
            warnings=[*self.cache.warnings, *self.uncompared],
        )

    def _at(self, name: str, variant: str | None, options: Mapping[str, Any]) -> tuple[Step, Step]:
        """Returns the captured and optimized steps of a recipe's variant at these options.

        Both are timed on this machine, so neither gets the passes of an NPU.
        """
        source = catalog.find_source(name, variant=variant, options=options)
        files = {str(path): file_sha256(path) for path in source.files()}
        captured = self._captured(source, files)
        return captured, self._optimized(captured, "any")

    def _captured(self, source: Source, files: Mapping[str, str]) -> Step:
        feeds = replace(self._feeds, source=source, specs=source.inputs)
        data = self._data_digests if source is self.plan.source else {}
        if source is not self.plan.source:  # a comparison is timed on seeded inputs
            feeds = replace(feeds, data=None, parity_samples=1, boundary=Boundary())
        key = {
            "source": source.describe(),
            "files": files,
            "seed": feeds.seed,
            "samples": feeds.parity_samples,
            "data": data,
            "boundary": feeds.boundary.to_dict(),
        }
        return self._step(
            "capture",
            "model.onnx",
            key,
            None,
            lambda directory: _stages().capture(
                directory, feeds, self._built if source is self.plan.source else None
            ),
        )

    def _optimized(self, captured: Step, target: Target, file: str = OPTIMIZED) -> Step:
        return self._step(
            "passes",
            file,
            {"target": target, "file": file},  # the tuples are in edgeport's own source
            captured,
            lambda directory: _stages().run_passes(
                directory,
                captured.entry.directory,
                target,
                captured.entry.result["own_precision"] or "fp32",
                file,
            ),
        )

    def _step(
        self,
        name: str,
        file: str,
        key: Mapping[str, Any],
        before: Step | None,
        build: Callable[[Path], Mapping[str, Any]],
    ) -> Step:
        self.progress(name)
        chained = {"base": self._base, "own": key, "before": digest(before.key) if before else ""}
        entry = self.cache.step(name, chained, build, self.staging)
        self.entries.append(entry)
        return Step(chained, entry, file)

    def _keep(self, step: Step, *files: str) -> None:
        for file in files:
            for found in sorted(step.entry.directory.glob(f"{file}*")):  # with .data beside it
                shutil.copyfile(found, self.staging / found.name)
        artifact = Artifact.from_dict(step.entry.result["artifact"])
        self.artifacts.append(replace(artifact, seconds=round(step.entry.seconds, 3)))

    @cached_property
    def _data_digests(self) -> dict[str, str]:
        if self.plan.calibration_data is None:
            return {}
        return {str(file): file_sha256(file) for file in data_files(self.plan.calibration_data)}


def _stages() -> Any:
    """Imports the stages, with onnx and numpy, when the first step has to be built."""
    from edgeport import stages

    return stages


def feed_plan(plan: Plan) -> FeedPlan:
    """Returns which feeds the plan's run uses."""
    return FeedPlan(
        source=plan.source,
        specs=plan.source.inputs,
        seed=plan.seed,
        parity_samples=plan.parity_samples,
        calibration_samples=plan.calibration_samples,
        data=plan.calibration_data,
        boundary=plan.boundary,
    )


def _specs(tables: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in tables)
