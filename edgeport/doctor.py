"""Where every operator of a model lands on a device, why, what fixes it, and who applies the fix.

    captured -> [quantized plainly] -> placed                    the model as it is
    captured -> passes -> [quantized] -> placed, run, compared   the model as edgeport exports it

The compiler's crash is a finding: the graph is reduced to the smallest part that still crashes it.
Every slow step goes through the cache, the same steps as an export's where they are the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edgeport.cache import Cache, default_root
from edgeport.errors import StageFailed
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS
from edgeport.fingerprint import file_sha256
from edgeport.flow import Flow, Step
from edgeport.plan import Options, Plan, make_plan
from edgeport.private import scratch_directory
from edgeport.staging import GENERATOR, MANIFEST, staged_directory
from edgeport.types import plain

if TYPE_CHECKING:
    from edgeport.diagnosis import Diagnosis, GraphDiagnosis
    from edgeport.passes import Target
    from edgeport.subgraph import Workbench

CAPTURED, PASSED = "as captured", "after the passes"
NPU = "qnn_context_binary"
REPRO, REPRO_INPUTS, REPORT = "repro.onnx", "repro_inputs.npz", "doctor.json"
REDUCE_SECONDS, REDUCE_TRIALS = 300.0, 150
_HANG_SECONDS = 60.0


def examine(
    source: str,
    *,
    numerics: bool = True,
    output_dir: Path | str | None = None,
    cache_dir: Path | str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Unpack[Options],
) -> Diagnosis:
    """Returns where each operator of `source` lands on the device, before and after the passes.

    `source` and `options` are what `export` takes. With `numerics`, one operator of each class and
    the whole graph run in the vendor's emulator and are compared with the host. Writes nothing,
    except doctor.json and a crash's repro.onnx with repro_inputs.npz into `output_dir`. Raises
    InputError for what cannot be examined; a compiler that crashes or refuses is no error.
    """
    options["target_runtimes"] = (NPU,)
    with (
        _directory(output_dir) as staging,
        Cache(Path(cache_dir) if cache_dir else default_root()) as cache,
        scratch_directory() as scratch,
    ):
        plan = make_plan(source, output_dir=output_dir or scratch / "unused", **options)
        found = _Examination(plan, cache, scratch, progress).examine(numerics, staging)
        if staging is not None:
            _write(staging, found)
    return found


@contextmanager
def _directory(output_dir: Path | str | None) -> Iterator[Path | None]:
    if output_dir is None:
        yield None
        return
    with staged_directory(Path(output_dir)) as staging:
        yield staging


class _Examination(Flow):
    """The flow of an export up to quantization, then placement instead of a binary."""

    def __init__(
        self, plan: Plan, cache: Cache, staging: Path, progress: Callable[[str], None]
    ) -> None:
        super().__init__(plan, cache, staging, progress)
        self.notes: list[str] = []

    def examine(self, numerics: bool, kept: Path | None) -> Diagnosis:
        from edgeport.diagnosis import Diagnosis

        captured = self.capture()
        plan = self.plan  # capture may find that the model is quantized already
        optimized = self.passes(captured)
        passes = tuple((one["pass"], one["count"]) for one in self.facts["passes"])
        changed = any(count for _, count in passes)
        final = self._quantized(optimized, captured, PASSED)
        bare = self._quantized(captured, captured, CAPTURED) if changed else final
        after, run = self._examined(PASSED, final, captured, None, numerics)
        before = replace(after, stage=CAPTURED)
        if changed:
            before, _ = self._examined(CAPTURED, bare, captured, captured, False, after)
        on_npu = tuple(node.node for node in after.nodes if node.unit == "npu")
        for graph, step in ((after, final), (before, bare)):
            if step is not None and kept is not None and graph.reduced is not None:
                self._copy_repro(graph, step, captured, kept)
                break
        return Diagnosis(
            plan.source.text,
            plan.device.name,
            plan.device.chipset,
            plan.precision_text,
            before,
            after,
            passes,
            (*(note for one in self.artifacts for note in one.notes), *self.notes),
            self._classes(final, captured, on_npu) if numerics and final and on_npu else (),
            sqnr_db=None if run["sqnr_db"] is None else float(run["sqnr_db"]),
            host_sqnr_db=None if run["host_db"] is None else float(run["host_db"]),
            emulator_failure=run["failure"],
            warnings=self.cache.warnings,
        )

    def _quantized(self, model: Step, captured: Step, stage: str) -> Step | None:
        """Returns the step to place; None, with a note, where the graph cannot be quantized."""
        try:
            if self.plan.quantization is None:
                return model
            return self.quantize(model, captured) if stage == PASSED else self._plain(captured)
        except StageFailed as error:
            self.notes.append(f"{stage}, the graph cannot be quantized: {error}")
            return None

    def _plain(self, captured: Step) -> Step:
        """Returns the captured graph, quantized as it is."""
        plan, feeds = self.plan, self._calibration_plan(captured)
        request = plan.quantization
        assert request is not None
        key = {
            "precision": request.precision,
            "method": request.method,
            "samples": plan.calibration_samples,
            "seed": plan.seed,
            "data": self._data_digests,
        }

        def build(directory: Path) -> Mapping[str, Any]:
            from edgeport.feeds import calibration_feeds
            from edgeport.quantize.apply import quantize_file
            from edgeport.quantize.config import configured

            target = directory / "quantized.onnx"
            config = configured(request.precision, request.method)
            return {
                "samples": quantize_file(captured.path, target, config, calibration_feeds(feeds))
            }

        return self._step("doctor-quantize", "quantized.onnx", key, captured, build)

    def _examined(
        self,
        stage: str,
        model: Step | None,
        captured: Step,
        traced: Step | None,
        numerics: bool,
        other: GraphDiagnosis | None = None,
    ) -> tuple[GraphDiagnosis, dict[str, Any]]:
        """Returns the diagnosis, and how the whole graph ran: its SQNR in dB, or the failure.

        `traced` is the captured graph whose nodes the passes may have removed; a crash that the
        `other` graph has too is not reduced twice.
        """
        from edgeport.diagnosis import GraphDiagnosis, Reduced, diagnose_graph
        from edgeport.runtimes.qnn_placement import Placement

        if model is None:
            failed_early = GraphDiagnosis(stage, failure="the graph cannot be quantized")
            return failed_early, {"sqnr_db": None, "host_db": None, "failure": ""}
        result = self._placed(model, captured, numerics).entry.result
        placement = Placement.from_dict(result["placement"])
        fallen = any(report.unit == "cpu" for report in placement.nodes)
        failed = bool(placement.crash or placement.failure)
        removed = self._removed(traced) if traced and (fallen or failed) else {}
        graph = diagnose_graph(
            stage,
            _bench(model, captured),
            placement,
            lambda name, op: removed.get(f"{op} {name}", ""),
        )
        if failed and not (other and other.reduced and other.ended_as(graph)):
            reduced = Reduced.from_dict(self._reduced(model, captured).entry.result["reduced"])
            by = dict.fromkeys(filter(None, (removed.get(" ".join(n)) for n in reduced.nodes)))
            graph = replace(graph, reduced=replace(reduced, applied_by=", ".join(by)))
        return graph, result["run"]

    def _placed(self, model: Step, captured: Step, numerics: bool) -> Step:
        plan = self.plan

        def build(_: Path) -> Mapping[str, Any]:
            from edgeport.runtimes.qnn_placement import place
            from edgeport.subgraph import save_onnx

            with scratch_directory() as folder:
                path = folder / "named.onnx"
                save_onnx(_bench(model, captured).model, path)
                inputs = captured.entry.directory / PARITY_INPUTS if numerics else None
                place_with = (path, folder, plan.device, plan.precision, plan.limits)
                placement, answers = place(*place_with, inputs)
            failure = ""
            if placement.nodes and (placement.crash or placement.failure):  # it did compile
                failure = placement.crash.what if placement.crash else placement.failure
                placement = replace(placement, crash=None, failure="")
            run = {"sqnr_db": None, "host_db": None, "failure": failure}
            if answers:
                on_host = _host_answers(model, captured)
                run["sqnr_db"] = plain(_whole_sqnr_db(captured, answers))
                run["host_db"] = plain(_whole_sqnr_db(captured, on_host))
            return {"placement": placement.to_dict(), "run": run}

        key = {**self._target_key(), "run": numerics}
        return self._step("doctor-place", "", key, model, build)

    def _target_key(self) -> dict[str, Any]:
        plan = self.plan
        # What hangs or runs out of memory under these limits may not under others.
        limits = plain(plan.limits)
        return {"device": plan.device.to_dict(), "precision": plan.precision, "limits": limits}

    def _removed(self, captured: Step) -> dict[str, str]:
        """Returns "operator name" of a captured node -> the pass that removed it."""

        def build(_: Path) -> Mapping[str, Any]:
            return {"removed": _trace(captured, self.plan.passes)}

        step = self._step("doctor-trace", "", {"target": self.plan.passes}, captured, build)
        return dict(step.entry.result["removed"])

    def _reduced(self, model: Step, captured: Step) -> Step:
        plan = self.plan

        def build(directory: Path) -> Mapping[str, Any]:
            return {"reduced": _reduce(_bench(model, captured), plan, directory, self.progress)}

        return self._step("doctor-reduce", REPRO, self._target_key(), model, build)

    def _copy_repro(self, graph: GraphDiagnosis, model: Step, captured: Step, kept: Path) -> None:
        assert graph.reduced is not None
        folder = self._reduced(model, captured).entry.directory
        for found in sorted(folder.glob("repro*")):
            shutil.copyfile(found, kept / found.name)

    def _classes(self, model: Step, captured: Step, on_npu: tuple[str, ...]) -> tuple[Any, ...]:
        from edgeport.numerics import ClassResult, compare_classes

        plan = self.plan

        def build(_: Path) -> Mapping[str, Any]:
            bench = _bench(model, captured)
            found = compare_classes(bench, plan.device, plan.precision, plan.limits, on_npu)
            return {"classes": plain(found)}

        step = self._step("doctor-classes", "", self._target_key(), model, build)
        return tuple(ClassResult.from_dict(one) for one in step.entry.result["classes"])


def _bench(model: Step, captured: Step) -> Workbench:
    """Returns the model of a step with the first parity input."""
    import onnx

    from edgeport.runtimes.samples import load_samples
    from edgeport.subgraph import Workbench

    feed = load_samples(captured.entry.directory / PARITY_INPUTS)[0]
    return Workbench(onnx.load(model.path), feed)


def _host_answers(model: Step, captured: Step) -> list[Any]:
    """Returns what onnxruntime's CPU provider gives with the same graph, sample by sample."""
    from edgeport.runtimes.onnx import Session
    from edgeport.runtimes.samples import load_samples

    session = Session(model.path)
    names = load_samples(captured.entry.directory / PARITY_OUTPUTS)[0]
    feeds = load_samples(captured.entry.directory / PARITY_INPUTS)
    return [dict(zip(names, session.run(feed), strict=True)) for feed in feeds]


def _whole_sqnr_db(captured: Step, answers: list[Any]) -> float:
    """Returns the lowest SQNR in dB over samples and outputs, against the reference."""
    from edgeport.compare import sqnr_db
    from edgeport.runtimes.samples import load_samples

    references = load_samples(captured.entry.directory / PARITY_OUTPUTS)
    return min(
        sqnr_db(reference[name], answer[name])
        for reference, answer in zip(references, answers, strict=True)
        for name in reference
    )


def _trace(captured: Step, target: Target) -> dict[str, str]:
    """Returns "operator name" of each captured node that is gone -> the pass after which it is."""
    import onnx_ir as ir

    from edgeport.passes import EXACT_DB, passes_for
    from edgeport.passes.apply import apply_passes
    from edgeport.runtimes.samples import load_samples

    feeds = load_samples(captured.entry.directory / PARITY_INPUTS)
    model = ir.from_proto(_bench(captured, captured).model)
    left = {f"{node.op_type} {node.name}" for node in model.graph}
    removed: dict[str, str] = {}
    for one in passes_for(target):
        applied = apply_passes(model, (one,), feeds, minimum_db=EXACT_DB)
        model, now = applied.model, {f"{node.op_type} {node.name}" for node in applied.model.graph}
        removed.update(dict.fromkeys(left - now, applied.steps[0].name))
        left &= now
    return removed


def _reduce(
    bench: Workbench, plan: Plan, directory: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Writes repro.onnx and its inputs; returns Reduced's fields."""
    from edgeport.diagnosis import Reduced
    from edgeport.fixes import find_fix
    from edgeport.numerics import operator_of, signature
    from edgeport.reduce import Budget, reduce_items
    from edgeport.runtimes.qnn_placement import Placement, place
    from edgeport.runtimes.samples import save_samples
    from edgeport.subgraph import save_onnx

    def compiled(units: tuple[int, ...], seconds: float) -> Placement:
        with scratch_directory() as folder:
            path = folder / "part.onnx"
            save_onnx(bench.cut(bench.merge(units)), path)
            limits = replace(plan.limits, seconds=seconds)
            return place(path, folder, plan.device, plan.precision, limits)[0]

    everything = tuple(range(len(bench.units)))
    started = time.monotonic()
    whole = compiled(everything, min(plan.limits.seconds, _HANG_SECONDS))
    crashed = whole.crash or whole.failure
    if whole.crash and whole.crash.reason == "timeout":
        patience = min(plan.limits.seconds, _HANG_SECONDS)
    else:  # a part that takes far longer than the crash took has come past it: no need to wait
        patience = min(_HANG_SECONDS, 5 + 4 * (time.monotonic() - started))

    def fails(units: tuple[int, ...]) -> bool:
        progress(f"reduce: {len(units)} of {len(everything)} operators")
        return compiled(units, patience).ended_as(whole)

    # What does not happen a second time cannot be searched for.
    budget = Budget(REDUCE_SECONDS, REDUCE_TRIALS if crashed else 0)
    found = reduce_items(len(everything), fails, budget)
    indices = bench.merge(found.items)
    save_onnx(bench.cut(indices), directory / REPRO)
    save_samples(directory / REPRO_INPUTS, [bench.values(bench.border(indices)[0])])
    operators = [operator_of(bench, unit) for unit in found.items]
    ending = whole.crash.reason if whole.crash else "refused"
    told = f"{ending}: {'; '.join(signature(bench, node) for node in operators)}"
    fix = find_fix("crash", " ".join(node.op_type for node in operators), told)
    nodes = tuple((node.op_type, node.name) for node in operators)
    seconds = round(found.seconds, 1)
    return Reduced(nodes, len(everything), found.trials, seconds, found.minimal, fix).to_dict()


def _write(staging: Path, found: Diagnosis) -> None:
    """Writes doctor.json and, last, manifest.json, which lists the files as an export's does."""
    text = json.dumps(report(found), indent=2, allow_nan=False) + "\n"
    (staging / REPORT).write_text(text, encoding="utf-8")
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(staging.iterdir())
    }
    manifest = {"generator": GENERATOR, "schema_version": 1, "files": files}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def report(found: Diagnosis) -> dict[str, Any]:
    """Returns the diagnosis as plain JSON values, with its shares and causes."""
    from edgeport.diagnosis import causes

    table = found.to_dict()
    for graph, entry in ((found.captured, "captured"), (found.passed, "passed")):
        table[entry]["npu_share"] = graph.npu_share
    return {**table, "causes": plain(causes(found)), "wrong": plain(found.wrong)}
