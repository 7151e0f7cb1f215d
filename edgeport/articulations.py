"""Where a graph can be cut in a single tensor, and the search for the first cut that is wrong.

An articulation of a graph is a tensor that every path from its inputs to an output goes through:
what is before it and what is after it have nothing else in common.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from itertools import pairwise

from edgeport.subgraph import Workbench, used_names

SqnrAt = Callable[[int], float]
"""The SQNR in dB of the tensor with this index, of some that follow one another."""


def ancestors(bench: Workbench, tensor: str, stop: Collection[str] = ()) -> tuple[int, ...]:
    """Returns the indices of the nodes that give a tensor, in the graph's order.

    The tensors in `stop` are taken as given; what makes them is left out.
    """
    found: set[int] = set()
    waiting = [tensor]
    while waiting:
        index = bench.makers.get(waiting.pop())
        if index is not None and index not in found:
            found.add(index)
            waiting += [name for name in used_names(bench.nodes[index]) if name not in stop]
    return tuple(sorted(found))


def articulations(bench: Workbench, output: str) -> tuple[str, ...]:
    """Returns the tensors that all paths from the graph's inputs to `output` go through, in order.

    `output` is the last. What depends on no input, such as weights, is on no path. Nodes are in
    topological order: a tensor is an articulation where it alone is still read by later nodes.
    """
    indices = ancestors(bench, output)
    reads = [tuple(dict.fromkeys(used_names(bench.nodes[index]))) for index in indices]
    readers = Counter(name for names in reads for name in names)
    varying = {value.name for value in bench.model.graph.input} - set(bench.initializers)
    live = {name for name in varying if readers[name]}
    found = list(live) if len(live) == 1 else []
    for index, names in zip(indices, reads):
        taken = [name for name in names if name in varying]
        if not taken:
            continue
        for name in taken:
            readers[name] -= 1
            if not readers[name] and name != output:
                live.discard(name)
        made = [name for name in bench.nodes[index].output if name]
        varying.update(made)
        live.update(name for name in made if readers[name] or name == output)
        if len(live) == 1 and found[-1:] != list(live):
            found += live
    return tuple(found)


def first_below(at: SqnrAt, count: int, limit_db: float) -> int:
    """Returns the first of `count` indices whose SQNR is below the limit; the last one's is.

    Halves the range, so that `at` is asked for ceil(log2 count) indices: what follows a wrong
    tensor is taken to be wrong too.
    """
    right, wrong = -1, count - 1
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if at(middle) < limit_db:
            wrong = middle
        else:
            right = middle
    return wrong


def noisiest(at: SqnrAt, last: int, most: int) -> int | None:
    """Returns the index up to `last` at which the most noise is added, None where it is spread.

    Looks into the half that added more noise power (relative to the signal), and asks `at` for at
    most `most` indices. Index -1 stands for the inputs, which have no noise.
    """
    noise = {-1: 0.0, last: noise_power(at(last))}
    while True:
        known = sorted(noise)
        low, high = max(pairwise(known), key=lambda pair: noise[pair[1]] - noise[pair[0]])
        if high - low == 1:
            return high
        if len(noise) - 2 == most:
            return None
        middle = (low + high) // 2
        noise[middle] = noise_power(at(middle))


def noise_power(sqnr_db: float) -> float:
    """Returns the power of the noise relative to the signal's."""
    return float(10.0 ** (-max(-300.0, min(sqnr_db, 300.0)) / 10.0))


def halvings(count: int) -> int:
    """Returns how often a range of this length is halved until one is left."""
    return math.ceil(math.log2(count)) if count > 1 else 0
