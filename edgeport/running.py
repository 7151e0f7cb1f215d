"""Runs an export's files at a place, and writes what came of it into the export's manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeport.devices import find_device
from edgeport.errors import InputError
from edgeport.feeds import PARITY_INPUTS, PARITY_INTEGERS, PARITY_OUTPUTS
from edgeport.fingerprint import file_sha256
from edgeport.parity import compared, described, hold
from edgeport.places import JOURNAL, Job, Place, Ran
from edgeport.plan import CONVERTED, OPTIMIZED, WRITTEN
from edgeport.private import scratch_directory
from edgeport.quantize.integer_io import Affine, decode_outputs
from edgeport.recalibration import write_calibration
from edgeport.report import SCHEMA_VERSION, write_manifest
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import Sample, load_samples, named_outputs
from edgeport.runtimes.worker import Limits
from edgeport.staging import GENERATOR, MANIFEST
from edgeport.types import (
    CONVERTER_PRECISIONS,
    PRECISIONS,
    Artifact,
    Measurement,
    Precision,
    plain,
)


@dataclass(frozen=True)
class PlaceRun:
    """What one runtime's files gave at a place: the artifact with its parity, and measurements."""

    place: str
    artifact: Artifact
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the run as plain JSON values."""
        return {
            "place": self.place,
            "artifact": self.artifact.to_dict(),
            "measurements": [one.to_dict() for one in self.measurements],
            "notes": list(self.notes),
        }


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of an export's directory.

    Raises InputError where there is none, it is not edgeport's, or a file is missing or was changed
    since.
    """
    manifest = load_manifest(directory)
    for name in changed_files(directory, manifest):
        raise InputError(f"{directory}: {name} was changed since it was written; export again")
    return manifest


def changed_files(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Returns the names of the files that are no longer what the export wrote."""
    return [
        name
        for name, entry in manifest["files"].items()
        if name != JOURNAL and file_sha256(directory / name) != entry["sha256"]
    ]


def load_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of an export's directory, whose files may have been changed since.

    Raises InputError where there is none, it is not edgeport's, or a file is missing.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} is no export: {MANIFEST} cannot be read ({error}); make one with"
            f" edgeport export ... -o {directory}"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("generator") != GENERATOR:
        raise InputError(f"{path} was not written by edgeport")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema {manifest.get('schema_version')}, this edgeport reads"
            f" {SCHEMA_VERSION}: export it again"
        )
    for name in manifest["files"]:
        if not (directory / name).is_file():
            raise InputError(f"{directory}: {name} is missing; export it again")
    return manifest


def run_at(
    directory: Path,
    place: Place,
    runtimes: Sequence[str] = (),
    *,
    limits: Limits,
    keep: bool = False,
    calib_data: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[PlaceRun]:
    """Returns what each runtime's files gave at the place, and adds it to the export's manifest.

    Without names, all runtimes that the export has. `calib_data` is what it was calibrated on, for
    a place that quantizes by itself. Raises InputError, StageFailed where parity
    misses the recipe's tolerance, and RuntimeCrashed; runs that were finished before stay.
    """
    manifest = read_manifest(directory)
    made = _made_runtimes(manifest)
    for name in runtimes:
        if name not in made:
            raise InputError(f"{directory} has no {name}; it has {', '.join(made)}")
    chosen = [name for name in made if not runtimes or name in runtimes]
    place.check(chosen)
    _open_journal(directory, manifest)
    runs = []
    for name in chosen:
        progress(f"{name} on {place.text}")
        with scratch_directory() as workdir:
            job = job_of(directory, manifest, name, limits, workdir)
            feeds = partial(
                write_calibration, directory, manifest, calib_data, workdir / "calibration.npz"
            )
            job = replace(job, keep=keep, progress=progress, calibration=feeds)
            ran = place.run(job)
            found = _judged(directory, manifest, job, place.text, ran)
        _record(directory, manifest, found)
        runs.append(found)
        least_db = manifest["options"]["tolerance_db"]
        if least_db is not None and found.artifact.parity:
            hold(found.artifact.parity, least_db, "run", f"{job.files[0].name} on {place.text}")
    return runs


def _made_runtimes(manifest: Mapping[str, Any]) -> list[str]:
    return [name for name in manifest["options"]["target_runtimes"] if name in RUNTIMES]


def job_of(
    directory: Path, manifest: Mapping[str, Any], name: str, limits: Limits, workdir: Path
) -> Job:
    """Returns what a place is given to run one runtime's files of an export."""
    files = tuple(directory / file for file in RUNTIMES[name].files if file in manifest["files"])
    return Job(
        runtime=name,
        files=files,
        model=_compiled_from(directory, manifest, name),
        inputs=_inputs(directory, manifest, name),
        device=find_device(manifest["device"]["name"]),
        precision=precision_of(manifest),
        limits=limits,
        journal=directory / JOURNAL,
        workdir=workdir,
        unquantized=directory / (CONVERTED if _converts(name) else OPTIMIZED),
    )


def precision_of(manifest: Mapping[str, Any]) -> Precision:
    """Returns the precision that the manifest states; a graph that was kept is compiled as auto."""
    text = manifest["options"]["precision"]
    known: tuple[Precision, ...] = (*PRECISIONS, *CONVERTER_PRECISIONS)
    return next((one for one in known if one == text), "auto")


def _compiled_from(directory: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Returns the ONNX file that the runtime's files were compiled from."""
    if name == WRITTEN:  # nothing was compiled
        return directory / RUNTIMES[name].files[0]
    names = (CONVERTED,) if _converts(name) else ("quantized.onnx", OPTIMIZED)
    return directory / next(file for file in names if file in manifest["files"])


def _converts(name: str) -> bool:
    return RUNTIMES[name].compiles == "rewritten"


def _inputs(directory: Path, manifest: Mapping[str, Any], name: str) -> Path:
    integers = PARITY_INTEGERS in manifest["files"] and RUNTIMES[name].compiles == "quantized"
    return directory / (PARITY_INTEGERS if integers else PARITY_INPUTS)


def _judged(
    directory: Path, manifest: Mapping[str, Any], job: Job, place: str, ran: Ran
) -> PlaceRun:
    file = ran.file or job.files[0]
    sha = file_sha256(file)
    parity: tuple[Measurement, ...] = ()
    notes = ran.notes
    if ran.outputs is None:
        notes = (*notes, f"{place} gives no outputs of {file.name}: its parity was not checked")
    else:
        references = load_samples(directory / PARITY_OUTPUTS)
        parity = compared(references, _decoded(manifest, job, ran.outputs), ran.provenance, sha)
    computed = next(
        one["computed"] for one in reversed(manifest["artifacts"]) if one["runtime"] == job.runtime
    )
    artifact = described(file, "run", computed, nodes=ran.nodes, parity=parity, runtime=job.runtime)
    measured = tuple(replace(one, artifact_sha256=sha) for one in ran.measurements)
    return PlaceRun(place, artifact, measured, notes)


def _decoded(manifest: Mapping[str, Any], job: Job, outputs: Sequence[Sample]) -> Sequence[Sample]:
    """Returns the outputs as real numbers: those of a graph with integer outputs are scaled."""
    if RUNTIMES[job.runtime].compiles != "quantized" or not manifest.get("integer_io"):
        return outputs
    edges = {name: Affine(**manifest["io_scales"][name]) for name in manifest["integer_io"]}
    names = Session(job.model).output_names()
    return [named_outputs(decode_outputs(list(one.values()), names, edges)) for one in outputs]


def _open_journal(directory: Path, manifest: dict[str, Any]) -> None:
    """Makes the journal, listed among our files before it is there: an export may replace it."""
    if JOURNAL not in manifest["files"]:
        manifest["files"][JOURNAL] = {}
        (directory / JOURNAL).touch()
        write_manifest(directory, manifest)


def _record(directory: Path, manifest: dict[str, Any], run: PlaceRun) -> None:
    """Puts the run into the manifest, in place of an earlier one of the same place and runtime."""
    key = (run.place, run.artifact.runtime)
    kept = [
        one
        for one in manifest["run"]["places"]
        if (one["place"], one["artifact"]["runtime"]) != key
    ]
    manifest["run"]["places"] = [*kept, plain(run.to_dict())]
    write_manifest(directory, manifest)
