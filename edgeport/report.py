"""Writes what an export made: manifest.json, DEPLOY.md, and the table on stdout."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeport
from edgeport.deploy import deploy_markdown
from edgeport.fingerprint import file_names, file_sha256
from edgeport.private import write_text_atomic
from edgeport.runtimes import RUNTIMES
from edgeport.staging import GENERATOR, MANIFEST
from edgeport.types import UNITS, Artifact, Measurement

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 2
_TOOLS = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "onnxruntime-qnn",
    "executorch",
    "torchao",
)


def make_manifest(
    plan: Mapping[str, Any],
    artifacts: Sequence[Artifact],
    *,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    latency: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    files: Path,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Returns the manifest: the request, the tools, each stage's artifact, and every file's sha256.

    `files` is the directory with all files but manifest.json and DEPLOY.md in it. Whatever depends
    on when and where it ran is in the section `run`; the rest is the same in every run.
    """
    return {
        "generator": GENERATOR,
        "schema_version": SCHEMA_VERSION,
        **plan,
        "tools": _tool_versions(),
        "inputs": list(inputs),
        "outputs": list(outputs),
        "artifacts": [_lasting(artifact) for artifact in artifacts],
        "placement": placement(artifacts),
        **facts,
        "run": {
            "seconds": [artifact.seconds for artifact in artifacts],
            "latency": list(latency),
            "places": [],  # what ran elsewhere: running.py adds to it
            "warnings": list(warnings),
        },
        "files": {name: _file_entry(files / name) for name in file_names(files)},
    }


def _lasting(artifact: Artifact) -> dict[str, Any]:
    """Returns the artifact without the seconds that it took."""
    return {key: value for key, value in artifact.to_dict().items() if key != "seconds"}


def placement(artifacts: Sequence[Artifact]) -> dict[str, dict[str, int]]:
    """Returns, per runtime that reports it, how many ops landed on each unit of the device."""
    placed: dict[str, dict[str, int]] = {}
    for artifact in artifacts:
        if artifact.nodes:
            units = Counter(node.unit for node in artifact.nodes)
            possible = RUNTIMES[artifact.runtime].units
            shown = [unit for unit in UNITS if unit in possible or units[unit]]
            placed[artifact.runtime] = {str(unit): units[unit] for unit in shown}
    return placed


def write_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes DEPLOY.md and, last, manifest.json, which lists every other file."""
    deploy = directory / "DEPLOY.md"
    deploy.write_text(deploy_markdown(manifest), encoding="utf-8")
    manifest["files"][deploy.name] = _file_entry(deploy)
    write_manifest(directory, manifest)


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes manifest.json; readers see the old or the new text."""
    text = json.dumps(manifest, indent=2, allow_nan=False)
    write_text_atomic(directory / MANIFEST, text + "\n")


def _file_entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _tool_versions() -> dict[str, str]:
    versions = {"edgeport": edgeport.__version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            versions[tool] = "not installed"
    return versions


def stage_table(artifacts: Sequence[Artifact]) -> Table:
    """Returns the table of stages: file, type computed in, where it ran, size, SQNR, seconds.

    SQNR is against the reference.

    The emulator's seconds are left out: they follow the host's clock and mean nothing.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "runtime", "file", "computed", "where"):
        table.add_column(title, no_wrap=True)
    for title in ("size", "SQNR dB", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for artifact in artifacts:
        table.add_row(
            artifact.stage,
            artifact.runtime or "-",
            artifact.path,
            artifact.computed,
            provenance(artifact) or "-",
            _size(artifact.bytes),
            _sqnr(artifact),
            "-" if provenance(artifact) == "emulated" else f"{artifact.seconds:.1f}",
        )
    return table


def summary_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the lines below the table: placement, calibration, steps, latency with provenance."""
    lines = []
    for runtime, units in manifest["placement"].items():
        ops = "  ".join(f"{unit} {count} ops" for unit, count in units.items())
        how = " with its GPU delegate" if "gpu" in units else ""
        lines.append(f"{runtime}{how}: {ops}")
    if "calibration" in manifest:
        used = f"{manifest['calibrated_on']}: " if "calibrated_on" in manifest else ""
        lines.append(f"calibrated on {used}{manifest['calibration']}")
    for artifact in manifest["artifacts"]:
        counts = [f"{name} {count}" for name, count in artifact["steps"] if count]
        if counts:
            lines.append(f"rewrites: {', '.join(counts)}")
        lines.extend(f"note: {note}" for note in artifact["notes"])
    run = manifest["run"]
    lines.extend(latency_line(row, manifest) for row in run["latency"])
    for placed in run["places"]:
        lines.extend(place_lines(placed))
    lines.extend(f"warning: {warning}" for warning in run["warnings"])
    return lines


def place_lines(run: Mapping[str, Any]) -> list[str]:
    """Returns what a place measured, and its notes, from the manifest's entry of the run."""
    where = f"{run['artifact']['runtime']} on {run['place']}"
    measured = [Measurement.from_dict(one) for one in run["measurements"]]
    notes = [f"note: {note}" for note in run["notes"]]
    return [*(f"{where}: {measurement_text(one)}" for one in measured), *notes]


def latency_line(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Returns one comparison in words, a loss as plainly as a win."""
    speedup, variant = row["speedup"], row["variant"]
    low, high = speedup["interval"]
    verdict = "faster" if low > 1 else "slower" if high < 1 else "not distinguishable"
    threads = variant["environment"]["threads"]
    return (
        f"{row['what']}: {manifest['source']['variant']} {variant['value']:.2f} ms,"
        f" {manifest['baseline']} {row['baseline']['value']:.2f} ms,"
        f" {speedup['value']:.2f}x [{low:.2f}, {high:.2f}] {verdict}"
        f" (host, onnxruntime fp32, {threads} threads, {variant['environment']['utc']})"
    )


def provenance(artifact: Artifact) -> str:
    """Returns where the artifact's numbers come from; nothing where it was not run."""
    return artifact.parity[0].provenance if artifact.parity else ""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _sqnr(artifact: Artifact) -> str:
    values = [one.value for one in artifact.parity if one.metric == "sqnr_db"]
    return sqnr_text(values[0]) if values else "-"


def sqnr_text(sqnr_db: float) -> str:
    """Returns dB as tables show them."""
    return "exact" if sqnr_db == float("inf") else f"{sqnr_db:.1f}"


def measurement_text(measured: Measurement) -> str:
    """Returns one measured number with its unit, interval, provenance and warnings."""
    low_high = "" if measured.interval is None else " [{:.3g}, {:.3g}]".format(*measured.interval)
    count = f", {len(measured.samples)} samples" if measured.samples else ""
    warned = "".join(f"; {warning}" for warning in measured.warnings)
    return (
        f"{measured.metric} {measured.value:.4g} {measured.unit}{low_high}"
        f" ({measured.origin}{count}{warned})"
    )
