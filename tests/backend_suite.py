"""ONNX's own backend test cases, one operator each, as models to rewrite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.passes.fold import fold_constants
from edgeport.passes.inline import inline_functions
from edgeport.runtimes.onnx import Session

Values = dict[str, Any]
PREPARING = (inline_functions, fold_constants)
RANDOM = ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike")
NOT_RUNNABLE = "runs nowhere"


@dataclass(frozen=True)
class Case:
    """A model of one operator, and the inputs that the suite states, by name."""

    name: str
    model: onnx.ModelProto
    feed: Values


@cache
def cases() -> tuple[tuple[Case, ...], Counter[str]]:
    """Returns the cases that a graph pass can be run on, and why others are left out.

    A case of several inputs comes twice: as it is, and with all but the first input constant, as
    weights are.
    """
    kept: list[Case] = []
    skipped: Counter[str] = Counter()
    for one in collect_testcases(None):
        if one.model is None or not one.data_sets:
            skipped["has no model or no data"] += 1
            continue
        if any(node.op_type in RANDOM for node in one.model.graph.node):
            skipped["draws random numbers"] += 1
            continue
        names = [value.name for value in one.model.graph.input]
        feed = dict(zip(names, one.data_sets[0][0]))
        kept.append(Case(one.name, one.model, feed))
        if len(names) > 1 and all(isinstance(value, np.ndarray) for value in feed.values()):
            kept.append(_frozen(kept[-1]))
    return tuple(kept), skipped


def _frozen(case: Case) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(4, model.ir_version)  # before, initializers had to be inputs
    first, *others = [value.name for value in case.model.graph.input]
    del model.graph.input[1:]
    model.graph.initializer.extend(
        numpy_helper.from_array(case.feed[name], name) for name in others
    )
    return Case(f"{case.name}, constants", model, {first: case.feed[first]})


def load(model: onnx.ModelProto) -> ir.Model:
    """Returns the model in onnx-ir, which keeps parts of what it is made from: a copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return ir.from_proto(copy)


def run(model: onnx.ModelProto, feed: Values) -> list[Any] | None:
    """Returns the outputs, by onnxruntime or onnx's reference; None where neither runs it."""
    try:
        return list(Session(model.SerializeToString(), 1).run(feed))
    except (StageFailed, TypeError):
        pass
    try:
        return list(ReferenceEvaluator(model).run(None, dict(feed)))
    except Exception:  # whatever an operator of the reference raises
        return None


def same(reference: Sequence[Any], actual: Sequence[Any], least_db: float) -> bool:
    """Returns whether all outputs are equal, as far as `least_db` allows."""
    return len(reference) == len(actual) and all(
        _same_value(one, other, least_db) for one, other in zip(reference, actual, strict=True)
    )


def _same_value(reference: Any, actual: Any, least_db: float) -> bool:
    if isinstance(reference, list):  # a sequence
        return isinstance(actual, list) and same(reference, actual, least_db)
    return _same(np.asarray(reference), np.asarray(actual), least_db)


def _same(reference: np.ndarray, actual: np.ndarray, least_db: float) -> bool:
    if reference.shape != actual.shape or reference.dtype != actual.dtype:
        return False
    if reference.dtype.kind != "f":
        return bool(np.array_equal(reference, actual))
    wide = reference.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], actual.astype(np.float64)[~finite], equal_nan=True):
        return False
    least = min(least_db, 55.0) if reference.dtype == np.float16 else least_db
    return not finite.any() or sqnr_db(wide[finite], actual.astype(np.float64)[finite]) >= least


def rewritten(
    passes: Sequence[Any], picked: Sequence[Case], least_db: Sequence[float]
) -> Iterator[tuple[Any, Case, str]]:
    """Yields each pass with a case that it rewrote and what is wrong with the result, or "".

    Every pass starts from what the preparing ones left, as in the flow. The model is copied again
    only after a pass rewrote it: where the count is 0, it is as it was.
    """
    for case in picked:
        prepared = load(case.model)
        model = prepared.clone()
        for one, least in zip(passes, least_db, strict=True):
            if (result := one(model)).count:
                why = _verdict(case, ir.to_proto(result.model), least)
                yield one, case, why
                prepared = result.model if one in PREPARING and not why else prepared
                model = prepared.clone()


def _verdict(case: Case, after: onnx.ModelProto, least_db: float) -> str:
    try:
        onnx.checker.check_model(after)
    except Exception as error:  # the checker's own classes
        return f"invalid: {str(error).splitlines()[0]}"
    reference, actual = run(case.model, case.feed), run(after, case.feed)
    if reference is None:
        return NOT_RUNNABLE
    if actual is None:
        return "no longer runs"
    return "" if same(reference, actual, least_db) else "another answer"
