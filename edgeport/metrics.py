"""Metrics of a model's outputs against targets: the built-in ones, and the user's own function.

A metric is `metric(outputs, targets)`, both dicts of arrays whose first axis is the sample. It
gives a number, one score per sample as an array (their mean is the value, and its interval is
known), or a dict of such by name.
"""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport import importing
from edgeport.compare import in_top
from edgeport.errors import InputError, UnknownName
from edgeport.importing import importable, load_file, user_code

Arrays = Mapping[str, NDArray[Any]]
Scores = NDArray[np.float64]

RESAMPLES, CONFIDENCE = 2000, 0.95
_BLOCK_ELEMENTS = 4_000_000  # of the resampled scores held at once
FEW = 30  # samples; below, the ends of a bootstrap interval are too near


@dataclass(frozen=True)
class Score:
    """A metric's value, and the scores of single samples where the metric gives them."""

    value: float
    per_sample: Scores | None = None


@dataclass(frozen=True)
class Metric:
    """A metric that was found: how it was named, what it is called, and where its code lies."""

    text: str
    name: str
    unit: str
    function: Callable[[dict[str, Any], dict[str, Any]], Any]
    folder: Path | None = field(default=None)

    def scores(self, outputs: Arrays, targets: Arrays) -> dict[str, Score]:
        """Returns the scores by name; raises InputError with file and line where it cannot."""
        given = dict(outputs), dict(targets)  # its own: the next stage is judged by the same
        try:
            with user_code(self.text), importable(self.folder):
                result = self.function(*given)
        except InputError as error:
            place = _raised_at(error.__cause__)
            raise InputError(f"{error}{place}") from error.__cause__
        count = len(next(iter(outputs.values())))
        table = result if isinstance(result, Mapping) else {self.name: result}
        if not table:
            raise self._refused("an empty dict")
        return {self._name(key): self._score(key, one, count) for key, one in table.items()}

    def _name(self, key: Any) -> str:
        if not isinstance(key, str) or not key:
            raise self._refused(f"a dict with the key {key!r}")
        return key

    def _score(self, key: Any, result: Any, count: int) -> Score:
        array = np.asarray(result) if isinstance(result, (Real, np.ndarray, np.generic)) else None
        if array is None or array.dtype.kind not in "biuf":
            raise self._refused(f"{_kind(result)} for {key}")
        scores = array.astype(np.float64)
        if scores.ndim and scores.shape != (count,):
            shape = list(scores.shape)
            raise self._refused(f"an array of shape {shape} for {key}, with {count} samples")
        if not np.isfinite(scores).all():
            raise self._refused(f"NaN or infinity for {key}")
        return Score(float(scores.mean()), scores if scores.ndim else None)

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"metric {self.text} gave {what}{_defined_at(self.function)}; it gives a number, an"
            " array of one score per sample, or a dict of such"
        )


def find_metric(text: str) -> Metric:
    """Returns the metric of this name, file.py:function or package.module:function.

    The user's code is run to find it. Raises InputError where it cannot be found or imported.
    """
    if text in BUILT_IN:
        return Metric(text, text, "fraction", BUILT_IN[text])
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        if ":" not in text and not text.endswith(".py"):
            raise UnknownName("metric", text, [*BUILT_IN, "file.py:function"])
        raise InputError(f"metric {text}: name the function after the colon, as file.py:accuracy")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise InputError(f"metric {text}: {source}: no such file")
    folder = Path(source).resolve().parent if is_file else Path.cwd()
    with user_code(f"metric {text}"), importable(folder):
        module = load_file(Path(source).resolve()) if is_file else importlib.import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        known = [one for one, value in vars(module).items() if callable(value)]
        raise UnknownName(f"metric in {source}", name, known)
    return Metric(text, name, "1", function, folder)


def bootstrap_interval(scores: Scores, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of [N] scores, at 95 %.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // scores.size)
    means = [
        scores[rng.integers(0, scores.size, (min(block, RESAMPLES - at), scores.size))].mean(axis=1)
        for at in range(0, RESAMPLES, block)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def doubts_of(scores: Scores, of: str = "score the same") -> tuple[str, ...]:
    """Returns sentences on an interval that says less than it seems to."""
    said = []
    if scores.size < FEW:
        said.append(f"few samples: {scores.size}, where {FEW} or more are wanted for an interval")
    if scores.min() == scores.max():
        most = -math.log(1 - CONFIDENCE) / scores.size  # none of N seen: the "rule of three"
        said.append(
            f"all {scores.size} samples {of}: the interval has no width, and up to {most:.1%} of"
            " samples may be others"
        )
    return tuple(said)


def _top(count: int, outputs: Arrays, targets: Arrays) -> NDArray[np.bool_]:
    """Returns, per sample, whether its label is among the `count` largest of the first output."""
    name, logits = next(iter(outputs.items()))
    integers = [key for key, array in targets.items() if array.dtype.kind in "iu"]
    labels = "label" if "label" in targets else integers[0] if len(integers) == 1 else ""
    if not labels:
        raise InputError(
            f"top{count} needs the target 'label', or one array of integers; the data has"
            f" {', '.join(targets) or 'no targets'}"
        )
    try:
        return in_top(count, logits.reshape(len(logits), -1), targets[labels])
    except ValueError as error:
        raise InputError(f"top{count} of output {name} and target {labels}: {error}") from None


BUILT_IN: dict[str, Callable[..., Any]] = {"top1": partial(_top, 1), "top5": partial(_top, 5)}


def _kind(result: Any) -> str:
    if isinstance(result, np.ndarray):
        return f"an array of {result.dtype}"
    return "None" if result is None else f"a {type(result).__name__}"


def _raised_at(error: BaseException | None) -> str:
    """Returns where the user's code was when it raised, "" where nothing is known."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    ours = (__file__, importing.__file__)
    own = [f for f in frames if f.filename not in ours and "site-packages" not in f.filename]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _defined_at(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
