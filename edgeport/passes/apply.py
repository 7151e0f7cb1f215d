"""Runs passes one after another, each proven on real inputs before the next one starts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.capture import save_model
from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.passes import Pass
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult

Answers = list[tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class Applied:
    """The model after all passes, (pass, count, dB against the model before), and refusals."""

    model: ir.Model
    steps: tuple[tuple[str, int, float], ...]
    notes: tuple[str, ...]


def apply_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    minimum_db: float,
) -> Applied:
    """Returns the model after `passes`; each result is checked and compared with its input.

    Raises StageFailed naming the pass whose graph is invalid or whose answer differs by more
    than `minimum_db` of SQNR allows.
    """
    steps: list[tuple[str, int, float]] = []
    notes: list[str] = []
    before = _run(model, feeds)
    for one in passes:
        result, before, difference_db = _apply(one, model, before, feeds)
        if difference_db < minimum_db:
            raise StageFailed(
                "passes",
                f"{result.name} changed the answer: {difference_db:.1f} dB against the graph"
                f" before it, {minimum_db:.0f} dB are needed",
            )
        model = result.model
        notes.extend(f"{result.name}: {sentence}" for sentence in result.refused)
        steps.append((result.name, result.count, difference_db))
    return Applied(model, tuple(steps), tuple(notes))


def _apply(
    one: Pass,
    model: ir.Model,
    before: Answers,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
) -> tuple[PassResult, Answers, float]:
    """Returns the pass's result, the answers of its graph, and their dB against `before`."""
    name = getattr(one, "__name__", repr(one))
    try:
        result = one(model)
        name = result.name
        if not result.count:
            return result, before, float("inf")
        after = _run(result.model, feeds)
        return result, after, _worst_db(before, after)
    except Exception as error:  # the checker's, onnxruntime's and the comparison's own classes
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise StageFailed("passes", f"{name} gives a graph that fails: {line}") from error


def _worst_db(before: Answers, after: Answers) -> float:
    pairs = [
        pair
        for one, other in zip(before, after, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    return min(sqnr_db(reference, actual) for reference, actual in pairs)


def _run(model: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Answers:
    with tempfile.TemporaryDirectory(prefix="edgeport-passes-") as folder:
        path = Path(folder, "model.onnx")  # a file: a model over 2 GiB fits in no message
        save_model(model, path)
        onnx.checker.check_model(path)
        session = Session(path)
        return [session.run(feed) for feed in feeds]
