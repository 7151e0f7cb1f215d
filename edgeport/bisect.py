"""The first tensor where two neighbouring stages of an export part, and the operator that does it.

    capture       torch's values against model.onnx
    passes        model.onnx against optimized.onnx; passes-gpu: against optimized_gpu.onnx
    quantize      optimized.onnx against quantized.onnx
    a runtime     the ONNX file it was compiled from, node by node on this machine, against it

`edgeport.parting` searches; here the stages are set up for it, and what it finds is written down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from edgeport.compare import sqnr_db
from edgeport.errors import EdgeportError, InputError, StageFailed
from edgeport.executors import Compiled, Executor, OnHost
from edgeport.fingerprint import file_sha256
from edgeport.origins import Origin, origin_of
from edgeport.parities import CAPTURE, CAPTURED, QUANTIZE, Exported, Stage
from edgeport.parting import Parted, Search
from edgeport.passes import EXACT_DB, all_passes, module_of, tolerance_db
from edgeport.passes.apply import Applied, Step
from edgeport.points import Array, HostReference, Reference
from edgeport.running import precision_of
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits
from edgeport.staging import GENERATOR, MANIFEST, check_target, staged_directory
from edgeport.subgraph import CONVERTERS, Workbench, save_onnx, used_names
from edgeport.types import Provenance, Serialisable

REPRO, INPUTS, EXPECTED, REPORT = (
    "repro.onnx", "repro_inputs.npz", "repro_outputs.npz", "bisect.json",
)  # fmt: skip
FLOAT16_DB = 30.0  # the emulator's fp16 against the host: 40 dB or more for whole nets
BYTES_DB = 20.0  # 8-bit activations of a whole net, as a recipe's default tolerance
WORDS_DB = 30.0  # 16-bit activations of a whole net


@dataclass(frozen=True)
class Bisection(Serialisable):
    """What was found in one stage: nothing where `tensor` is "".

    `sqnr_db` is of the stage's own file against the stage before it, at the output and the input
    where it is lowest. `tensor` lies between `before` (the inputs where it is "") and `after`, two
    tensors where the graph can be cut; `missed` is the first of these below `limit_db`.
    `operators` are all of the part that was cut out. `local_db` is of it alone, on the reference's
    values, whose largest magnitude is `peak`. `runs` were taken for `articulations` such tensors;
    `refused` says why a part could not be run.
    """

    stage: str
    file: str
    against: str
    provenance: Provenance
    limit_db: float
    output: str
    sqnr_db: float
    lowest_db: float
    lowest: str
    computed: str
    runs: int = 0
    articulations: int = 0
    tensor: str = ""
    node: str = ""
    operator: str = ""
    operators: tuple[str, ...] = ()
    verdict: str = ""
    before: str = ""
    before_db: float = float("inf")
    after: str = ""
    after_db: float = float("inf")
    local_db: float = float("inf")
    missed: str = ""
    peak: float = 0.0
    refused: tuple[str, ...] = ()
    origin: Origin | None = None
    near: str = ""


@dataclass(frozen=True)
class Bisected(Serialisable):
    """What a bisection found, what the other stages gave, and where the part was written.

    `checked` are (stage, SQNR in dB, limit in dB). `found` is None where every stage holds.
    `complete` is False where a runtime should have run here, and could not.
    """

    found: Bisection | None
    checked: tuple[tuple[str, float, float], ...]
    notes: tuple[str, ...]
    complete: bool = True
    written: str = ""


def bisect(
    directory: Path,
    *,
    stage: str | None = None,
    min_sqnr: float | None = None,
    output_dir: Path | None = None,
    weights: Path | None = None,
    limits: Limits,
    progress: Callable[[str], None] = lambda step: None,
) -> Bisected:
    """Returns where a stage parts from the one before it; without a name, the first that does.

    Writes the part that shows it into `output_dir`, by default `directory`.bisect. `weights` are
    those that the source was exported with. Raises InputError, StageFailed and RuntimeCrashed.
    """
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise InputError(f"--min-sqnr {min_sqnr}: give a number of dB")
    export = Exported(directory, limits)
    target = output_dir or _target(directory)
    check_target(target)
    notes = [f"{name} was changed since it was exported" for name in export.changed]
    checked, complete = [], True
    for one in [export.stage(stage)] if stage else export.stages:
        progress(one.name)
        limit = min_sqnr if min_sqnr is not None else expected_db(export, one)
        try:
            worst = _worst(export, one)
        except EdgeportError as error:
            if stage or one.runtime == "":
                raise
            notes.append(f"{one.name} was not run: {error}")
            complete = complete and RUNTIMES[one.runtime].runs_as is None
            continue
        checked.append((one.name, worst.sqnr_db, limit))
        if worst.sqnr_db < limit or one.name == QUANTIZE:
            progress(f"{one.name}: searching")
            search = _search(export, one, worst, limit, weights)
            parted = search.find()
            if parted is not None or worst.sqnr_db < limit:
                found = _bisection(export, one, worst, search, parted)
                written = _write(target, parted, found, directory) if parted else ""
                return Bisected(found, tuple(checked), tuple(notes), complete, written)
    return Bisected(None, tuple(checked), tuple(notes), complete)


def _target(directory: Path) -> Path:
    """Returns where the part of an export is written, where no place is named."""
    whole = directory if directory.name else directory.resolve()
    return whole.with_name(f"{whole.name}.bisect")


def expected_db(export: Exported, stage: Stage) -> float:
    """Returns the SQNR that a stage has to hold against the one before it.

    80 dB where both compute in float32, less what passes with a tolerance of their own may add up
    to. Elsewhere what the recipe or --min-sqnr asked for, else 20 dB for 8-bit activations, 30 dB
    for 16-bit ones and for fp16.
    """
    made = _artifacts(export, stage)
    if not stage.runtime and stage.name != QUANTIZE:
        return _exact_db(made[0]["steps"] if stage.name != CAPTURE else [])
    computed = _computed(export, stage)
    if computed == "fp32":
        return EXACT_DB
    options = export.manifest["options"]
    asked = [options["tolerance_db"], options["min_sqnr"]]
    if stated := [float(one) for one in asked if one is not None]:
        return max(stated)
    if computed == "fp16":
        return FLOAT16_DB
    return WORDS_DB if computed.endswith("a16") or computed == "mixed" else BYTES_DB


def _artifacts(export: Exported, stage: Stage) -> list[dict[str, Any]]:
    return [one for one in export.manifest["artifacts"] if one["path"] == stage.file]


def _computed(export: Exported, stage: Stage) -> str:
    """Returns the type that the stage computes in."""
    return str(_artifacts(export, stage)[-1]["computed"])


def _exact_db(steps: Sequence[Sequence[Any]]) -> float:
    """Returns what the passes that applied allow together; `steps` are their (name, count)."""
    stated = {module_of(one).NAME: tolerance_db(one, EXACT_DB) for one in all_passes()}
    applied = tuple(Step(name, count, 0.0, stated.get(name, EXACT_DB)) for name, count in steps)
    return Applied(None, applied, ()).least_db(EXACT_DB)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Worst:
    """The output and the parity input at which a stage is farthest from the one before it."""

    sqnr_db: float
    output: int
    sample: int


def _worst(export: Exported, stage: Stage) -> _Worst:
    before = stage.before
    references = export.run_graph(before, optimize=False) if before else export.answers
    if stage.runtime:
        actual = export.run_stage(stage)
    else:  # as the file states it: what onnxruntime makes of it is the stage `onnx`
        actual = export.run_graph(stage.model, optimize=False)
    return min(
        (
            _Worst(_sqnr_db(stage, one[name], other[name]), output, sample)
            for sample, (one, other) in enumerate(zip(references, actual, strict=True))
            for output, name in enumerate(one)
        ),
        key=lambda worst: worst.sqnr_db,
    )


def _sqnr_db(stage: Stage, reference: Array, actual: Array) -> float:
    try:
        return sqnr_db(reference, actual)
    except ValueError as error:
        raise StageFailed(
            "bisect", f"{stage.file} cannot be compared with {_against(stage)}: {error}"
        ) from error


def _against(stage: Stage) -> str:
    if stage.runtime:
        return f"{stage.before}, node by node on this machine"
    return stage.before or "torch"


def _search(
    export: Exported,
    stage: Stage,
    worst: _Worst,
    limit_db: float,
    weights: Path | None,
) -> Search:
    """Returns the search through the stage's graph, on the input at which it is worst."""
    feed = export.fed(stage.model)[worst.sample]
    bench = Workbench(onnx.load(export.directory / stage.model), feed, optimize=False)
    return Search(
        bench,
        _reference(export, stage, bench, worst.sample, weights),
        _executor(export, stage),
        export.outputs[worst.output],
        limit_db,
        export.edges(stage.model),
        sweep=stage.name == QUANTIZE,
    )


def _reference(
    export: Exported, stage: Stage, bench: Workbench, sample: int, weights: Path | None
) -> Reference:
    """Returns the stage before it: the same graph, an earlier one, or torch."""
    if stage.runtime:
        return HostReference(bench, export.edges(stage.model))
    if stage.before:
        feed = export.fed(stage.before)[sample]
        model = onnx.load(export.directory / stage.before)
        return HostReference(Workbench(model, feed, optimize=False), export.edges(stage.before))
    from edgeport.source_reference import source_reference

    answers = dict(zip(export.outputs, export.answers[sample].values(), strict=True))
    return source_reference(export.manifest, weights, export.feeds[sample], answers)


def _executor(export: Exported, stage: Stage) -> Executor:
    if not stage.runtime:
        return OnHost(wide=True)
    if stage.runtime == "onnx":
        return OnHost(wide=False)
    precision = precision_of(export.manifest)
    return Compiled(stage.runtime, export.device, precision, export.limits)


def _bisection(
    export: Exported, stage: Stage, worst: _Worst, search: Search, parted: Parted | None
) -> Bisection:
    """Returns what is told of a search; without a tensor where it found none."""
    runs_as = RUNTIMES[stage.runtime].runs_as if stage.runtime else "host"
    assert runs_as is not None, "it was run"
    told = Bisection(
        stage=stage.name,
        file=stage.file,
        against=_against(stage),
        provenance=runs_as,
        limit_db=search.limit_db,
        output=export.outputs[worst.output],
        sqnr_db=worst.sqnr_db,
        lowest_db=search.lowest[0],
        lowest=search.lowest[1],
        computed=_computed(export, stage),
        runs=search.counted.runs,
        articulations=len(search.cuts),
        refused=tuple(search.refused),
    )
    if parted is None:
        return told
    origin, near = _origin(export, search.bench, parted)
    return replace(
        told,
        tensor=parted.tensor,
        node=parted.node.name,
        operator=parted.node.op_type,
        operators=tuple(f"{one.op_type} {one.name}" for one in _operators(search, parted)),
        verdict=parted.verdict,
        before=parted.before,
        before_db=parted.before_db,
        after=parted.after,
        after_db=parted.after_db,
        local_db=parted.local_db,
        missed=parted.missed,
        peak=parted.peak,
        origin=origin,
        near=near,
    )


def _operators(search: Search, parted: Parted) -> list[onnx.NodeProto]:
    """Returns the part's nodes without its QuantizeLinear and DequantizeLinear pairs."""
    nodes = [search.bench.nodes[index] for index in parted.nodes]
    return [node for node in nodes if node.op_type not in CONVERTERS]


def _origin(export: Exported, bench: Workbench, parted: Parted) -> tuple[Origin | None, str]:
    """Returns where in torch's module the node comes from, and the tensor that this is known of.

    Passes and onnxsim drop what the exporter wrote beside a node, and keep most names: model.onnx
    is asked, and where a pass made the node, of the next tensor behind it that has kept its name:
    what replaces an operator leads to its output. The tensor is "" where it is the node itself.
    """
    captured = onnx.load(export.directory / CAPTURED, load_external_data=False)
    found = [(node, origin) for node in captured.graph.node if (origin := origin_of(node))]
    by_node = {node.name: origin for node, origin in found}
    by_tensor = {name: origin for node, origin in found for name in node.output}
    if own := origin_of(parted.node) or by_node.get(parted.node.name):
        return own, ""
    if parted.tensor in by_tensor:
        return by_tensor[parted.tensor], ""
    for follow in (_readers(bench), _makers(bench)):
        near = _nearest(parted.tensor, follow, by_tensor)
        if near:
            return by_tensor[near], near
    return None, ""


def _readers(bench: Workbench) -> Callable[[str], Iterable[str]]:
    """Returns a function: a tensor -> what is made of it at once."""
    made: dict[str, list[str]] = {}
    for node in bench.nodes:
        for name in used_names(node):
            made.setdefault(name, []).extend(node.output)
    return lambda name: made.get(name, ())


def _makers(bench: Workbench) -> Callable[[str], Iterable[str]]:
    """Returns a function: a tensor -> what it is made of at once."""
    return lambda name: used_names(bench.nodes[bench.makers[name]]) if name in bench.makers else ()


def _nearest(start: str, follow: Callable[[str], Iterable[str]], known: Collection[str]) -> str:
    """Returns the nearest known tensor in one direction, "" where there is none."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop(0)
        if name in known:
            return name
        new = [one for one in follow(name) if one not in seen]
        seen.update(new)
        waiting += new
    return ""


def _write(target: Path, parted: Parted, found: Bisection, directory: Path) -> str:
    """Writes the part, its inputs, the answer it should give, and what was found; returns where."""
    with staged_directory(target) as folder:
        save_onnx(parted.model, folder / REPRO)
        save_samples(folder / INPUTS, [parted.feed])
        save_samples(folder / EXPECTED, [parted.expected])
        report = {"export": directory.name, **found.to_dict()}
        text = json.dumps(report, indent=2, allow_nan=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
            for file in sorted(folder.iterdir())
        }
        listing = {"generator": GENERATOR, "made_by": "edgeport bisect", "files": files}
        (folder / MANIFEST).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return str(target)
