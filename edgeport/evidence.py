"""What an export proves, as measurements with the metric and what it is of: "sqnr_db:tflite"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeport.liveness import peak_activation_bytes
from edgeport.plan import OPTIMIZED
from edgeport.running import load_manifest
from edgeport.runtimes.qnn_context_binary import PLACEMENT
from edgeport.staging import MANIFEST, failed_directory
from edgeport.types import Artifact, Measurement


def evidence(directory: Path, manifest: Mapping[str, Any]) -> list[Measurement]:
    """Returns parity, size, ops on the CPU and activation bytes of an export, per runtime.

    Figures of what the compilers wrote are of the provenance "host": no device was asked.
    """
    artifacts = [Artifact.from_dict({**one, "seconds": 0.0}) for one in manifest["artifacts"]]
    found = [one for artifact in artifacts for one in _of_artifact(artifact)]
    found += [Measurement.from_dict(one) for one in manifest.get("measured", ())]
    for runtime, units in manifest["placement"].items():
        if set(units) - {"cpu"}:
            value = float(units.get("cpu", 0))
            found.append(Measurement(f"cpu_ops:{runtime}", value, "ops", "host"))
    graphs = ("quantized.onnx", OPTIMIZED)  # what the converters quantize is theirs to lay out
    graph = next((name for name in graphs if name in manifest["files"]), "")
    if graph:
        peak = float(peak_activation_bytes(directory / graph))
        found.append(Measurement("peak_activation_bytes:onnx", peak, "B", "host"))
    for placed in manifest["run"]["places"]:
        runtime = placed["artifact"]["runtime"]
        there = Artifact.from_dict(placed["artifact"])
        measured = [Measurement.from_dict(one) for one in placed["measurements"]]
        found += [
            replace(one, metric=f"{one.metric}:{runtime}") for one in (*there.parity, *measured)
        ]
    return found


def evidence_of_failure(target: Path) -> list[Measurement]:
    """Returns what an export to `target` proved before it failed, with the ops left to the CPU."""
    directory = failed_directory(target)
    if not (directory / MANIFEST).is_file():
        return []
    manifest = load_manifest(directory)
    found = evidence(directory, manifest)
    if (directory / PLACEMENT).is_file():
        lowered = {one["runtime"] for one in manifest["artifacts"] if one["stage"] == "lower"}
        asked = manifest["options"]["target_runtimes"]
        failed = next(one for one in asked if one != "onnx" and one not in lowered)
        nodes = json.loads((directory / PLACEMENT).read_text(encoding="utf-8"))
        on_cpu = sum(node["unit"] == "cpu" for node in nodes)
        found.append(Measurement(f"cpu_ops:{failed}", float(on_cpu), "ops", "host"))
    return found


def _of_artifact(artifact: Artifact) -> list[Measurement]:
    if artifact.stage not in ("write", "lower", "run"):
        return []
    own = [
        replace(one, metric=f"{one.metric}:{artifact.runtime}")
        for one in artifact.parity
        if one.metric == "sqnr_db"
    ]
    if artifact.stage in ("write", "lower") or artifact.runtime == "onnx":
        size = Measurement(
            f"size_bytes:{artifact.runtime}",
            float(artifact.bytes),
            "B",
            "host",
            artifact_sha256=artifact.sha256,
        )
        own.append(size)
    return own
