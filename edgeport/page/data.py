"""What a page shows of one export, gathered from its manifest: frozen, and nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeport.catalog import all_recipes
from edgeport.errors import InputError
from edgeport.page.judged import ClaimRow, claim_rows, is_about, read_verdicts
from edgeport.page.memory import Memory, memory_of_export, size_fit
from edgeport.page.placement import (
    Fit,
    Fits,
    Placement,
    fit_of,
    overall,
    placements_of,
    refused_placement,
)
from edgeport.page.series import (
    Comparison,
    Figure,
    exported_comparisons,
    placed_comparison,
    placed_figures,
    read_bench,
)
from edgeport.running import load_manifest
from edgeport.runtimes import RUNTIMES
from edgeport.staging import FAILURE
from edgeport.types import Artifact, Provenance, Verdict

_ROLES = {
    "model.onnx": "the captured graph",
    "optimized.onnx": "after the passes",
    "optimized_gpu.onnx": "after the passes for converters",
    "quantized.onnx": "quantized",
    "parity_inputs.npz": "inputs of the parity check",
    "parity_outputs.npz": "the reference's answers",
    "DEPLOY.md": "how an app loads it",
}


class LayerRow(Protocol):
    """A layer's time and its distance from the reference, as far as each is known."""

    @property
    def node(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def time_ms(self) -> float | None: ...
    @property
    def sqnr_db(self) -> float | None: ...
    @property
    def provenance(self) -> Provenance: ...


@dataclass(frozen=True)
class ParityRow:
    """How far one stage is from the reference, worst over samples and outputs."""

    stage: str
    runtime: str
    file: str
    computed: str
    provenance: Provenance
    sqnr_db: float
    max_abs: float | None

    @property
    def label(self) -> str:
        """The stage, and for which runtime, or which file it made."""
        return f"{self.stage} · {self.runtime or self.file}"


@dataclass(frozen=True)
class FileRow:
    """One file of the export; `share` is of the captured graph's bytes."""

    name: str
    bytes: int
    role: str
    share: float | None


@dataclass(frozen=True)
class ExportPage:
    """One export, as a page shows it."""

    directory: str
    name: str
    variant: str
    device: str
    chipset: str
    precision: str
    runtimes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    title: str
    paper: str
    fits: Fits
    reasons: tuple[Fit, ...]
    placements: tuple[Placement, ...]
    tolerance_db: float | None
    parity: tuple[ParityRow, ...]
    comparisons: tuple[Comparison, ...]
    figures: tuple[Figure, ...]
    layers: tuple[LayerRow, ...]
    files: tuple[FileRow, ...]
    memory: Memory
    claims: tuple[ClaimRow, ...]
    notes: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PageData:
    """A whole page: the exports, what `edgeport bench` measured, and what is to be said of it."""

    exports: tuple[ExportPage, ...]
    bench: Comparison | None = None
    bench_figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


def gather_page(
    directories: Sequence[Path],
    *,
    bench: Path | None = None,
    verdicts: Path | None = None,
    layers: Callable[[Path], Sequence[LayerRow]] | None = None,
) -> PageData:
    """Returns the page about these exports, with what was benchmarked and judged besides.

    `layers` gives an export's layers: edgeport.layers.layer_rows measures them. Raises InputError
    for a directory that is no export, and a file that holds something else.
    """
    judged = read_verdicts(verdicts) if verdicts else ()
    measured, figures = read_bench(bench) if bench else (None, ())
    exports = tuple(
        gather(one, verdicts=judged, layers=layers(one) if layers else ()) for one in directories
    )
    names = {page.name for page in exports}
    subjects = dict.fromkeys(one.subject for one in judged)
    others = [one for one in subjects if not any(is_about(one, name) for name in names)]
    notes = (f"{verdicts} also judges {', '.join(others)}: not shown here.",) if others else ()
    return PageData(exports, measured, figures, notes)


def gather(
    directory: Path,
    *,
    verdicts: Sequence[Verdict] = (),
    layers: Sequence[LayerRow] = (),
) -> ExportPage:
    """Returns what an export's directory holds.

    Raises InputError for a directory that is no export, and for a manifest that lacks something.
    """
    manifest = load_manifest(directory)
    try:
        return _gathered(directory, manifest, verdicts, layers)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{directory}/manifest.json does not hold what an export writes"
            f" ({type(error).__name__}: {error}); export it again"
        ) from error


def _gathered(
    directory: Path,
    manifest: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    layers: Sequence[LayerRow],
) -> ExportPage:
    source, run = manifest["source"], manifest["run"]
    artifacts = [Artifact.from_dict({**one, "seconds": 0.0}) for one in manifest["artifacts"]]
    failure, memory = _failure(directory), memory_of_export(directory, manifest)
    refused = refused_placement(directory, manifest)
    reported = placements_of(artifacts, run["places"])
    placements = (refused, *reported) if refused else reported
    reasons = (*failure, *(fit_of(one) for one in placements), size_fit(manifest, memory))
    recipe = all_recipes().get(source["name"]) if source["kind"] == "recipe" else None
    hashes = {one.sha256 for one in artifacts}
    between = placed_comparison(manifest)
    return ExportPage(
        **_request(directory, manifest),
        title=recipe.title if recipe else "",
        paper=recipe.paper if recipe else "",
        fits=overall(reasons),
        reasons=reasons,
        placements=placements,
        parity=_parity(artifacts, run["places"]),
        comparisons=(*exported_comparisons(manifest), *([between] if between else ())),
        figures=placed_figures(manifest),
        layers=tuple(layers),
        files=_files(manifest),
        memory=memory,
        claims=claim_rows(source["name"], recipe.claims if recipe else (), verdicts, hashes),
        notes=_notes(artifacts, run),
    )


def _request(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a page that say what was exported, for what, and with what."""
    source, device, options = manifest["source"], manifest["device"], manifest["options"]
    return {
        "directory": directory.absolute().name,
        "name": source["name"],
        "variant": source["variant"],
        "device": device["name"],
        "chipset": device["chipset"],
        "precision": options["precision"],
        "runtimes": tuple(options["target_runtimes"]),
        "inputs": tuple(map(_spec, manifest["inputs"])),
        "outputs": tuple(map(_spec, manifest["outputs"])),
        "tolerance_db": options["tolerance_db"],
        "tools": tuple(manifest["tools"].items()),
    }


def _failure(directory: Path) -> tuple[Fit, ...]:
    """Returns why the export failed, where the directory is a failed one's."""
    file = directory / FAILURE
    if not file.is_file():
        return ()
    return (Fit("the export", "failed", json.loads(file.read_text(encoding="utf-8"))["error"]),)


def _spec(table: Mapping[str, Any]) -> str:
    return f"{table['name']}: {table['dtype']} [{', '.join(map(str, table['shape']))}]"


def _notes(artifacts: Sequence[Artifact], run: Mapping[str, Any]) -> tuple[str, ...]:
    own = [note for one in artifacts for note in one.notes]
    placed = [f"{one['place']}: {note}" for one in run["places"] for note in one["notes"]]
    return tuple(dict.fromkeys((*own, *placed, *run["warnings"])))


def _parity(
    artifacts: Sequence[Artifact], placed: Sequence[Mapping[str, Any]]
) -> tuple[ParityRow, ...]:
    """Returns a row for each artifact that was compared, the export's first."""
    named = [(one.runtime, one) for one in artifacts]
    for run in placed:
        artifact = Artifact.from_dict(run["artifact"])
        named.append((f"{artifact.runtime} on {run['place']}", artifact))
    rows = []
    for runtime, one in named:
        values = {measured.metric: measured for measured in one.parity}
        if sqnr := values.get("sqnr_db"):
            apart = values.get("max_abs")
            rows.append(
                ParityRow(
                    one.stage,
                    runtime,
                    one.path,
                    one.computed,
                    sqnr.provenance,
                    sqnr.value,
                    None if apart is None else apart.value,
                )
            )
    return tuple(rows)


def _files(manifest: Mapping[str, Any]) -> tuple[FileRow, ...]:
    """Returns the files, the largest first."""
    whole = manifest["files"].get("model.onnx", {}).get("bytes")
    rows = [
        FileRow(name, entry["bytes"], _role(name), entry["bytes"] / whole if whole else None)
        for name, entry in manifest["files"].items()
        if "bytes" in entry  # the journal of a place has none
    ]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def _role(name: str) -> str:
    if name in _ROLES:
        return _ROLES[name]
    return " and ".join(one.name for one in RUNTIMES.values() if name in one.files)
