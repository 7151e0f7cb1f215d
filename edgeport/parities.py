"""An export's stages, run again: how far each one's file is from torch, and from its own graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport import compare
from edgeport.devices import find_device
from edgeport.errors import EdgeportError, InputError, StageFailed, UnknownName
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS
from edgeport.passes import EXACT_DB
from edgeport.plan import CONVERTED, OPTIMIZED, WRITTEN
from edgeport.private import scratch_directory
from edgeport.quantize.integer_io import Affine, Edges, decode_outputs, encode_feed
from edgeport.running import changed_files, load_manifest
from edgeport.runtimes import RUNTIMES, find_runtime
from edgeport.runtimes.lowering import run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits
from edgeport.types import Provenance, Serialisable

CAPTURE, CAPTURED, QUANTIZED = "capture", "model.onnx", "quantized.onnx"
QUANTIZE = "quantize"
_MAKERS = {OPTIMIZED: "passes", CONVERTED: "passes-gpu", QUANTIZED: QUANTIZE}
_BEFORE = {OPTIMIZED: CAPTURED, CONVERTED: CAPTURED, QUANTIZED: OPTIMIZED}


@dataclass(frozen=True)
class Stage:
    """A stage of an export: its file, the ONNX graph in it, and the graph that this came from.

    `model` is the ONNX file of the stage, or the one that a runtime's files were compiled from;
    `before` is what it is compared with: "" for torch, a runtime's is the same as `model`.
    """

    name: str
    file: str
    model: str
    before: str
    runtime: str = ""


class Exported:
    """An export's directory: its manifest, stages, inputs, and what each of its files gives.

    Files may have been replaced on purpose: `changed` names them. Raises InputError for a directory
    that is no export.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory, self.limits = directory, limits
        self.manifest = load_manifest(directory)
        self.changed = tuple(changed_files(directory, self.manifest))
        self.device = find_device(self.manifest["device"]["name"])
        self.stages = tuple(_stages(self.manifest))
        if self.manifest["options"]["target_runtimes"] == [WRITTEN]:
            raise InputError(
                f"{directory} was written by its recipe, in one stage without a graph;"
                f" edgeport run {directory} compares its images with torch's"
            )
        self.feeds = load_samples(directory / PARITY_INPUTS)
        self.answers = load_samples(directory / PARITY_OUTPUTS)

    def stage(self, name: str) -> Stage:
        """Returns the stage of this name; raises UnknownName, or InputError where it has none."""
        own = {stage.name: stage for stage in self.stages}
        if name not in own:
            known = {CAPTURE, *_MAKERS.values(), *RUNTIMES}
            if name not in known:
                raise UnknownName("stage", name, known)
            raise InputError(f"{self.directory} has no stage {name}; it has {', '.join(own)}")
        return own[name]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return [str(one["name"]) for one in self.manifest["outputs"]]

    def edges(self, model: str) -> Edges:
        """Returns how the integer inputs and outputs of one of the ONNX files are read."""
        if model != QUANTIZED:
            return {}
        scales = self.manifest.get("io_scales", {})
        return {name: Affine(**scales[name]) for name in self.manifest.get("integer_io", ())}

    def fed(self, model: str) -> list[Sample]:
        """Returns the parity inputs as an ONNX file takes them."""
        edges = self.edges(model)
        return [encode_feed(feed, edges) for feed in self.feeds]

    def run_graph(self, model: str, *, optimize: bool) -> list[Sample]:
        """Returns what an ONNX file gives on this machine; raises StageFailed."""
        session = Session(self.directory / model, optimize=optimize)
        return [self.decoded(model, session.run(feed)) for feed in self.fed(model)]

    def run_stage(self, stage: Stage) -> list[Sample]:
        """Returns what a stage's file gives here; raises InputError and StageFailed."""
        if stage.runtime in ("", "onnx"):
            return self.run_graph(stage.model, optimize=True)
        runtime = find_runtime(stage.runtime)
        if runtime.runs_as is None:
            raise InputError(f"nothing on this machine runs {runtime.name}")
        with scratch_directory() as folder:
            save_samples(folder / "inputs.npz", self.fed(stage.model))
            stored = run_compiled(
                runtime.name,
                self.directory,
                folder,
                folder / "inputs.npz",
                self.device,
                self.limits,
            )
        return [self.decoded(stage.model, list(one.values())) for one in stored]

    def decoded(self, model: str, outputs: Sequence[Any]) -> Sample:
        """Returns outputs as real numbers, under the names of the reference's."""
        if len(outputs) != len(self.outputs):
            raise StageFailed(
                "compare", f"{model} gives {len(outputs)} outputs, the export {len(self.outputs)}"
            )
        return named_outputs(decode_outputs(outputs, self.outputs, self.edges(model)))


def _stages(manifest: Mapping[str, Any]) -> list[Stage]:
    """Returns the stages whose files are there: a failed export has those made until then."""
    files = manifest["files"]
    found = [Stage(CAPTURE, CAPTURED, CAPTURED, "")]
    for file, name in _MAKERS.items():
        if file in files:
            found.append(Stage(name, file, file, _BEFORE[file]))
    for name in manifest["options"]["target_runtimes"]:
        if name in RUNTIMES:
            runtime = RUNTIMES[name]
            rewritten = runtime.compiles == "rewritten"
            models = (CONVERTED,) if rewritten else (QUANTIZED, OPTIMIZED)
            model = next((one for one in models if one in files), "")
            file = next((one for one in runtime.files if one in files), "")
            if model and file:
                found.append(Stage(name, file, model, model, name))
    return found


@dataclass(frozen=True)
class Distance(Serialisable):
    """How far an output is from a reference, the worst over the parity inputs."""

    sqnr_db: float
    max_abs: float
    cosine: float


@dataclass(frozen=True)
class Parity(Serialisable):
    """One output of one stage, against torch's answer and against its own graph, node by node.

    The second is the stage's ONNX graph (the one that a runtime's files were compiled from) with
    onnxruntime's optimizations disabled: where fused kernels of the CPU are wrong, it is not.
    `problem` says why there are no numbers.
    """

    stage: str
    runtime: str
    file: str
    output: str
    provenance: Provenance | None = None
    torch: Distance | None = None
    graph: Distance | None = None
    problem: str = ""


@dataclass(frozen=True)
class Parities(Serialisable):
    """The table of an export, and what is to be said about it in sentences.

    `complete` is False where something should have run here, and could not.
    """

    rows: tuple[Parity, ...]
    notes: tuple[str, ...]
    complete: bool


def compare_stages(
    directory: Path, *, limits: Limits, progress: Callable[[str], None] = lambda step: None
) -> Parities:
    """Returns how far every stage's file is from the references, run now on the parity inputs.

    Raises InputError for a directory that is no export.
    """
    export = Exported(directory, limits)
    kind = export.manifest["source"]["kind"]
    whose = "the source file's own" if kind == "onnx" else "torch's"
    notes = [f"the first reference is {whose} answers at the export ({PARITY_OUTPUTS})"]
    notes += [f"{name} was changed since it was exported" for name in export.changed]
    rows: list[Parity] = []
    plain: dict[str, list[Sample]] = {}
    complete = True
    for stage in export.stages:
        progress(stage.name)
        try:
            if stage.model not in plain:
                plain[stage.model] = export.run_graph(stage.model, optimize=False)
            found = _rows(export, stage, plain[stage.model])
            between = distances(export.answers, plain[stage.model])
            notes += doubts(stage, between, found)
        except EdgeportError as error:
            absent = bool(stage.runtime) and RUNTIMES[stage.runtime].runs_as is None
            problem = "nothing here runs it" if absent else str(error)
            found = [Parity(stage.name, stage.runtime, stage.file, "", problem=problem)]
            complete = complete and absent
        rows += found
    return Parities(tuple(rows), tuple(notes), complete)


def _rows(export: Exported, stage: Stage, plain: list[Sample]) -> list[Parity]:
    actual = export.run_stage(stage)
    against_torch = distances(export.answers, actual)
    against_graph = distances(plain, actual)
    runs_as: Provenance | None = RUNTIMES[stage.runtime].runs_as if stage.runtime else "host"
    return [
        Parity(stage.name, stage.runtime, stage.file, output, runs_as, one, other)
        for output, one, other in zip(export.outputs, against_torch, against_graph, strict=True)
    ]


def distances(references: Sequence[Sample], actual: Sequence[Sample]) -> list[Distance]:
    """Returns the distance of each output, worst over the samples; raises StageFailed."""
    found = []
    for name in references[0]:
        pairs = [(one[name], other[name]) for one, other in zip(references, actual, strict=True)]
        try:
            found.append(
                Distance(
                    min(compare.sqnr_db(*pair) for pair in pairs),
                    max(compare.max_abs(*pair) for pair in pairs),
                    min(compare.cosine(*pair) for pair in pairs),
                )
            )
        except ValueError as error:  # a replaced file gives another shape, or NaN as reference
            raise StageFailed("compare", f"{name} cannot be compared: {error}") from error
    return found


def doubts(stage: Stage, between: Sequence[Distance], rows: Sequence[Parity]) -> list[str]:
    """Returns a sentence for each output whose references differ more than the stage does.

    `between` is how far the second reference is from the first, per output.
    """
    found = []
    for row, apart in zip(rows, between, strict=True):
        assert row.torch is not None and row.graph is not None
        nearest = min(row.torch.sqnr_db, row.graph.sqnr_db)
        if apart.sqnr_db < min(nearest - 0.1, EXACT_DB):
            found.append(
                f"{stage.name}, {row.output}: the two references are {apart.sqnr_db:.1f} dB apart,"
                f" more than {stage.file} is from either ({nearest:.1f} dB): what the table shows"
                f" is mostly the loss of {stage.model}, not of what runs it"
            )
    return found
