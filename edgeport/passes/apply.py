"""Runs passes one after another, each proven on real inputs before the next one starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.capture import save_model
from edgeport.compare import sqnr_db
from edgeport.passes import Pass, module_of, tolerance_db
from edgeport.private import scratch_directory
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult

Feeds = Sequence[Mapping[str, NDArray[Any]]]
Answers = list[tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class Step:
    """One pass's proof: how often it applied, its dB against the graph before it.

    `rolled_back` says why its graph was dropped, and `count` is then 0; "" where it was kept.
    """

    name: str
    count: int
    sqnr_db: float
    tolerance_db: float
    rolled_back: str = ""


@dataclass(frozen=True)
class Applied:
    """The model after all passes, a step per pass, and the refusals and roll-backs in sentences."""

    model: ir.Model
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    def least_db(self, exact_db: float) -> float:
        """Returns the dB that the steps allow together, in the worst case of errors that add up."""
        kept = [step.tolerance_db for step in self.steps if step.count]
        return min([exact_db, *kept]) - 20 * math.log10(max(1, len(kept)))


def apply_passes(
    model: ir.Model, passes: Sequence[Pass], feeds: Feeds, *, minimum_db: float
) -> Applied:
    """Returns the model after `passes`; the model given stays as it is.

    A pass that raises, whose graph onnx's checker or onnxruntime refuses, or whose answer differs
    by more than its TOLERANCE_DB (`minimum_db` where it states none) is rolled back: the
    model before it goes on, and a note says why. Raises StageFailed where the model itself does
    not run.
    """
    steps: list[Step] = []
    notes: list[str] = []
    answers = _run(model, feeds)
    for one in passes:
        result, step, after = _try(one, model, answers, feeds, tolerance_db(one, minimum_db))
        notes.extend(f"{step.name}: {sentence}" for sentence in result.refused)
        steps.append(step)
        if step.rolled_back:
            notes.append(f"{step.name}: rolled back, {step.rolled_back}")
        elif step.count:
            model, answers = result.model, after
    return Applied(model, tuple(steps), tuple(notes))


def _try(
    one: Pass, model: ir.Model, before: Answers, feeds: Feeds, tolerance: float
) -> tuple[PassResult, Step, Answers]:
    """Returns the result of the pass on a copy, its proof, and the answers of its graph."""
    name = getattr(module_of(one), "NAME", one.__name__)
    result = PassResult(name, model, 0)
    try:
        result = one(model.clone())
        name = result.name
        if not result.count:
            return result, Step(name, 0, math.inf, tolerance), before
        after = _run(result.model, feeds)
        difference_db = _worst_db(before, after)
    except Exception as error:  # a pass's own, the checker's, onnxruntime's, the comparison's
        line = next(iter(str(error).splitlines()), type(error).__name__)
        why = f"its graph fails: {line}" if result.count else f"{type(error).__name__}: {line}"
        return result, Step(name, 0, -math.inf, tolerance, why), before
    if difference_db < tolerance:
        why = (
            f"it changed the answer: {difference_db:.1f} dB against the graph before it,"
            f" {tolerance:.0f} dB are needed"
        )
        return result, Step(name, 0, difference_db, tolerance, why), before
    return result, Step(name, result.count, difference_db, tolerance), after


def _worst_db(before: Answers, after: Answers) -> float:
    pairs = [
        pair
        for one, other in zip(before, after, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    return min(sqnr_db(reference, actual) for reference, actual in pairs)


def _run(model: ir.Model, feeds: Feeds) -> Answers:
    with scratch_directory() as folder:
        path = folder / "model.onnx"  # a file: a model over 2 GiB fits in no message
        save_model(model, path)
        onnx.checker.check_model(path)
        session = Session(path)
        return [session.run(feed) for feed in feeds]
