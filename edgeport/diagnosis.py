"""What the doctor found, as frozen dataclasses, and the arithmetic over a placed graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeport.fixes import find_fix
from edgeport.macs import node_macs
from edgeport.numerics import ClassResult
from edgeport.runtimes.qnn_placement import Crash, Placement
from edgeport.subgraph import CONVERTERS, Workbench, used_names
from edgeport.types import Serialisable

Unit = Literal["npu", "cpu"]


@dataclass(frozen=True)
class NodeDiagnosis(Serialisable):
    """One operator: its unit, its multiply-accumulates, and for the CPU the reason and the fix.

    `raw` is the validator's own line. `applied_by` names edgeport's pass that removed the node, ""
    where none did.
    """

    node: str
    op: str
    unit: Unit
    macs: int
    reason: str = ""
    raw: str = ""
    fix: str = ""
    applied_by: str = ""


@dataclass(frozen=True)
class Break(Serialisable):
    """Operators on the CPU between operators on the NPU, and the bytes that cross over a run."""

    nodes: tuple[str, ...]
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Reduced(Serialisable):
    """The smallest part on which the compiler still crashes, and what finding it took.

    `nodes` are (operator, name), of `total` operators; `minimal` is False where the budget ended
    first.
    """

    nodes: tuple[tuple[str, str], ...]
    total: int
    trials: int
    seconds: float
    minimal: bool
    fix: str
    applied_by: str = ""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Reduced:
        """Returns what `to_dict` wrote."""
        return cls(**{**table, "nodes": tuple((op, name) for op, name in table["nodes"])})


@dataclass(frozen=True)
class GraphDiagnosis(Serialisable):
    """One graph: how many operators landed where, their share of the work, and the breaks.

    A graph on which the compiler crashed, or which it refused as a whole, has no placement.
    """

    stage: str
    nodes: tuple[NodeDiagnosis, ...] = ()
    npu_ops: int = 0
    cpu_ops: int = 0
    npu_partitions: int = 0
    macs: int = 0
    npu_macs: int = 0
    breaks: tuple[Break, ...] = ()
    crash: Crash | None = None
    failure: str = ""
    reduced: Reduced | None = None

    def ended_as(self, other: GraphDiagnosis) -> bool:
        """Returns whether the compiler crashed on both alike, or refused both with one message."""
        mine = Placement(crash=self.crash, failure=self.failure)
        return mine.ended_as(Placement(crash=other.crash, failure=other.failure))

    @property
    def npu_share(self) -> float:
        """The share of multiply-accumulates on the NPU, 0 to 1; of operators where none are."""
        if self.crash or self.failure:
            return 0.0
        if self.macs:
            return self.npu_macs / self.macs
        return self.npu_ops / max(self.npu_ops + self.cpu_ops, 1)


# The reason of a node that onnxruntime fused or moved before it placed the others.
FUSED = "no reason given: what it stands between is on the CPU"
WHOLE_DB = 20.0  # 10 % of the signal: no rounding of a graph that the host computes well
LOST_DB = 6.0  # half of the signal's noise: the emulator and the host round a graph alike


@dataclass(frozen=True)
class Diagnosis(Serialisable):
    """The graph as captured and after edgeport's passes, and how right the NPU's numbers are.

    `passes` are (name, count); `sqnr_db` is of the whole graph after the passes, as the emulator
    (and the CPU, where nodes fell) gives it, against the reference; None where it did not run, and
    `emulator_failure` says why where it was tried. `host_sqnr_db` is what the same graph gives on
    this machine's CPU.
    """

    source: str
    device: str
    chipset: str
    precision: str
    captured: GraphDiagnosis
    passed: GraphDiagnosis
    passes: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    classes: tuple[ClassResult, ...]
    sqnr_db: float | None
    host_sqnr_db: float | None
    emulator_failure: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[ClassResult, ...]:
        """The operator classes whose numbers are wrong, or which crash in the emulator."""
        return tuple(one for one in self.classes if one.status in ("wrong", "crashed"))

    @property
    def wrong_as_a_whole(self) -> bool:
        """Whether each class is right and the NPU's answer is lost, where the host's is not.

        What is right alone may be wrong in the shape that a fusion gives it.
        """
        if self.wrong or self.sqnr_db is None or self.host_sqnr_db is None:
            return False
        return self.sqnr_db < min(WHOLE_DB, self.host_sqnr_db - LOST_DB)

    def shortfalls(self, least_share: float) -> tuple[str, ...]:
        """Returns in words what keeps the graph after the passes from `least_share` of its MACs.

        All of them means wholly on the NPU: an operator without MACs breaks the graph as well.
        """
        found, on_cpu = [], self.passed.cpu_ops or len(self.passed.breaks)
        if self.passed.crash or self.passed.failure:
            found.append("the compiler gives nothing")
        elif self.passed.npu_share < least_share:
            share = f"{self.passed.npu_share:.2%}"
            found.append(f"{share} of MACs on the NPU, {least_share:.2%} are required")
        elif least_share >= 1 and on_cpu:
            ops, them = ("op", "it") if on_cpu == 1 else ("ops", "them")
            found.append(f"{on_cpu} {ops} on the CPU, with no MACs in {them}; none may be")
        if self.emulator_failure:
            found.append("the graph compiles, and fails in the emulator")
        if self.wrong:
            names = ", ".join(dict.fromkeys(one.op for one in self.wrong))
            found.append(f"wrong numbers on the NPU: {names}")
        if self.wrong_as_a_whole:
            found.append(f"the whole graph is wrong on the NPU, {self.sqnr_db:.1f} dB")
        return tuple(found)


@dataclass(frozen=True)
class Cause(Serialisable):
    """Operators that fell for one reason, before and after the passes, and what fixes them."""

    op: str
    reason: str
    captured: int
    passed: int
    fix: str
    applied_by: tuple[str, ...]


def causes(diagnosis: Diagnosis) -> tuple[Cause, ...]:
    """Returns why operators are on the CPU, most of them first; identical causes are counted."""
    before, after = (_fallen(graph.nodes) for graph in (diagnosis.captured, diagnosis.passed))
    passes: dict[tuple[str, str], dict[str, None]] = {}
    for node in diagnosis.captured.nodes:
        if node.unit == "cpu" and node.applied_by:
            passes.setdefault((node.op, node.reason), {})[node.applied_by] = None
    found = [
        Cause(
            op, reason, before[op, reason], after[op, reason], find_fix("refused", op, reason), by
        )
        for op, reason in {**before, **after}
        if (by := tuple(passes.get((op, reason), ()))) is not None
    ]
    return tuple(sorted(found, key=lambda cause: (-cause.passed, -cause.captured, cause.op)))


def _fallen(nodes: Iterable[NodeDiagnosis]) -> Counter[tuple[str, str]]:
    """Returns how many operators fell, by operator and reason; not those that fell with others."""
    fallen = [(node.op, node.reason) for node in nodes if node.unit == "cpu"]
    own = [one for one in fallen if one[1] != FUSED]
    return Counter(own or fallen)


def diagnose_graph(
    stage: str, bench: Workbench, placement: Placement, removed_by: Callable[[str, str], str]
) -> GraphDiagnosis:
    """Returns the diagnosis of a placed graph; `removed_by(name, op)` names a pass or gives ""."""
    if placement.crash or placement.failure:
        return GraphDiagnosis(stage, crash=placement.crash, failure=placement.failure)
    units = unit_of_nodes(bench, placement)
    reasons = {report.node: report.reason for report in placement.nodes}
    shapes = {name: known.shape for name, known in bench.types.items()}
    nodes = []
    for node in bench.nodes:
        if node.op_type in CONVERTERS:
            continue
        unit, macs = units[node.name], node_macs(node, shapes)
        if unit == "npu":
            nodes.append(NodeDiagnosis(node.name, node.op_type, unit, macs))
            continue
        reason = reasons.get(node.name) or FUSED
        fix = find_fix("refused", node.op_type, reason)
        raw, by = placement.raw.get(node.name, ""), removed_by(node.name, node.op_type)
        nodes.append(NodeDiagnosis(node.name, node.op_type, unit, macs, reason, raw, fix, by))
    counts = Counter(r.unit for r in placement.nodes if r.op not in CONVERTERS)
    macs = sum(node.macs for node in nodes)
    npu_macs = sum(node.macs for node in nodes if node.unit == "npu")
    return GraphDiagnosis(
        stage,
        tuple(nodes),
        counts["npu"],
        counts["cpu"],
        len(placement.partitions),
        macs,
        npu_macs,
        find_breaks(bench, units),
    )


def unit_of_nodes(bench: Workbench, placement: Placement) -> dict[str, Unit]:
    """Returns node name -> unit, for every node of the graph.

    onnxruntime replaces some nodes before it places them (it fuses, folds, and moves Transposes);
    such a one counts where what it takes comes from, else where its result goes.
    """
    found: dict[str, Unit] = {}
    for report in placement.nodes:
        if report.unit != "gpu":
            found.setdefault(report.node, report.unit)
    makers = {name: bench.nodes[index].name for name, index in bench.makers.items()}
    users: dict[str, list[str]] = {}
    for node in bench.nodes:
        for name in used_names(node):
            users.setdefault(name, []).append(node.name)
    for node in bench.nodes:
        if node.name not in found:
            before = [found.get(makers[name]) for name in used_names(node) if name in makers]
            if known := [unit for unit in before if unit]:
                found[node.name] = known[0]
    for node in reversed(bench.nodes):
        if node.name not in found:
            after = [found.get(user) for name in node.output for user in users.get(name, ())]
            found[node.name] = next((unit for unit in after if unit), "cpu")
    return found


def find_breaks(bench: Workbench, units: Mapping[str, Unit]) -> tuple[Break, ...]:
    """Returns the connected groups of CPU nodes with an NPU node on at least one side."""
    on_cpu = [units[node.name] == "cpu" for node in bench.nodes]
    groups = _connected(bench, on_cpu)
    into: dict[int, set[str]] = {}
    out_of: dict[int, set[str]] = {}
    for index, node in enumerate(bench.nodes):
        for name in used_names(node):
            maker = bench.makers.get(name)
            if maker is None or on_cpu[maker] == on_cpu[index]:
                continue
            side = into if on_cpu[index] else out_of
            side.setdefault(groups[index if on_cpu[index] else maker], set()).add(name)
    return tuple(
        Break(
            tuple(bench.nodes[i].name for i, group in enumerate(groups) if group == root),
            sum(bench.types[name].bytes for name in into.get(root, ())),
            sum(bench.types[name].bytes for name in out_of.get(root, ())),
        )
        for root in sorted({*into, *out_of})
    )


def _connected(bench: Workbench, on_cpu: Sequence[bool]) -> list[int]:
    """Returns per node the first node of its connected group on the CPU; -1 on the NPU."""
    parent = [index if cpu else -1 for index, cpu in enumerate(on_cpu)]

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, node in enumerate(bench.nodes):
        for name in used_names(node):
            maker = bench.makers.get(name)
            if maker is not None and on_cpu[index] and on_cpu[maker]:
                one, other = sorted((root(index), root(maker)))
                parent[other] = one
    return [root(index) if cpu else -1 for index, cpu in enumerate(on_cpu)]
