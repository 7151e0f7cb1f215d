"""The accuracy of a user's model at every stage of an export, on the user's data and metric.

Each stage's file runs on all samples: ONNX files with onnxruntime in this process, a runtime's
files in its child process, an NPU's in the vendor's emulator (its numbers are the NPU's, and it is
slow). Feeds are what the app gives, outputs are real numbers under the graph's own names, also
where the export has integer inputs and outputs. A metric whose result is one score per sample has
an interval, and its drop against the reference one of the paired differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.boundary import Boundary
from edgeport.errors import EdgeportError, InputError, StageFailed
from edgeport.feeds import Feed
from edgeport.fingerprint import file_sha256
from edgeport.labelled import Labelled, open_labelled
from edgeport.measure import elapsed_ms
from edgeport.metrics import Metric, Score, bootstrap_interval, doubts_of, find_metric
from edgeport.parities import Exported, Stage
from edgeport.private import scratch_directory
from edgeport.quantize.integer_io import encode_feed
from edgeport.runtimes import RUNTIMES, find_runtime
from edgeport.runtimes.lowering import run_compiled
from edgeport.runtimes.onnx import NAME as ONNX
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits
from edgeport.types import Measurement, Provenance, Serialisable, TensorSpec

CHUNK_MS = 10_000.0  # a child process gets more feeds at a time until it takes this long
CHUNK_BYTES = 64 << 20  # of feeds, which cross the process line in a file
_FIRST_CHUNK = 4

Interval = tuple[float, float]


@dataclass(frozen=True)
class StageScore(Serialisable):
    """One metric of one stage; its measurement is named `metric:stage`.

    `drop` is the reference's value less this one's, with its interval where single samples have
    scores. `problem` says why there is no measurement.
    """

    stage: str
    runtime: str
    file: str
    metric: str = ""
    measurement: Measurement | None = None
    drop: float | None = None
    drop_interval: Interval | None = None
    problem: str = ""


@dataclass(frozen=True)
class Evaluation(Serialisable):
    """The scores of every stage, on how many samples, and against which stage a drop is.

    `complete` is False where something should have run here, and could not.
    """

    data: str
    samples: int
    batch: int
    metric: str
    reference: str
    rows: tuple[StageScore, ...]
    notes: tuple[str, ...]
    complete: bool

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The numbers of all rows that have one."""
        return tuple(row.measurement for row in self.rows if row.measurement is not None)


def evaluate(
    directory: Path,
    *,
    data: Path,
    metric: str,
    stages: Sequence[str] = (),
    limit: int | None = None,
    limits: Limits,
    progress: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Returns the metric of every stage of an export; without names, of all that run here.

    `data` is what `edgeport.labelled` reads, at most `limit` samples of it spread evenly; `metric`
    what `edgeport.metrics` finds. The runtime onnx is left out unless it is named: it runs the same
    file as the last ONNX stage. Raises InputError for what cannot be used, the metric included.
    """
    found = find_metric(metric)
    export = Exported(directory, limits)
    samples = open_labelled(data, _specs(export), _boundary(export), limit)
    run = _Run(export, samples, found, progress)
    for stage in _chosen(export, stages):
        run.add(stage)
    return Evaluation(
        samples.name,
        samples.count,
        samples.batch,
        metric,
        run.reference,
        tuple(run.rows),
        tuple(_notes(export, samples)),
        run.complete,
    )


def _notes(export: Exported, samples: Labelled) -> Iterator[str]:
    if samples.classes:
        listed = ", ".join(f"{index} = {name}" for index, name in enumerate(samples.classes[:20]))
        more = ", ..." if len(samples.classes) > 20 else ""
        yield f"labels are the sub-folders in sorted order: {listed}{more}"
    read = set(export.manifest.get("read", {}).values())
    if seen := sum(file_sha256(file) in read for file in samples.files):
        yield (
            f"{seen} of {len(samples.files)} files are of the data that the export was calibrated"
            " on: on others the loss of quantization may be larger"
        )
    for name in export.changed:
        yield f"{name} was changed since it was exported"


def _chosen(export: Exported, names: Sequence[str]) -> list[Stage]:
    """Returns the stages of these names in the export's order, each once."""
    wanted = [export.stage(name) for name in names]
    return [one for one in export.stages if (one in wanted if names else one.runtime != ONNX)]


def _specs(export: Exported) -> tuple[TensorSpec, ...]:
    """Returns what the app gives; the graph of integers takes the same as real numbers."""
    tables = export.manifest["inputs"]
    return tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in tables)


def _boundary(export: Exported) -> Boundary:
    table = export.manifest["options"]["boundary"]
    return Boundary(**{name: tuple(values) for name, values in table.items()})


@dataclass
class _Run:
    """The stages evaluated so far; `first` are the reference's scores by the metric's names."""

    export: Exported
    data: Labelled
    metric: Metric
    progress: Callable[[str], None]
    rows: list[StageScore] = field(default_factory=list)
    first: Mapping[str, Score] = field(default_factory=dict)
    reference: str = ""
    complete: bool = True

    def add(self, stage: Stage) -> None:
        """Adds the rows of one stage; one that cannot run gets a row that says why."""
        runs_as = RUNTIMES[stage.runtime].runs_as if stage.runtime else "host"
        try:
            if runs_as is None:
                raise InputError("nothing here runs it")
            if stage.runtime:
                find_runtime(stage.runtime)
        except EdgeportError as error:
            self._skip(stage, error, runs_as is not None)
            return
        try:
            outputs = self._outputs(stage)
        except StageFailed as error:
            self._skip(stage, error, True)
            return
        scores = self.metric.scores(outputs, self.data.targets)
        if not self.reference:
            self.reference, self.first = stage.name, scores
        sha = file_sha256(self.export.directory / stage.file)
        for name, score in scores.items():
            self.rows.append(self._row(stage, name, score, runs_as, sha))

    def _skip(self, stage: Stage, error: EdgeportError, expected: bool) -> None:
        self.rows.append(StageScore(stage.name, stage.runtime, stage.file, problem=str(error)))
        self.complete = self.complete and not expected

    def _row(
        self, stage: Stage, name: str, score: Score, runs_as: Provenance | None, sha: str
    ) -> StageScore:
        assert runs_as is not None, "it was run"
        each, first = score.per_sample, self.first.get(name)
        drop, between = None, None
        warnings = () if each is None else doubts_of(each)
        if first is not None and stage.name != self.reference:
            drop = first.value - score.value
            if each is not None and first.per_sample is not None:
                between = bootstrap_interval(first.per_sample - each)
                same = f"score as in {self.reference}" if drop == 0 else "drop the same"
                warnings += doubts_of(first.per_sample - each, same)
        measurement = Measurement(
            metric=f"{name}:{stage.name}",
            value=score.value,
            unit=self.metric.unit,
            provenance=runs_as,
            interval=None if each is None else bootstrap_interval(each),
            artifact_sha256=sha,
            environment=self._environment(),
            warnings=tuple(dict.fromkeys(warnings)),
        )
        return StageScore(stage.name, stage.runtime, stage.file, name, measurement, drop, between)

    def _environment(self) -> dict[str, str]:
        return {
            "samples": str(self.data.count),
            "batch": str(self.data.batch),
            "data": self.data.name,
            "metric": Path(self.metric.text).name,  # no folder of this machine
        }

    def _outputs(self, stage: Stage) -> dict[str, NDArray[Any]]:
        """Returns the outputs of all samples stacked, under the graph's names."""
        runner = _in_this_process if stage.runtime in ("", ONNX) else _in_children
        rows: list[list[NDArray[Any]]] = []
        for outputs in runner(self.export, stage, self._encoded(stage)):
            rows.append(list(self.export.decoded(stage.model, outputs).values()))
            done = len(rows) * self.data.batch
            self.progress(f"{stage.name}: {done} of {self.data.count} samples")
        columns = zip(*rows, strict=True)
        return {
            name: _stacked(column, self.data.batch)
            for name, column in zip(self.export.outputs, columns, strict=True)
        }

    def _encoded(self, stage: Stage) -> Iterator[Feed]:
        edges = self.export.edges(stage.model)
        return (encode_feed(feed, edges) for feed in self.data.feeds())


def _stacked(arrays: Sequence[NDArray[Any]], batch: int) -> NDArray[Any]:
    """Returns the arrays along their batch axis; along a new one where they have none."""
    if all(array.shape[:1] == (batch,) for array in arrays):
        return np.concatenate(arrays)
    if batch == 1:
        return np.stack(arrays)
    raise InputError(
        f"an output of shape {list(arrays[0].shape)} has no batch of {batch} on its first axis:"
        " export the model with a batch of 1"
    )


def _in_this_process(
    export: Exported, stage: Stage, feeds: Iterator[Feed]
) -> Iterator[Sequence[NDArray[Any]]]:
    session = Session(export.directory / stage.model)
    for feed in feeds:
        yield session.run(feed)


def _in_children(
    export: Exported, stage: Stage, feeds: Iterator[Feed]
) -> Iterator[Sequence[NDArray[Any]]]:
    """Yields the outputs that a runtime's files give, a chunk of feeds per child process.

    A chunk grows while it is quick: loading is paid once per child, and its time is limited.
    """
    size = _FIRST_CHUNK
    while chunk := list(islice(feeds, size)):
        answers, spent_ms = elapsed_ms(lambda: _run_chunk(export, stage, chunk))
        yield from answers
        bytes_each = sum(array.nbytes for array in chunk[0].values())
        if spent_ms < CHUNK_MS and 2 * size * bytes_each <= CHUNK_BYTES:
            size *= 2
        elif spent_ms > 4 * CHUNK_MS:
            size = max(1, size // 2)


def _run_chunk(
    export: Exported, stage: Stage, chunk: Sequence[Feed]
) -> list[Sequence[NDArray[Any]]]:
    with scratch_directory() as folder:
        inputs = folder / "inputs.npz"
        save_samples(inputs, chunk)
        try:
            answers = run_compiled(
                stage.runtime, export.directory, folder, inputs, export.device, export.limits
            )
        except InputError as error:  # the file's, not the data's, which was checked
            raise StageFailed("run", str(error)) from error
    return [list(answer.values()) for answer in answers]
