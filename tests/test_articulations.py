"""Where a graph can be cut, against a slow definition; and the search, on random graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from support import gaussian, model, node

from edgeport.articulations import (
    ancestors,
    articulations,
    first_below,
    halvings,
    noise_power,
    noisiest,
)
from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.executors import OnHost
from edgeport.parting import Parted, Search
from edgeport.points import HostReference, apart, find_points
from edgeport.subgraph import Workbench, run_on_host

SHAPE = [1, 4, 4]
UNARY = ("Tanh", "Sigmoid", "Softsign", "Erf")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Draws a graph of unary and binary operators over one or two inputs, with dead ends."""
    inputs = [f"x{i}" for i in range(draw(st.integers(1, 2)))]
    tensors, nodes = list(inputs), []
    for index in range(draw(st.integers(2, 24))):
        # Mostly what was just made: long graphs that nothing can be cut in are of no interest.
        recent = st.integers(max(0, len(tensors) - 3), len(tensors) - 1)
        one, other = tensors[draw(recent)], tensors[draw(recent)]
        if draw(st.booleans()):
            nodes.append(node(draw(st.sampled_from(UNARY)), one, f"t{index}"))
        else:
            nodes.append(node("Add", f"{one} {other}", f"t{index}"))
        tensors.append(f"t{index}")
    return model(nodes, dict.fromkeys(inputs, SHAPE), {tensors[-1]: SHAPE})


def bench_of(proto: onnx.ModelProto) -> Workbench:
    feed = {v.name: gaussian(SHAPE, seed) for seed, v in enumerate(proto.graph.input)}
    return Workbench(proto, feed, optimize=False)


def separates(bench: Workbench, output: str, tensor: str) -> bool:
    """Returns whether no input that `output` needs is reached without going through `tensor`."""
    inputs = {value.name for value in bench.model.graph.input}
    if tensor == output:
        return True
    reached = {
        name
        for index in ancestors(bench, output, {tensor})
        for name in bench.nodes[index].input
        if name != tensor
    }
    return not reached & inputs


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_articulations_are_the_tensors_that_separate(proto: onnx.ModelProto) -> None:
    bench = bench_of(proto)
    output = proto.graph.output[0].name
    on_path = ancestors(bench, output)
    tensors = [v.name for v in proto.graph.input]
    used = {name for i in on_path for name in bench.nodes[i].input}
    tensors = [t for t in tensors if t in used] + [bench.nodes[i].output[0] for i in on_path]
    expected = [one for one in tensors if separates(bench, output, one)]
    assert list(articulations(bench, output)) == expected


def test_weights_and_what_is_made_of_them_are_on_no_path() -> None:
    nodes = [
        node("Abs", "w", "a"),
        node("Mul", "x a", "m"),
        node("Relu", "m", "r"),
        node("Add", "r m", "s"),
        node("Mul", "s a", "y"),
    ]
    proto = model(nodes, {"x": SHAPE}, {"y": SHAPE}, {"w": gaussian(SHAPE, 3)})
    assert articulations(bench_of(proto), "y") == ("x", "m", "s", "y")


@given(st.integers(1, 400), st.data())
def test_first_below_finds_the_index_in_log2_n_steps(count: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, count - 1))
    asked: list[int] = []

    def at(index: int) -> float:
        asked.append(index)
        return 90.0 if index < wrong else 12.0

    assert first_below(at, count, 80.0) == wrong
    assert len(asked) <= halvings(count) == math.ceil(math.log2(count))


@given(st.integers(2, 200), st.data())
def test_noisiest_finds_a_step_in_noise_that_adds_up(count: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, count - 1))
    noise = np.cumsum([1e-2 if index == step else 1e-6 for index in range(count)])
    values = [-10 * math.log10(one) for one in noise]
    asked: list[int] = []

    def at(index: int) -> float:
        asked.append(index)
        return values[index]

    assert noisiest(at, count - 1, halvings(count) + 2) == step
    assert len(set(asked)) <= halvings(count) + 1


def test_noisiest_gives_up_where_noise_is_spread() -> None:
    assert noisiest(lambda index: -10 * math.log10(1e-4 * (index + 1)), 63, 8) is None
    assert noise_power(math.inf) == pytest.approx(0)
    assert noise_power(-math.inf) == 1e30
    assert [halvings(count) for count in (1, 2, 3, 64, 65)] == [0, 1, 2, 6, 7]


# The whole search


def search(proto: onnx.ModelProto, wrong: onnx.ModelProto, *, wide: bool) -> Parted | None:
    output = proto.graph.output[0].name
    reference = HostReference(bench_of(proto))
    return Search(bench_of(wrong), reference, OnHost(wide), output, 60.0).find()


def stays_wrong(proto: onnx.ModelProto, wrong: onnx.ModelProto, place: int) -> bool:
    """Returns whether the change at a node is seen in all that follows, to the output."""
    output = proto.graph.output[0].name
    benches = [bench_of(proto), bench_of(wrong)]
    later = [i for i in ancestors(benches[0], output) if i >= place]
    names = [proto.graph.node[i].output[0] for i in later]
    names = [one for one in names if proto.graph.node[place].output[0] in reads(proto, one)]
    values = [bench.values(names) for bench in benches]
    return all(sqnr_db(values[0][one], values[1][one]) < 60.0 for one in names)


def reads(proto: onnx.ModelProto, tensor: str) -> set[str]:
    """Returns the tensors that a tensor is made of, and itself."""
    bench = bench_of(proto)
    return {bench.nodes[index].output[0] for index in ancestors(bench, tensor)}


@given(graphs(), st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_changed_operator_is_found(proto: onnx.ModelProto, data: st.DataObject) -> None:
    """At each operator that the output needs, within the runs that halving twice takes."""
    bench = bench_of(proto)
    indices = ancestors(bench, proto.graph.output[0].name)
    place = data.draw(st.sampled_from(indices))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    changed = wrong.graph.node[place]
    changed.op_type = "Neg" if changed.op_type in UNARY else "Mul"
    assume(stays_wrong(proto, wrong, place))
    for wide in (False, True):
        found = search(proto, wrong, wide=wide)
        assert found is not None
        assert (found.tensor, found.node.op_type) == (changed.output[0], changed.op_type)
        assert found.verdict == "culprit"
        if not wide:  # both halvings, both ends, and the operator alone
            cuts = found.articulations
            inside = len(indices)
            assert found.runs <= halvings(cuts) + halvings(inside) + 5
        (answer,) = run_on_host(found.model, found.feed)
        (expected,) = found.expected.values()
        assert np.abs(answer - expected).max() > 0
    assert search(proto, proto, wide=False) is None


def test_a_long_chain_takes_log2_n_runs() -> None:
    names = ["x", *(f"t{i}" for i in range(200))]
    nodes = [node("Tanh", one, other) for one, other in pairwise(names)]
    proto = model(nodes, {"x": SHAPE}, {names[-1]: SHAPE})
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    wrong.graph.node[137].op_type = "Sigmoid"
    found = search(proto, wrong, wide=False)
    assert found is not None
    assert found.node.name == "n_t137"
    assert found.articulations == 200
    assert found.runs <= 8 + 5


def test_noise_that_adds_up_is_told_from_a_culprit() -> None:
    """Every operator is off by a little: none alone misses what the sum of them does."""
    nodes, off, exact = [], {}, {}
    for i in range(16):
        nodes += [node("Add", f"{f't{i - 1}' if i else 'x'} w{i}", f"t{i}")]
        exact[f"w{i}"] = np.zeros(SHAPE, np.float32)
        off[f"w{i}"] = gaussian(SHAPE, 100 + i, 1e-3)
    proto = model(nodes, {"x": SHAPE}, {"t15": SHAPE}, exact)
    wrong = model(nodes, {"x": SHAPE}, {"t15": SHAPE}, off)
    output = Search(bench_of(wrong), HostReference(bench_of(proto)), OnHost(True), "t15", 52.0)
    found = output.find()
    assert found is not None
    assert found.verdict == "accumulated"
    assert found.local_db > 55.0
    assert output.lowest[0] < 52.0 == output.limit_db
    assert found.missed == "t4"


def test_points_behind_pairs() -> None:
    """What its readers get of a quantized tensor is behind its pair, also where it is an input."""
    weights = {"s": np.float32(0.05), "z": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("Tanh", "xd", "t"),
        node("QuantizeLinear", "t s z", "tq"),
        node("DequantizeLinear", "tq s z", "y"),
    ]
    quantized = bench_of(model(nodes, {"x": SHAPE}, {"y": SHAPE}, weights))
    plain = model([node("Tanh", "x", "t"), node("Abs", "t", "y")], {"x": SHAPE}, {"y": SHAPE})
    points = find_points(quantized, "y", HostReference(bench_of(plain)))
    assert [(one.name, one.seen, one.inputs) for one in points] == [
        ("x", "xd", ("x",)),
        ("t", "y", ("x",)),
        ("y", "y", ("t",)),
    ]


def test_apart_gives_each_operator_its_own_inputs() -> None:
    nodes = [node("Tanh", "x", "a"), node("Add", "a w", "b"), node("Mul", "a b", "y")]
    proto = model(nodes, {"x": SHAPE}, {"y": SHAPE}, {"w": gaussian(SHAPE, 5)})
    bench = bench_of(proto)
    points = find_points(bench, "y", HostReference(bench))
    alone, wanted = apart(bench, points)
    assert [value.name for value in alone.graph.input] == ["x", "a", "b"]
    feed = {name: gaussian(SHAPE, seed) for seed, name in enumerate(("x", "a", "b"))}
    answers = dict(zip(wanted, run_on_host(alone, feed)))
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    expected = (np.tanh(feed["x"]), feed["a"] + weight, feed["a"] * feed["b"])
    for name, one in zip(wanted, expected, strict=True):
        np.testing.assert_allclose(answers[name], one, rtol=1e-5)


class Refusing(OnHost):
    """Takes no part that gives one of these tensors alone, as a compiler may."""

    def run(self, model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        if [value.name for value in model.graph.output] in (["t5"], ["t6"]):
            raise StageFailed("lower", "the compiler does not take it")
        return super().run(model, feed)


def test_a_part_that_is_refused_is_passed_over() -> None:
    names = ["x", *(f"t{i}" for i in range(12))]
    nodes = [node("Tanh", one, other) for one, other in pairwise(names)]
    proto = model(nodes, {"x": SHAPE}, {names[-1]: SHAPE})
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    wrong.graph.node[7].op_type = "Sigmoid"
    reference = HostReference(bench_of(proto))
    looking = Search(bench_of(wrong), reference, Refusing(wide=False), "t11", 60.0)
    found = looking.find()
    assert found is not None
    assert found.node.name == "n_t7"
    assert found.articulations < 12
    assert set(looking.refused) == {"lower: the compiler does not take it"}
    wrong.graph.node[-1].output[0] = wrong.graph.output[0].name = "t6"  # the whole graph is refused
    wrong.graph.node[6].output[0] = wrong.graph.node[7].input[0] = "other"
    with pytest.raises(StageFailed, match="does not take it"):
        Search(bench_of(wrong), reference, Refusing(wide=False), "t6", 60.0).find()
