"""Per layer of an export: its time on this machine's CPU, and its SQNR against the float graph.

Times are onnxruntime's own, from its profiler: the only clock besides `edgeport.measure`, since
nobody else sees single nodes. They are of this machine's CPU and of the graph as onnxruntime
executes it, where nodes are fused, split and put in (layout changes, for example). They say where
a CPU spends its time, and never what a phone or its NPU takes: provenance is host. Reading the
clock at each node adds some microseconds to it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.parities import QUANTIZED, Exported
from edgeport.parting import SWEPT_BYTES
from edgeport.plan import CONVERTED, OPTIMIZED
from edgeport.points import HostReference, Point, find_points, is_comparable
from edgeport.private import scratch_directory
from edgeport.quantize.graph import in_groups
from edgeport.quantize.integer_io import decode_outputs
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import Sample
from edgeport.runtimes.worker import Limits
from edgeport.subgraph import CONVERTERS, Workbench
from edgeport.types import Provenance, Serialisable

RUNS, WARM_UP = 20, 3  # runs that count, and those before them that do not
_NO_CHILD = Limits(0, 0)  # everything here runs in this process
_TIMED = "_kernel_time"
# What onnxruntime adds to the name of the node, or of the tensor, that it makes a new node of.
_MADE_OF = re.compile(r"(_token_\d+|_nchwc|/duplicated)+$")


@dataclass(frozen=True)
class Layer(Serialisable):
    """A node as onnxruntime executes it, or an ONNX operator that it executes as part of another.

    `node` is the ONNX node where `executed`, the profile's name, says which; `op` is the operator
    executed, such as QLinearConv. `time_ms` is the median over the runs; None for an operator that
    is part of another. A node with a subgraph has the time of that in its own. `sqnr_db` is of the
    operator's output as its readers get it, with the noise of all before it; the worst over the
    parity inputs. None where the float graph has no such tensor, or nothing is quantized.
    """

    node: str
    op: str
    time_ms: float | None
    sqnr_db: float | None
    provenance: Provenance
    executed: str = ""


def layer_rows(directory: Path, *, runs: int = RUNS, threads: int = 1) -> tuple[Layer, ...]:
    """Returns the layers of an export's last ONNX file, in the graph's order.

    That is quantized.onnx, and optimized.onnx where nothing was quantized; it is timed on the first
    parity input, with one thread unless told otherwise. Raises InputError for what is no export,
    and StageFailed where a file cannot run.
    """
    if runs < 1:
        raise InputError(f"layers are timed over one run or more, not {runs}")
    export = Exported(directory, _NO_CHILD)
    # Without the graph that runtimes share, the one that the converters were given.
    shared = OPTIMIZED if OPTIMIZED in export.manifest["files"] else CONVERTED
    files = [name for name in (QUANTIZED, shared) if name in export.manifest["files"]]
    if not files:
        raise InputError(f"{directory} has no {OPTIMIZED}: its export failed before the passes")
    bench = _bench(export, files[0], 0)
    operators = {node.name: node.op_type for node in bench.nodes}
    timed = [
        Layer(_stated(bench, operators, name), op, time_ms, None, "host", name)
        for (name, op), time_ms in _times(export, files[0], runs, threads).items()
    ]
    found = _losses(export, *files) if files[0] == QUANTIZED and len(files) == 2 else {}
    rows = [replace(one, sqnr_db=found.get(one.node)) for one in timed]
    shown = {one.node for one in rows}
    rows += [
        Layer(name, operators[name], None, value, "host")
        for name, value in found.items()
        if name not in shown
    ]
    return tuple(_in_order(rows, list(operators)))


def _bench(export: Exported, model: str, sample: int) -> Workbench:
    """Returns an ONNX file with one parity input, to be run node by node."""
    return Workbench(onnx.load(export.directory / model), export.fed(model)[sample], optimize=False)


def _times(export: Exported, model: str, runs: int, threads: int) -> dict[tuple[str, str], float]:
    """Returns (profile's name, operator) -> median ms, in the order of execution."""
    feed = export.fed(model)[0]
    with scratch_directory() as folder:
        session = Session(export.directory / model, threads, profile=folder / "profile")
        try:
            for _ in range(WARM_UP + runs):
                session.run(feed)
        finally:
            file = session.end_profile()
        events = json.loads(file.read_text(encoding="utf-8"))
    by_run = times_by_run(events)[WARM_UP:]
    names = dict.fromkeys(name for times in by_run for name in times)
    medians = {name: statistics.median(one.get(name, 0.0) for one in by_run) for name in names}
    return {name: round(time_ms, 4) for name, time_ms in medians.items()}  # it counts in us


def times_by_run(events: Sequence[Mapping[str, Any]]) -> list[dict[tuple[str, str], float]]:
    """Returns, per run, (name, operator) -> ms; a node of a loop's body has the sum of its turns.

    The event of a run comes after those of its nodes.
    """
    runs, times = [], defaultdict[tuple[str, str], float](float)
    for event in events:
        name = str(event["name"])
        if event["cat"] == "Node" and name.endswith(_TIMED):
            key = (name.removesuffix(_TIMED), str(event["args"]["op_name"]))
            times[key] += event["dur"] / 1e3  # microseconds
        elif name == "model_run":
            runs.append(dict(times))
            times.clear()
    return runs


def _stated(bench: Workbench, nodes: Collection[str], executed: str) -> str:
    """Returns the ONNX node that the name of an executed node states, else that name."""
    for name in (executed, _MADE_OF.sub("", executed)):
        if name in nodes:
            return name
        if name != executed and name in bench.makers:  # it is named after the tensor that it gives
            return str(bench.nodes[bench.makers[name]].name)
    return executed


def _losses(export: Exported, quantized: str, optimized: str) -> dict[str, float]:
    """Returns ONNX operator -> the SQNR in dB of its output, in the graph's order."""
    worst: dict[str, float] = {}
    for sample in range(len(export.feeds)):
        bench = _bench(export, quantized, sample)
        reference = HostReference(_bench(export, optimized, sample), export.edges(optimized))
        points = _points(bench, reference, export.outputs)
        for point, value in _compared(export, bench, reference, points):
            node = _operator(bench, point.name)
            if node:
                worst[node] = min(value, worst.get(node, float("inf")))
    return worst


def _operator(bench: Workbench, tensor: str) -> str:
    """Returns the operator that gives a tensor, behind pairs; "" where that is a graph input."""
    while (index := bench.makers.get(tensor)) is not None:
        node = bench.nodes[index]
        if node.op_type not in CONVERTERS:
            return str(node.name)
        tensor = node.input[0]
    return ""


def _points(bench: Workbench, reference: HostReference, outputs: Sequence[str]) -> list[Point]:
    """Returns the tensors that the float graph has too, each once, in the graph's order."""
    found = {one.name: one for name in outputs for one in find_points(bench, name, reference)}
    return sorted(found.values(), key=lambda one: bench.makers[one.seen])


def _compared(
    export: Exported, bench: Workbench, reference: HostReference, points: Sequence[Point]
) -> Iterator[tuple[Point, float]]:
    """Yields the SQNR of each point that can be compared; some are run at a time."""
    for group in in_groups(points, lambda one: bench.types[one.seen].bytes, SWEPT_BYTES):
        values = bench.values([one.seen for one in group])
        names = [one.seen for one in group]
        answers = decode_outputs([values[n] for n in names], names, export.edges(QUANTIZED))
        references: Sample = reference.values([one.name for one in group])
        for point, answer in zip(group, answers, strict=True):
            expected = references[point.name]
            if is_comparable(expected):
                yield point, sqnr_db(expected.reshape(answer.shape), answer)


def _in_order(rows: Sequence[Layer], nodes: Sequence[str]) -> list[Layer]:
    """Returns the rows in the graph's order; one of no ONNX node stays behind the one before it."""
    places = {name: index for index, name in enumerate(nodes)}
    at, keyed = -1, []
    for row in rows:
        at = places.get(row.node, at)
        keyed.append((at, row))
    return [row for _, row in sorted(keyed, key=lambda one: one[0])]
