"""Holds claims on a user's own model in their own test-suite, through pytest.

    def test_my_model_stays_right(edgeport_gate):
        gate = edgeport_gate("models/net.onnx", device="s24", precision="w8a8")
        gate.hold("sqnr_db:qnn_context_binary", ">=", 25, provenance=("emulated",))

pytest loads this file in every session where edgeport is installed: nothing else of edgeport is
imported before a test uses the fixture.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pytest

if TYPE_CHECKING:
    from edgeport.plan import Options
    from edgeport.types import Claim, Measurement, Outcome, Provenance, Verdict

Op = Literal["<=", ">="]
_ALLOWED = ("missing", "inconclusive")


@pytest.fixture(scope="session")
def edgeport_gate(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    """Exports a model, and holds claims on what was measured: `edgeport_gate(SOURCE, ...)`.

    It takes what `edgeport.export` takes; one export per source and options serves the session.
    """
    return Gates(tmp_path_factory)


@dataclass(frozen=True)
class Gates:
    """Gives a gate for a source; keeps what was measured for the session."""

    folders: pytest.TempPathFactory = field(repr=False)
    measured: dict[str, tuple[Measurement, ...]] = field(default_factory=dict, repr=False)

    def __call__(
        self,
        source: str | Path,
        *,
        allow: Sequence[Literal["missing", "inconclusive"]] = (),
        **options: Unpack[Options],
    ) -> Gate:
        """Returns the gate of a source, exported with these options.

        `allow` names the outcomes besides "pass" that do not fail a test; they are warnings then.
        Raises InputError for what cannot be exported, and StageFailed.
        """
        __tracebackhide__ = True
        from edgeport.errors import EdgeportError

        _check(allow, _ALLOWED, "outcome to allow")
        try:
            return Gate(str(source), self._measured(str(source), options), tuple(allow))
        except EdgeportError as error:  # it says everything in one line; ours would only hide it
            raise error.with_traceback(None) from None

    def _measured(self, source: str, options: Mapping[str, Any]) -> tuple[Measurement, ...]:
        key = _key(source, options)
        if key not in self.measured:
            directory = self.folders.mktemp("edgeport") / "export"
            self.measured[key] = _measure(source, {**options, "output_dir": directory})
        return self.measured[key]


@dataclass(frozen=True)
class Gate:
    """What was measured of one source, and what is held against it."""

    source: str
    measurements: tuple[Measurement, ...] = field(repr=False)
    allow: tuple[str, ...] = ()

    def hold(
        self,
        metric: str,
        op: Op,
        limit: float,
        *,
        provenance: Provenance | Sequence[Provenance],
        why: str = "",
    ) -> Verdict:
        """Returns the verdict on a claim; raises AssertionError where it did not hold.

        `metric` is one of "sqnr_db", "max_abs", "cpu_ops" and "size_bytes": of one runtime, as in
        "sqnr_db:onnx", or of any, where the worst decides. `provenance` are those accepted.
        A missing or inconclusive verdict fails too, unless `allow` has it.
        """
        __tracebackhide__ = True
        from edgeport.types import Claim

        accepted: tuple[Provenance, ...]
        accepted = (provenance,) if isinstance(provenance, str) else tuple(provenance)
        _check(accepted, ("device", "emulated", "host", "modelled"), "provenance")
        _check((op,), ("<=", ">="), "op")
        verdict = _judge(self.source, Claim(metric, op, limit, accepted, why), self.measurements)
        self._tell(verdict)
        return verdict

    def _tell(self, verdict: Verdict) -> None:
        __tracebackhide__ = True
        from edgeport.verdicts.words import claim_text

        if verdict.outcome == "pass":
            return
        text = f"{verdict.subject}: {claim_text(verdict)}: {verdict.outcome}: {verdict.reason}"
        if verdict.outcome not in self.allow:
            raise AssertionError(f"{text} ({verdict.why})" if verdict.why else text)
        warnings.warn(pytest.PytestWarning(text), stacklevel=3)


def _check(given: Sequence[str], known: Sequence[str], name: str) -> None:
    __tracebackhide__ = True
    from edgeport.errors import UnknownName

    for one in given:
        if one not in known:
            raise UnknownName(name, str(one), known)


def _key(source: str, options: Mapping[str, Any]) -> str:
    """Returns what stands for a request in this session; a file that was changed is another."""
    import inspect
    import json

    from edgeport.catalog import find_source
    from edgeport.types import plain

    names = set(inspect.signature(find_source).parameters)
    naming = {name: value for name, value in options.items() if name in names}
    if naming.get("weights") is not None:
        naming["weights"] = Path(naming["weights"])
    files = [
        (str(file), file.stat().st_mtime_ns, file.stat().st_size)
        for file in find_source(source, **naming).files()
    ]
    asked = [str(Path.cwd()), source, plain(options), files]
    return json.dumps(asked, sort_keys=True, default=str)


def _measure(source: str, options: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """Exports into options["output_dir"]; returns each runtime's parity, CPU operators and size."""
    from dataclasses import replace

    import edgeport
    from edgeport.types import Measurement

    made = edgeport.export(source, **options)
    found = []
    for artifact in made.artifacts:
        found += [
            replace(one, metric=f"{one.metric}:{artifact.runtime}")
            for one in artifact.parity
            if artifact.runtime
        ]
    sizes = {one.runtime: float(one.bytes) for one in made.artifacts if one.runtime}
    placed = made.manifest["placement"]
    on_cpu = {runtime: float(units.get("cpu", 0)) for runtime, units in placed.items()}
    for metric, values, unit in (("size_bytes", sizes, "B"), ("cpu_ops", on_cpu, "ops")):
        found += [
            Measurement(f"{metric}:{runtime}", value, unit, "host")
            for runtime, value in values.items()
        ]
    return tuple(found)


def _judge(subject: str, claim: Claim, measured: Sequence[Measurement]) -> Verdict:
    """Returns the verdict on a claim; the worst of the measurements that it is about decides."""
    from edgeport.types import Verdict
    from edgeport.verdicts.words import number_text

    limit = f"{claim.op} {claim.limit:g} ({' or '.join(claim.provenance)})"

    def verdict(outcome: Outcome, reason: str, one: Measurement | None = None) -> Verdict:
        return Verdict(subject, "claim", claim.metric, outcome, limit, reason, claim.why, one)

    about = [one for one in measured if _is_about(claim.metric, one.metric)]
    accepted = [one for one in about if one.provenance in claim.provenance]
    if not about:
        there = ", ".join(sorted({one.metric for one in measured}))
        return verdict("missing", f"nothing measured it here; there are {there}")
    if not accepted:
        where = ", ".join(sorted({one.provenance for one in about}))
        return verdict("missing", f"measured as {where} only")
    sign = 1.0 if claim.op == ">=" else -1.0
    # What is not a number holds nothing, and must not hide behind one that does.
    worst = min(accepted, key=lambda one: (not math.isnan(one.value), sign * one.value))
    held = sign * worst.value >= sign * claim.limit
    text = f"{worst.metric} {number_text(worst.value, worst.unit, limit)} ({worst.provenance})"
    return verdict("pass" if held else "fail", text, worst)


def _is_about(claimed: str, measured: str) -> bool:
    return measured == claimed or measured.startswith(f"{claimed}:")
