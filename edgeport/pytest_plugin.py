"""Holds claims on a user's own model in their own test-suite, through pytest.

    def test_my_model_stays_right(edgeport_gate):
        gate = edgeport_gate("models/net.onnx", device="s24", precision="w8a8")
        gate.hold("sqnr_db:qnn_context_binary", ">=", 25, provenance=("emulated",))

    def test_my_model_stays_fast(edgeport_gate):
        gate = edgeport_gate("models/net.onnx", device="s24", baseline="models/before.onnx")
        gate.hold("speedup", ">=", 1.2, provenance=("host",))

pytest loads this file in every session where edgeport is installed: nothing else of edgeport is
imported before a test uses the fixture.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pytest

if TYPE_CHECKING:
    from edgeport.plan import Options
    from edgeport.types import Measurement, Provenance, Verdict

Op = Literal["<=", ">="]
_ALLOWED = ("missing", "inconclusive")


@pytest.fixture(scope="session")
def edgeport_gate() -> Gates:
    """Exports a model, and holds claims on what was measured: `edgeport_gate(SOURCE, ...)`.

    It takes what `edgeport.export` takes; one measurement per source and options serves the
    session. Speeds are for a session without `-n`: what runs beside them makes them inconclusive.
    """
    return Gates()


@dataclass(frozen=True)
class Gates:
    """Gives a gate for a source; keeps what was measured for the session."""

    _known: dict[str, tuple[Measurement, ...]] = field(default_factory=dict, repr=False)

    def __call__(
        self,
        source: str | Path,
        *,
        baseline: str | Path = "",
        seconds: float = 60.0,
        allow: Sequence[Literal["missing", "inconclusive"]] = (),
        **options: Unpack[Options],
    ) -> Gate:
        """Returns the gate of a source, exported with these options and measured here.

        `baseline` is another source: "speedup" is how many times faster this one is, both timed
        within at most `seconds`. `allow` names the outcomes besides "pass" that do not fail a test;
        they are warnings then. Raises InputError for what cannot be exported, and StageFailed.
        """
        __tracebackhide__ = True
        from edgeport.errors import EdgeportError

        _check(allow, _ALLOWED, "outcome to allow")
        try:
            found = self._measured(str(source), str(baseline), seconds, options)
        except EdgeportError as error:  # it says everything in one line; ours would only hide it
            raise error.with_traceback(None) from None
        return Gate(str(source), found, tuple(allow))

    def _measured(
        self, source: str, baseline: str, seconds: float, options: Mapping[str, Any]
    ) -> tuple[Measurement, ...]:
        key = _key([source, baseline, seconds], options)
        if key not in self._known:
            self._known[key] = _measure(source, baseline, seconds, options)
        return self._known[key]


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

        `metric` is what `edgeport check` measures ("sqnr_db", "cpu_ops", "size_bytes", "speedup"
        ...): of one runtime, as in "sqnr_db:onnx", or of any, where the worst decides. `provenance`
        are those accepted. A missing or inconclusive verdict fails too, unless `allow` has it.
        """
        __tracebackhide__ = True
        from edgeport.gate import judge_claims
        from edgeport.types import PROVENANCES, Claim

        accepted: tuple[Provenance, ...]
        accepted = (provenance,) if isinstance(provenance, str) else tuple(provenance)
        _check(accepted, PROVENANCES, "provenance")
        _check((op,), ("<=", ">="), "op")
        claim = Claim(metric, op, limit, accepted, why)
        (verdict,) = judge_claims(self.source, [claim], self.measurements)
        self._tell(verdict)
        return verdict

    def _tell(self, verdict: Verdict) -> None:
        __tracebackhide__ = True
        from edgeport.verdicts.words import claim_text

        if verdict.outcome == "pass":
            return
        text = f"{verdict.subject}: {claim_text(verdict)}: {verdict.outcome}: {verdict.reason}"
        if verdict.outcome == "missing":
            there = (f"{one.metric} ({one.provenance})" for one in self.measurements)
            text += f"; there are {', '.join(there)}"
        if verdict.outcome not in self.allow:
            raise AssertionError(f"{text} ({verdict.why})" if verdict.why else text)
        warnings.warn(pytest.PytestWarning(text), stacklevel=3)


def _check(given: Sequence[str], known: Sequence[str], name: str) -> None:
    __tracebackhide__ = True
    from edgeport.errors import UnknownName

    for one in given:
        if one not in known:
            raise UnknownName(name, str(one), known)


def _key(asked: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Returns what stands for a request in this session; a file that was changed is another."""
    import inspect
    import json

    from edgeport.catalog import find_source
    from edgeport.types import plain

    source, baseline = asked[:2]
    names = set(inspect.signature(find_source).parameters)
    naming = {name: value for name, value in options.items() if name in names}
    if naming.get("weights") is not None:
        naming["weights"] = Path(naming["weights"])
    files = [
        (str(file), file.stat().st_mtime_ns, file.stat().st_size)
        for text in (source, baseline)
        if text
        for file in find_source(text, **naming).files()
    ]
    return json.dumps([*asked, str(Path.cwd()), plain(options), files], sort_keys=True, default=str)


def _measure(
    source: str, baseline: str, seconds: float, options: Mapping[str, Any]
) -> tuple[Measurement, ...]:
    """Returns what `edgeport check` would measure of the source with these options."""
    from edgeport.check import Pair, Subject, measure_subject
    from edgeport.errors import StageFailed

    pairs: tuple[Pair, ...] = ()
    if baseline:  # timed as ONNX graphs, whatever else is exported
        timed = {name: value for name, value in options.items() if name != "target_runtimes"}
        pairs = (Pair(f"speedup:{baseline}", (source, timed), (baseline, timed)),)
    subject = Subject(source, source, options, (), pairs)
    found = measure_subject(subject, seconds=seconds)
    if found.problem:
        raise StageFailed("check", found.problem)
    return found.measured
