"""Asks Qualcomm's HTP compiler where each node of a graph would run, with fallback allowed.

`place` compiles as an export does, except that what the NPU refuses goes to the CPU, and nothing
is written. The functions named `_..._here` run in the child process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeport.descriptors import redirected
from edgeport.errors import RuntimeCrashed, StageFailed
from edgeport.runtimes.qnn_context_binary import PROVIDER, compiler_options, session_here
from edgeport.runtimes.qnn_validator import Refusal, read_refusals
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.types import Device, NodeReport, Precision, Serialisable

_LAID_OUT = re.compile(r"(_token_\d+)+$")
_NAMES = re.compile(r"'[^']*'|\d+")  # what differs between two messages of one kind
_SIGNAL = re.compile(r"SIG[A-Z]+")
_ASSERTION = re.compile(r"Assertion|terminate called|what\(\):")


@dataclass(frozen=True)
class Crash(Serialisable):
    """How the compiler's process ended: "signal", "timeout", "memory" or "exit", and in words."""

    reason: str
    what: str
    last_line: str = ""

    def same_as(self, other: Crash) -> bool:
        """Returns whether both ended in the same way: the same reason, and the same signal."""
        signals = [_SIGNAL.findall(crash.what) for crash in (self, other)]
        return self.reason == other.reason and signals[0] == signals[1]

    @classmethod
    def of(cls, error: RuntimeCrashed, printed: str = "") -> Crash:
        """Returns the crash that an error tells of; `printed` is more of what the child printed."""
        what = str(error).partition("; what it printed")[0].partition(": ")[2]
        lines = (*printed.splitlines(), *error.last_lines.splitlines())
        said = [line[found.start() :] for line in lines if (found := _ASSERTION.search(line))]
        return cls(error.reason, what, said[-1].strip() if said else "")


@dataclass(frozen=True)
class Placement(Serialisable):
    """Where each node landed, which nodes share an NPU partition, and the validator's own lines.

    QuantizeLinear and DequantizeLinear are among the nodes. With a `crash` there are none;
    `failure` is what the compiler said when it gave up in order.
    """

    nodes: tuple[NodeReport, ...] = ()
    partitions: tuple[tuple[str, ...], ...] = ()
    raw: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    crash: Crash | None = None
    failure: str = ""

    def ended_as(self, other: Placement) -> bool:
        """Returns whether both crashed alike, or both were refused as a whole for one reason."""
        if self.crash and other.crash:
            return self.crash.same_as(other.crash)
        kinds = [_NAMES.sub("", placement.failure)[:80] for placement in (self, other)]
        return not self.crash and not other.crash and bool(self.failure) and kinds[0] == kinds[1]

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Placement:
        """Returns the placement that `to_dict` wrote."""
        return cls(
            tuple(NodeReport(**node) for node in table["nodes"]),
            tuple(tuple(names) for names in table["partitions"]),
            dict(table["raw"]),
            None if table["crash"] is None else Crash(**table["crash"]),
            table["failure"],
        )


_KNOWN, _OUTPUTS, _LOG = "placed.json", "emulated.npz", "validator.log"


def place(
    model: Path,
    workdir: Path,
    device: Device,
    precision: Precision,
    limits: Limits,
    inputs: Path | None = None,
) -> tuple[Placement, list[Sample]]:
    """Returns where the nodes of `model` land, or how the compiler crashed or failed on it.

    With `inputs`, a file of `save_samples`, also what the graph then gives on them: what is on the
    NPU runs in the emulator, the rest on this machine's CPU; nothing where that failed.
    """
    arguments = {
        "model": str(model.resolve()),
        "directory": str(workdir.resolve()),
        "provider": compiler_options(device.values, precision),
        "inputs": str(inputs.resolve()) if inputs else "",
    }
    try:
        run_in_child(
            f"{__name__}:_place_here", arguments, stage="place", workdir=workdir, limits=limits
        )
    except RuntimeCrashed as error:
        return _known(workdir, Placement(crash=Crash.of(error, _tail(workdir / _LOG)))), []
    except StageFailed as error:
        return _known(workdir, Placement(failure=str(error).partition(": ")[2])), []
    return _known(workdir, Placement()), load_samples(workdir / _OUTPUTS) if inputs else []


def _tail(log: Path, count: int = 4096) -> str:
    """Returns the end of the verbose log, "" where the child did not come so far."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - count))
        return file.read().decode("utf-8", errors="replace")


def _known(workdir: Path, ending: Placement) -> Placement:
    """Returns the placement that the child wrote before it ended so."""
    path = workdir / _KNOWN
    if not path.is_file():
        return ending
    found = json.loads(path.read_text(encoding="utf-8"))
    crash = ending.crash.to_dict() if ending.crash else None
    return Placement.from_dict({**found, "crash": crash, "failure": ending.failure})


def _place_here(model: str, directory: str, provider: dict[str, str], inputs: str) -> None:
    log = Path(directory, _LOG)
    record = {"session.record_ep_graph_assignment_info": "1"}
    try:
        with log.open("wb") as file, redirected(2, file.fileno()):
            session = session_here(model, provider, record, verbose=True)
        refusals = read_refusals(log.read_text(encoding="utf-8", errors="replace"))
        known = json.dumps(_assignment(session, refusals))
        Path(directory, _KNOWN).write_text(known, encoding="utf-8")
        if inputs:
            answers = [session.run(None, dict(one)) for one in load_samples(Path(inputs))]
            save_samples(Path(directory, _OUTPUTS), [named_outputs(one) for one in answers])
    except Exception as error:  # onnxruntime's binding raises a class per status code
        if "MEM_ALLOC" in str(error):
            raise MemoryError(str(error)) from error
        raise StageFailed("place", next(iter(str(error).splitlines()), "")) from error


def own_name(name: str) -> str:
    """Returns a node's name without what the provider appends when it lays the node out anew."""
    return _LAID_OUT.sub("", name)


def _assignment(session: Any, refusals: Mapping[str, Refusal]) -> dict[str, Any]:
    """Returns Placement's nodes, partitions and raw lines, as onnxruntime recorded them."""
    nodes, partitions = [], []
    for subgraph in session.get_provider_graph_assignment_info():
        unit = "npu" if subgraph.ep_name == PROVIDER else "cpu"
        if unit == "npu":
            partitions.append([own_name(node.name) for node in subgraph.get_nodes()])
        for node in subgraph.get_nodes():
            refused = refusals.get(node.name) if unit == "cpu" else None
            reason, name = refused.reason if refused else "", own_name(node.name)
            nodes.append({"node": name, "op": node.op_type, "unit": unit, "reason": reason})
    fallen = {node["node"] for node in nodes if node["unit"] == "cpu"}
    named = ((own_name(name), refusal.raw) for name, refusal in refusals.items())
    raw = {name: line for name, line in named if name in fallen}
    return {"nodes": nodes, "partitions": partitions, "raw": raw}
