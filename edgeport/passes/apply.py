"""Runs passes one after another, each proven on real inputs before the next one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.passes import Pass
from edgeport.runtimes.onnx import Session


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
        result = one(model)
        model, difference_db = result.model, float("inf")
        notes.extend(f"{result.name}: {sentence}" for sentence in result.refused)
        if result.count:
            after = _run(model, feeds)
            difference_db = _worst_db(before, after)
            if difference_db < minimum_db:
                raise StageFailed(
                    "passes",
                    f"{result.name} changed the answer: {difference_db:.1f} dB against the graph"
                    f" before it, {minimum_db:.0f} dB are needed",
                )
            before = after
        steps.append((result.name, result.count, difference_db))
    return Applied(model, tuple(steps), tuple(notes))


def _worst_db(
    before: Sequence[tuple[NDArray[Any], ...]], after: Sequence[tuple[NDArray[Any], ...]]
) -> float:
    pairs = [pair for one, other in zip(before, after, strict=True) for pair in zip(one, other)]
    return min(sqnr_db(reference, actual) for reference, actual in pairs)


def _run(
    model: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[tuple[NDArray[Any], ...]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = Session(proto.SerializeToString())
    return [session.run(feed) for feed in feeds]
