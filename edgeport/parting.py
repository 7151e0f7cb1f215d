"""Finds the point at which a graph parts from a reference: halving over prefixes, then a segment.

First the graph is cut at its articulations: a prefix is run from real inputs, and the tensor at its
end compared. Between the last one that holds and the first that does not, the segment alone is run
on the reference's values, again by halving, and in the end the operator alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from edgeport.articulations import SqnrAt, ancestors, first_below, halvings, noisiest
from edgeport.compare import max_abs, sqnr_db
from edgeport.errors import StageFailed
from edgeport.executors import Counted, Executor
from edgeport.numerics import INTEGER_DB, INTEGER_STEPS, output_step
from edgeport.points import (
    Array,
    Point,
    Reference,
    apart,
    at_articulations,
    find_points,
    is_comparable,
)
from edgeport.quantize.graph import in_groups
from edgeport.quantize.integer_io import Edges, decode_outputs
from edgeport.subgraph import CONVERTERS, Workbench

SHARP_DB = 6.0
"""Half of the signal's noise. What one operator alone loses is what the tensor behind it has lost,
within this much, where that operator is the cause and not the sum of all before it."""

STEP_DB = 3.0  # twice the noise power: within a segment, the place where most of it has come up
SWEPT_BYTES = 1 << 29  # of tensors at a time, in the run of every operator alone
SWEPT = {True: 64, False: 8}  # operators run alone where the first suspect is right; few if slow

Verdict = Literal["culprit", "together", "accumulated"]
"""One operator alone loses it; it does only with the operators before it (they are fused); or every
operator loses a little."""


@dataclass(frozen=True)
class Parted:
    """Where a graph parts from its reference, and the part that shows it.

    `before_db` is at the articulation before it (infinite at the inputs), `after_db` at the one
    behind it, `local_db` of the operator alone on the reference's values, in which the tensor's
    largest magnitude is `peak`. `missed` is the first articulation that misses the limit, an
    earlier one where noise adds up, "" where none does. `nodes` are the indices of its nodes,
    `node` the one to look at. `model` with `feed` reproduces it and should give `expected`. `runs`
    were taken, for `articulations` points where the graph can be cut.
    """

    tensor: str
    node: onnx.NodeProto
    nodes: tuple[int, ...]
    verdict: Verdict
    before: str
    before_db: float
    after: str
    after_db: float
    local_db: float
    missed: str
    runs: int
    articulations: int
    peak: float
    model: onnx.ModelProto
    feed: Mapping[str, Array]
    expected: Mapping[str, Array]


class _CannotRun(Exception):
    """Raised for a prefix that the executor does not take."""

    def __init__(self, point: Point) -> None:
        super().__init__(point.name)
        self.point = point


@dataclass
class Search:
    """One search: `bench` is the graph with its real input, `output` the one that is wrong.

    `edges` say how integer graph outputs are read; `limit_db` is what a tensor must hold. `sweep`
    looks for an operator that is wrong alone, also where the output holds: in a quantized graph one
    wrong layer of many may cost less than the rounding of all.
    """

    bench: Workbench
    reference: Reference
    executor: Executor
    output: str
    limit_db: float
    edges: Edges = field(default_factory=dict)
    sweep: bool = False

    def __post_init__(self) -> None:
        self.counted = Counted(self.executor)
        points = find_points(self.bench, self.output, self.reference)
        cuts = at_articulations(self.bench, self.output, points)
        self.points = points
        self.references = self.reference.values([one.name for one in cuts])
        self.cuts = tuple(
            one
            for one in cuts
            if one.name == self.output or is_comparable(self.references[one.name])
        )
        self.known: dict[Point, float] = {}
        self.refused: list[str] = []
        self.lowest = (float("inf"), "")
        self.missed = ""

    def find(self) -> Parted | None:
        """Returns where the graph parts; None where its output holds, and every operator alone."""
        while True:
            try:
                return self._find()
            except _CannotRun as refused:  # a part that the compiler does not take: cut elsewhere
                self.cuts = tuple(one for one in self.cuts if one != refused.point)

    def _find(self) -> Parted | None:
        if self.sweep and (found := self._swept()) is not None:
            return found
        if self.prefix_db(len(self.cuts) - 1) >= self.limit_db:
            return None
        first = self._note_missed()
        if self._crept(first):  # where does most of it come from?
            found_at = noisiest(self.prefix_db, first, halvings(first) + 2)
            first = first if found_at is None else found_at
        return self._segment(first)

    def _note_missed(self) -> int:
        """Returns the first cut that misses the limit; one past the last where the output holds."""
        count = len(self.cuts)
        if self.prefix_db(count - 1) >= self.limit_db:
            return count
        first = self.first_wrong(self.prefix_db, count, self.limit_db)
        self.missed = self.cuts[first].name
        return first

    def first_wrong(self, at: SqnrAt, count: int, limit_db: float) -> int:
        """Returns the first index from which on the SQNR is below the limit; the last one's is.

        Where one run tells all, none after it may hold: a pass may have left a tensor's name to
        something else, which looks wrong and is not.
        """
        if not self.executor.wide:
            return first_below(at, count, limit_db)
        return 1 + max((one for one in range(count) if at(one) >= limit_db), default=-1)

    def _swept(self) -> Parted | None:
        """Returns the first operator that alone, on the reference's values, is wrong.

        Wrong is what `edgeport.numerics` calls so, whatever the whole graph has to hold.
        """
        for group in in_groups(self.points, self._bytes, SWEPT_BYTES):
            kept = set(self.references)
            self._fetch(group)
            for point, (value, steps) in zip(group, self._each_alone(group)):
                if value < min(self.limit_db, INTEGER_DB) and steps > INTEGER_STEPS:
                    self._note_missed()
                    return self._told(self._cut_behind(point), [point], "culprit", value)
            for name in set(self.references) - kept:
                del self.references[name]
        return None

    def _bytes(self, point: Point) -> int:
        """Returns the size of what a point's operator takes and gives."""
        return sum(self.bench.types[name].bytes for name in (point.seen, *point.inputs))

    def _cut_behind(self, point: Point) -> int:
        """Returns the first cut that a point comes before."""
        maker = self.bench.makers[point.seen]
        owners = (ancestors(self.bench, one.seen) for one in self.cuts)
        return next(index for index, nodes in enumerate(owners) if maker in nodes)

    def _each_alone(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Returns per point the SQNR of its operator alone, and its largest error in steps.

        All in one run: each has its own copy of what it takes. Infinite where there is no saying.
        """
        able = [p for p in points if is_comparable(self.references[p.name])]
        model, wanted = apart(self.bench, able)
        answers = decode_outputs(
            self.counted.run(model, self.feed_for(model)), [p.seen for p in able], self.edges
        )
        found = {}
        for point, name, answer in zip(able, wanted, answers):
            reference = self.references[point.name].reshape(answer.shape)
            step = output_step(model, name)
            steps = max_abs(reference, answer) / step if step else float("inf")
            found[point] = (sqnr_db(reference, answer), steps)
        return [found.get(point, (float("inf"), 0.0)) for point in points]

    def prefix_db(self, index: int) -> float:
        """Returns the SQNR at a cut, from real inputs; the first call of a wide run gives all."""
        point = self.cuts[index]
        if point not in self.known:
            points = self.cuts if self.executor.wide else (point,)
            nodes = {n for one in points for n in ancestors(self.bench, one.seen)}
            try:
                found = self.compared(sorted(nodes), points, self.bench.feed)
            except StageFailed as error:
                if self.executor.wide or point.name == self.output:
                    raise
                self.refused.append(str(error))
                raise _CannotRun(point) from error
            self.known.update(zip(points, found))
            for one, value in zip(points, found):
                self.lowest = min(self.lowest, (value, one.name))
        return self.known[point]

    def _segment(self, cut: int) -> Parted:
        """Returns the operator between two cuts that parts, the later one of which is `cut`."""
        nodes = set(ancestors(self.bench, self.cuts[cut].seen))
        if cut:
            nodes -= set(ancestors(self.bench, self.cuts[cut - 1].seen))
        inside = tuple(one for one in self.points if self.bench.makers[one.seen] in nodes)
        self._fetch(inside)
        segment = _Segment(self, inside)
        verdict, place = segment.judge()
        local_db = segment.alone_db(place)
        shown_db = segment.frontier_db(len(inside) - 1)
        if min(local_db, shown_db) >= max(self.limit_db, self.prefix_db(cut) + STEP_DB):
            verdict = "accumulated"  # on the reference's values the segment is right
        chosen = inside[: place + 1] if verdict == "together" else [inside[place]]
        return self._told(cut, chosen, verdict, local_db)

    def _crept(self, cut: int) -> bool:
        """Returns whether the SQNR at a cut is not far below that at the cut before it."""
        return cut > 0 and self.prefix_db(cut - 1) - self.prefix_db(cut) < SHARP_DB

    def _fetch(self, points: Sequence[Point]) -> None:
        """Gets the reference's values of these points and of what their operators take."""
        needed = [one.name for one in points]
        needed += [name for one in points for name in one.inputs if name not in self.bench.feed]
        wanted = [name for name in dict.fromkeys(needed) if name not in self.references]
        self.references |= self.reference.values(wanted)

    def _told(self, cut: int, chosen: Sequence[Point], verdict: Verdict, local_db: float) -> Parted:
        """Returns what was found: the last of the chosen points, which lies before the cut."""
        suspect = chosen[-1]
        part = tuple(sorted({index for one in chosen for index in one.unit}))
        model = self.bench.cut(part, [suspect.seen])
        return Parted(
            tensor=suspect.name,
            node=self._node_to_look_at(suspect),
            nodes=part,
            verdict=verdict,
            before=self.cuts[cut - 1].name if cut else "",
            before_db=self.prefix_db(cut - 1) if cut else float("inf"),
            after=self.cuts[cut].name,
            after_db=self.prefix_db(cut),
            local_db=local_db,
            missed=self.missed,
            runs=self.counted.runs,
            articulations=len(self.cuts),
            peak=float(np.abs(self.references[suspect.name].astype(np.float64)).max()),
            model=model,
            feed=self.feed_for(model),
            expected={suspect.seen: self.references[suspect.name]},
        )

    def _node_to_look_at(self, point: Point) -> onnx.NodeProto:
        """Returns the operator that gives the point, or one that the reference has not."""
        nodes: list[onnx.NodeProto] = [self.bench.nodes[index] for index in point.unit]
        operators = [node for node in nodes if node.op_type not in CONVERTERS] or nodes
        maker = next((node for node in operators if point.name in node.output), operators[-1])
        new = [node for node in operators if node.name not in self.reference.nodes]
        if new and maker not in new and self.reference.nodes:
            return new[0]
        return maker

    def feed_for(self, model: onnx.ModelProto) -> dict[str, Array]:
        """Returns the real values of a part's inputs: the graph's own, else the reference's."""
        feed = {}
        for value in model.graph.input:
            array = self.bench.feed.get(value.name)
            if array is None:
                array = self.references[value.name]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
            feed[value.name] = np.asarray(array, dtype).reshape(shape)
        return feed

    def compared(
        self, nodes: Sequence[int], points: Sequence[Point], feed: Mapping[str, Array] | None = None
    ) -> list[float]:
        """Returns the SQNR in dB of each point, of a run of these nodes alone."""
        model = self.bench.cut(nodes, [one.seen for one in points])
        given = {value.name for value in model.graph.input}
        feed = self.feed_for(model) if feed is None else {n: feed[n] for n in feed if n in given}
        answers = decode_outputs(
            self.counted.run(model, feed), [one.seen for one in points], self.edges
        )
        return [
            sqnr_db(self.references[one.name].reshape(answer.shape), answer)
            for one, answer in zip(points, answers)
        ]


class _Segment:
    """The points between two cuts, run on the reference's values at the first."""

    def __init__(self, search: Search, points: tuple[Point, ...]) -> None:
        self.search, self.points = search, points
        self.known: dict[int, float] = {}
        self.alone: dict[int, float] = {}

    def first_wrong(self) -> int:
        """Returns the first point behind which the segment has lost what it loses."""
        last = len(self.points) - 1
        limit = max(self.search.limit_db, self.frontier_db(last) + STEP_DB)
        return self.search.first_wrong(self.frontier_db, len(self.points), limit)

    def judge(self) -> tuple[Verdict, int]:
        """Returns the verdict and the point.

        Where the loss crept up to the first suspect, those before it are run alone too.
        """
        place, limit_db = self.first_wrong(), self.search.limit_db
        here = self.frontier_db(place)
        if self.alone_db(place) < limit_db:
            return "culprit", place
        if not place or self.frontier_db(place - 1) - here >= SHARP_DB:
            return "culprit" if self.alone_db(place) < here + SHARP_DB else "together", place
        most = SWEPT[self.search.executor.wide]
        worst = min(range(max(0, place - most + 1), place + 1), key=self.alone_db)
        return "culprit" if self.alone_db(worst) < limit_db else "accumulated", worst

    def frontier_db(self, place: int) -> float:
        """Returns the lowest SQNR of what is read after this point, of the nodes up to it."""
        if place not in self.known:
            wide = self.search.executor.wide
            chosen = self.points if wide else self._frontier(place)
            part = self.points if wide else self.points[: place + 1]
            found = dict(zip(chosen, self._run(part, chosen)))
            places = range(len(self.points)) if wide else [place]
            for one in places:
                values = [found[point] for point in self._frontier(one) if point in found]
                self.known[one] = min(values, default=float("inf"))
        return self.known[place]

    def alone_db(self, place: int) -> float:
        """Returns the SQNR of this point's operator alone."""
        if place not in self.alone:
            point = self.points[place]
            (self.alone[place],) = self._run([point], [point])
        return self.alone[place]

    def _frontier(self, place: int) -> tuple[Point, ...]:
        """Returns the points up to this one that are read after it, and this one."""
        later = {name for point in self.points[place + 1 :] for name in point.inputs}
        chosen = [p for p in self.points[:place] if p.name in later]
        return (*chosen, self.points[place])

    def _run(self, part: Sequence[Point], wanted: Sequence[Point]) -> list[float]:
        """Returns the SQNR of the wanted points.

        Infinite for those that cannot be compared, and where the compiler does not take the part.
        """
        references = self.search.references
        able = [one for one in wanted if is_comparable(references[one.name])]
        if not able:
            return [float("inf")] * len(wanted)
        nodes = sorted({index for one in part for index in one.unit})
        try:
            found = dict(zip(able, self.search.compared(nodes, able)))
        except StageFailed as error:
            if self.search.executor.wide:
                raise
            self.search.refused.append(str(error))
            return [float("inf")] * len(wanted)
        return [found.get(one, float("inf")) for one in wanted]
