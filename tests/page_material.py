"""Exports and comparisons to make pages of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from support import conv_net, save

import edgeport
from edgeport.bench import ArmResult, Bench, Settings
from edgeport.benchmarking import Benchmark
from edgeport.traces import Trace, compare_traces
from edgeport.types import Measurement, NodeReport, Provenance

HOSTILE = "<script>hacked = 1</script>|`$\\frac{1}$"
"""A node's name that a page, a drawing or markdown could take for its own."""


def measured(metric: str, value: float, provenance: Provenance, **more: Any) -> dict[str, Any]:
    unit = "B" if metric.endswith("bytes") else "ms" if metric.endswith("_ms") else "ratio"
    return Measurement(metric, value, unit, provenance, **more).to_dict()


def latency(value: float, provenance: Provenance = "host") -> dict[str, Any]:
    samples = tuple(value * (1 + step / 100) for step in range(-10, 11))
    told = {"threads": "2", "cpu": "a processor", "utc": "2026-01-02T03:04:05+00:00"}
    return measured("latency_ms", value, provenance, samples=samples, environment=told)


def compared(what: str, speed: float) -> dict[str, Any]:
    """Returns a manifest's row of a variant that is `speed` times as fast as its baseline."""
    interval = (speed * 0.97, speed * 1.03)
    return {
        "what": what,
        "variant": latency(30.0 / speed),
        "baseline": latency(30.0),
        "speedup": measured("speedup", speed, "host", interval=interval),
    }


def placed(manifest: dict[str, Any], *measurements: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest's entry of a run on a phone."""
    artifact = {**manifest["artifacts"][-1], "seconds": 1.0, "nodes": []}
    return {
        "place": "hub",
        "artifact": artifact,
        "measurements": list(measurements),
        "notes": ["the phone was warm"],
    }


def make_plain(folder: Path) -> Path:
    """Makes a real export for this machine's CPU; returns its directory."""
    source = save(conv_net(), folder / "net.onnx")
    made = edgeport.export(
        str(source), device="s24", target_runtimes=("onnx",), output_dir=folder / "out"
    )
    return made.directory


def edit(directory: Path, **changes: Any) -> dict[str, Any]:
    """Changes the manifest; returns it."""
    file = directory / "manifest.json"
    manifest: dict[str, Any] = json.loads(file.read_text())
    manifest.update(changes)
    file.write_text(json.dumps(manifest))
    return manifest


NODES = (
    NodeReport("a", "Conv", "npu"),
    NodeReport(HOSTILE, "Shrink", "cpu", "no such operator", "write it with basic operators"),
    NodeReport("c", "Relu", "npu"),
)


def make_rich(directory: Path) -> Path:
    """Makes an export padre's, with placement on the NPU, latencies and a phone's figures."""
    manifest = edit(directory)
    lowered = {
        **manifest["artifacts"][-1],
        "stage": "lower",
        "runtime": "qnn_context_binary",
        "nodes": [node.to_dict() for node in NODES],
        "parity": [],
    }
    emulated = {
        **manifest["artifacts"][-1],
        "runtime": "qnn_context_binary",
        "parity": [measured("sqnr_db", 17.5, "emulated")],
    }
    ran = placed(
        manifest,
        latency(7.5, "device"),
        measured("latency_mean_ms", 4321.0, "emulated"),
        measured("peak_bytes", 91e6, "device"),
    )
    run = {**manifest["run"], "latency": [compared("the net", 0.8)], "places": [ran]}
    edit(
        directory,
        source={**manifest["source"], "kind": "recipe", "name": "padre", "variant": "padre3"},
        baseline="attention",
        artifacts=[*manifest["artifacts"], lowered, emulated],
        options={**manifest["options"], "tolerance_db": 20.0},
        run={**run, "latency": [*run["latency"], compared("a block", 2.0)]},
    )
    return directory


def benchmark(speeds: dict[str, float]) -> Benchmark:
    """Returns a real comparison of made-up traces: blocks of turns around 10 ms over a speed."""
    rng = np.random.default_rng(0)
    traces = {
        name: Trace(
            name, tuple(tuple(map(tuple, rng.normal(10 / v, 0.05, (6, 4)))) for _ in range(8))
        )
        for name, v in speeds.items()
    }
    base, *others = traces.values()
    arms = tuple(
        ArmResult(
            name,
            "onnx",
            "a.onnx",
            "0" * 64,
            "fp32",
            (
                Measurement("latency_ms", 10 / speeds[name], "ms", "host", tuple(trace.calls_ms)),
                Measurement("load_ms", 12.5, "ms", "host"),
            ),
            (),
            (),
        )
        for name, trace in traces.items()
    )
    comparisons = tuple(compare_traces(base, other, 0.02) for other in others)
    again = comparisons[0].ratio
    found = Bench(arms, comparisons, 0.02, again, 8, 192, "host", {"threads": "2"}, ("a hot day",))
    return Benchmark(found, {"quick": float("inf")}, Settings(2))
