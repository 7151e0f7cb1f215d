"""Chooses for each node the order of axes with which the graph has the fewest Transposes.

For one order `perm`, each node either stays or computes on tensors whose axes are in that order. A
tensor that is made in one order and read in the other costs one Transpose, or nothing where only
axes of size 1 change places. The cheapest choice is a minimum cut: tensors are its edges of
capacity 1 that join many nodes, what cannot move is the source, and what a Transpose already makes
or reads in the other order is the sink.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeport.passes.graph import Editor, array_of, attribute, is_operator, shape_of
from edgeport.passes.layout_rules import Moved, Perm, Rule, has_rank

_STAYS: Hashable = "stays"  # the ends of the flow
_MOVES: Hashable = "moves"
_Flow = dict[Hashable, dict[Hashable, float]]


def perm_of(node: ir.Node) -> Perm:
    """Returns the order of axes that a Transpose states, or the reversed one that it implies."""
    stated = attribute(node, "perm")
    if stated is None:
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return () if shape is None else tuple(range(len(shape)))[::-1]
    return tuple(int(axis) for axis in stated)


def inverse(perm: Perm) -> Perm:
    """Returns the order of axes that undoes `perm`."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_view(value: ir.Value, perm: Perm) -> bool:
    """Returns whether `perm` only moves axes of size 1, which a Reshape does as well."""
    shape = shape_of(value)
    if shape is None or 0 in shape:
        return False
    wide = [axis for axis in perm if shape[axis] != 1]
    return wide == sorted(wide)


def fewest_transposes(editor: Editor, graph: ir.Graph, perm: Perm, rule: Rule) -> int:
    """Moves nodes to the order `perm` where Transposes fall; returns by how many.

    An order that undoes itself can be read as entering or as leaving the other one: the Transposes
    of odd depth are read one way, those of even depth the other, then the other way round.
    """
    for odd in (True, False) if inverse(perm) == perm else (True,):
        choice = _Choice(graph, perm, rule, odd)
        moves, cost = choice.cheapest()
        if (fall := choice.cost_now() - cost) > 0:
            _apply(editor, choice, moves)
            return fall
    return 0


@dataclass
class _Choice:
    """One graph, one order: the nodes that could move, and what the Transposes there mean."""

    graph: ir.Graph
    perm: Perm
    rule: Rule
    odd: bool
    movable: dict[ir.Node, Moved] = field(default_factory=dict)
    entries: set[ir.Node] = field(default_factory=set)
    exits: set[ir.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        back, depth = inverse(self.perm), dict[ir.Node, int]()
        for node in self.graph:
            makers = [value.producer() for value in node.inputs if value is not None]
            depth[node] = max((depth.get(maker, 0) for maker in makers if maker), default=0)
            if is_operator(node, "Transpose"):
                if perm_of(node) not in (self.perm, back):
                    continue
                depth[node] += 1
                enters = perm_of(node) == back
                if self.perm == back:
                    enters = (depth[node] % 2 == 1) == self.odd
                (self.entries if enters else self.exits).add(node)
            elif (moved := self.rule(node, self.perm)) is not None:
                self.movable[node] = moved

    def tensors(self) -> Iterator[tuple[ir.Value, set[Hashable]]]:
        """Yields each tensor with its ends: nodes that could move, and the fixed orders."""
        seen: set[ir.Value] = set()
        for node in self.graph:
            for value in (*node.inputs, *node.outputs):
                if value is None or value in seen or not has_rank(value, len(self.perm)):
                    continue
                seen.add(value)
                if array_of(value) is None and not is_view(value, self.perm):
                    yield value, {self._made(value), *self._read(value)}

    def _made(self, value: ir.Value) -> Hashable:
        maker = value.producer()
        if maker in self.entries:
            return _MOVES
        return maker if maker in self.movable and self.movable[maker].outputs else _STAYS

    def _read(self, value: ir.Value) -> Iterator[Hashable]:
        if value.is_graph_output():
            yield _STAYS
        for use in value.uses():
            if use.node in self.exits:
                yield _MOVES
            else:
                moved = self.movable.get(use.node)
                yield use.node if moved is not None and use.idx in moved.inputs else _STAYS

    def cost_now(self) -> int:
        """Returns the number of Transposes of this order, equal ones of a tensor counted once."""
        return sum(_MOVES in ends and len(ends) > 1 for _, ends in self.tensors())

    def cheapest(self) -> tuple[set[ir.Node], int]:
        """Returns the fewest nodes whose move leaves the fewest Transposes, and their number."""
        flow: _Flow = defaultdict(dict)
        for value, ends in self.tensors():
            if len(ends) > 1:
                _connect(flow, (value, 0), (value, 1), 1)
                for end in ends:
                    _connect(flow, end, (value, 0), np.inf)
                    _connect(flow, (value, 1), end, np.inf)
        cost = 0
        while (path := _path(flow)) is not None:
            cost += 1
            for start, stop in path:
                flow[start][stop] -= 1
                flow[stop][start] += 1
        return {one for one in _before_end(flow) if isinstance(one, ir.Node)}, cost


def _connect(flow: _Flow, start: Hashable, stop: Hashable, capacity: float) -> None:
    flow[start][stop] = flow[start].get(stop, 0) + capacity
    flow[stop].setdefault(start, 0)


def _path(flow: _Flow) -> list[tuple[Hashable, Hashable]] | None:
    """Returns a shortest path with capacity left, as its steps."""
    came: dict[Hashable, Hashable] = {_STAYS: _STAYS}
    waiting: deque[Hashable] = deque([_STAYS] if _STAYS in flow else [])
    while waiting and _MOVES not in came:
        at = waiting.popleft()
        for other, left in flow[at].items():
            if left > 0 and other not in came:
                came[other] = at
                waiting.append(other)
    if _MOVES not in came:
        return None
    steps: list[tuple[Hashable, Hashable]] = []
    at = _MOVES
    while at != _STAYS:
        steps.append((came[at], at))
        at = came[at]
    return steps


def _before_end(flow: _Flow) -> Iterable[Hashable]:
    """Returns what can still reach the end that moves."""
    found: set[Hashable] = {_MOVES}
    waiting: list[Hashable] = [_MOVES] if _MOVES in flow else []
    while waiting:
        at = waiting.pop()
        for other in flow[at]:
            if other not in found and flow[other].get(at, 0) > 0:
                found.add(other)
                waiting.append(other)
    return found


def _apply(editor: Editor, choice: _Choice, moves: set[ir.Node]) -> None:
    """Builds the nodes that move in their new order, and takes the old ones out."""
    moved: dict[ir.Value, ir.Value] = {}
    order = [node for node in choice.graph if node in moves]
    for node in order:
        rule = choice.movable[node]
        inputs = {}
        for index in rule.inputs:
            value = node.inputs[index]
            assert value is not None
            if value not in moved:
                moved[value] = _in_order(editor, choice, value)
            inputs[index] = moved[value]
        outputs = rule.build(editor, inputs)
        for old, new in zip(node.outputs, outputs, strict=True):
            if rule.outputs:
                moved[old] = new
            else:
                editor.replace(old, new, counted=False)
    _replace_exits(editor, choice, moved)
    for node in reversed(order):
        for old in node.outputs if node.graph is not None else ():
            if old.uses() or old.is_graph_output():
                back = _turned(editor, node, moved[old], inverse(choice.perm))
                editor.replace(old, back, counted=False)
        editor.drop(node)


def _in_order(editor: Editor, choice: _Choice, value: ir.Value) -> ir.Value:
    """Returns `value` in the other order: what its Transpose read, a constant, or a Transpose."""
    maker = value.producer()
    if maker is not None and maker in choice.entries:
        assert maker.inputs[0] is not None
        return maker.inputs[0]
    nodes = iter(choice.graph)
    if maker is not None and maker.graph is choice.graph:
        next(node for node in nodes if node is maker)
    return _turned(editor, next(nodes), value, choice.perm)


def _replace_exits(editor: Editor, choice: _Choice, moved: Mapping[ir.Value, ir.Value]) -> None:
    """Puts what is now in the other order in the place of the Transposes that made it so."""
    for node in choice.exits:
        source = node.inputs[0]
        if node.graph is not None and source is not None and source in moved:
            editor.replace(node.outputs[0], moved[source], counted=False)


def _turned(editor: Editor, before: ir.Node, value: ir.Value, perm: Perm) -> ir.Value:
    shape = shape_of(value)
    if shape is not None and is_view(value, perm):
        return editor.reshape(before, value, [shape[axis] for axis in perm])
    return editor.transpose(before, value, perm)
