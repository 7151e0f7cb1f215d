"""Where the operators of an export's graphs landed, and whether that fits the device."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeport.fixes import find_fix
from edgeport.runtimes import RUNTIMES
from edgeport.types import UNITS, Artifact, NodeReport, Unit

Fits = Literal["fits", "fits in part", "does not fit", "CPU only", "not known", "failed"]
_LISTED_OPS = 3
_REFUSED = "placement.json"
MEMORY = "memory"


@dataclass(frozen=True)
class Leftover:
    """Operators on the CPU with the same type, reason and fix; `nodes` are their names."""

    op: str
    reason: str
    fix: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """The operators of one graph in their order; `runtimes` have the same ones at the same units.

    `units` are those where the runtime can put an operator, its accelerator first.
    """

    runtimes: tuple[str, ...]
    units: tuple[Unit, ...]
    nodes: tuple[NodeReport, ...]

    @property
    def counts(self) -> dict[Unit, int]:
        """How many operators are on each unit."""
        found = Counter(node.unit for node in self.nodes)
        return {unit: found[unit] for unit in self.units}

    @property
    def accelerator(self) -> Unit | None:
        """The unit that is asked for; None for a runtime that knows only the CPU."""
        return self.units[0] if self.units[0] != "cpu" else None

    @property
    def usual_reason(self) -> str | None:
        """What most operators of a CPU runtime say of themselves; None with an accelerator."""
        if self.accelerator is not None:
            return None
        return Counter(node.reason for node in self.nodes).most_common(1)[0][0]

    def is_left(self, node: NodeReport) -> bool:
        """Returns whether an operator is not where most should be: a fallback, a slow kernel."""
        return node.unit == "cpu" and node.reason != self.usual_reason

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """What is on the CPU, in groups, in the order of the graph."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for node in self.nodes:
            if node.unit == "cpu":
                groups.setdefault((node.op, node.reason, node.fix), []).append(node.node)
        return tuple(Leftover(*key, tuple(names)) for key, names in groups.items())


@dataclass(frozen=True)
class Fit:
    """Whether something fits the device, and why, in a sentence."""

    what: str
    fits: Fits
    reason: str


def placements_of(
    artifacts: Sequence[Artifact], placed: Sequence[Mapping[str, Any]]
) -> tuple[Placement, ...]:
    """Returns the node reports of an export, and those that places gave; equal ones are one."""
    named = [(one.runtime, one) for one in artifacts]
    named += [
        (f"{run['artifact']['runtime']} on {run['place']}", Artifact.from_dict(run["artifact"]))
        for run in placed
    ]
    found: dict[tuple[NodeReport, ...], Placement] = {}
    for name, artifact in named:
        if artifact.nodes:
            units = _units(artifact)
            known = found.get(artifact.nodes, Placement((), units, artifact.nodes))
            if name not in known.runtimes:
                found[artifact.nodes] = replace(known, runtimes=(*known.runtimes, name))
    return tuple(found.values())


def refused_placement(directory: Path, manifest: Mapping[str, Any]) -> Placement | None:
    """Returns the placement that a failed export leaves where the NPU did not take every operator.

    Each of the CPU's operators gets the fix that `edgeport doctor` gives. None without the file.
    """
    file = directory / _REFUSED
    if not file.is_file():
        return None
    nodes = tuple(NodeReport(**node) for node in json.loads(file.read_text(encoding="utf-8")))
    lowered = {one["runtime"] for one in manifest["artifacts"]}
    asked = [one for one in manifest["options"]["target_runtimes"] if one not in lowered]
    fixed = tuple(
        replace(node, fix=node.fix or find_fix("refused", node.op, node.reason))
        if node.unit == "cpu"
        else node
        for node in nodes
    )
    return Placement(tuple(asked[:1]), ("npu", "cpu"), fixed) if asked else None


def _units(artifact: Artifact) -> tuple[Unit, ...]:
    possible = RUNTIMES[artifact.runtime].units if artifact.runtime in RUNTIMES else ()
    used = {node.unit for node in artifact.nodes}
    return tuple(unit for unit in UNITS if unit in possible or unit in used)


def fit_of(placement: Placement) -> Fit:
    """Returns whether a graph runs on the accelerator alone."""
    what, total = " and ".join(placement.runtimes), len(placement.nodes)
    unit = placement.accelerator
    if unit is None:
        return Fit(what, "CPU only", f"all {total} ops run on the CPU{_by_reason(placement)}")
    left = placement.counts.get("cpu", 0)
    if left == 0:
        there = [f"{n} on the {u.upper()}" for u, n in placement.counts.items() if n]
        return Fit(what, "fits", f"{total} ops, {', '.join(there)} and none on the CPU")
    ops = Counter(node.op for node in placement.nodes if node.unit == "cpu").most_common()
    listed = ", ".join(f"{count} {op}" for op, count in ops[:_LISTED_OPS])
    more = ", and others" if len(ops) > _LISTED_OPS else ""
    return Fit(what, "does not fit", f"{left} of {total} ops fall to the CPU: {listed}{more}")


def _by_reason(placement: Placement) -> str:
    """Returns how many operators say what of themselves; "" where all say the same."""
    reasons = Counter(node.reason for node in placement.nodes)
    if len(reasons) < 2:
        return ""
    said = (f"{count} {reason or 'without a reason'}" for reason, count in reasons.most_common())
    return f": {'; '.join(said)}"


def overall(reasons: Sequence[Fit]) -> Fits:
    """Returns what the reasons come to: memory alone can refuse a model, but not vouch for it."""
    found = {one.fits for one in reasons if one.what != MEMORY}
    if "failed" in found and "does not fit" not in found:
        return "failed"
    if any(one.fits == "does not fit" for one in reasons if one.what == MEMORY):
        return "does not fit"
    judged = found & {"fits", "does not fit"}
    if not judged:
        return "CPU only" if "CPU only" in found else "not known"
    return "fits in part" if len(judged) > 1 else "fits" if "fits" in judged else "does not fit"
