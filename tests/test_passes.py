"""The contract of every exact pass, on graphs built to catch it, and the proof around them."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnxscript import optimizer
from support import conv_net, gaussian, model, node

from edgeport.compare import sqnr_db
from edgeport.passes import EXACT, simplify
from edgeport.passes.apply import apply_passes
from edgeport.passes.fold import fold_constants
from edgeport.passes.reciprocal import reciprocal_to_div
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.worker import Limits

SIMPLIFY = sys.modules["edgeport.passes.simplify"]  # the package's attribute is the function


def reciprocal_net(nodes, outputs=("y",), opset: int = 21, shape=(2, 3)) -> onnx.ModelProto:
    inputs = {"a": list(shape), "b": list(shape)}
    return model(nodes, inputs, {name: list(shape) for name in outputs}, opset=opset)


def foldable_net() -> onnx.ModelProto:
    """Constants to fold, a node that nothing uses, duplicates, shape arithmetic, an Identity."""
    nodes = [
        node("Constant", "", "two", value_float=2.0),
        node("Add", "two one", "three"),
        node("Mul", "x three", "m"),
        node("Identity", "m", "i"),
        node("Exp", "i", "unused"),
        node("Relu", "i", "r1"),
        node("Relu", "i", "r2"),
        node("Shape", "r1", "s"),
        node("Reshape", "r2 s", "f"),
        node("Add", "r1 f", "y"),
    ]
    return model(nodes, {"x": [2, 3]}, {"y": [2, 3]}, {"one": np.ones((), np.float32)})


def split_net() -> onnx.ModelProto:
    """SplitToSequence with SequenceAt, which folding turns into other nodes, not into fewer."""
    nodes = [
        node("SplitToSequence", "x sizes", "q", axis=0, keepdims=1),
        node("SequenceAt", "q zero", "first"),
        node("Relu", "first", "y"),
    ]
    weights = {"sizes": np.array([1, 1], np.int64), "zero": np.array(0, np.int64)}
    return model(nodes, {"x": [2, 3]}, {"y": [1, 3]}, weights)


GRAPHS = {
    "conv": conv_net(),
    "foldable": foldable_net(),
    "split": split_net(),
    "reciprocal": reciprocal_net([node("Reciprocal", "b", "r"), node("Mul", "a r", "y")]),
    "lone reciprocal": reciprocal_net([node("Reciprocal", "b", "r"), node("Add", "a r", "y")]),
}


def feed_of(proto: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    return {
        value.name: gaussian([d.dim_value for d in value.type.tensor_type.shape.dim], seed) + 3.0
        for value in proto.graph.input
    }


def run(graph: ir.Model, feed) -> tuple[np.ndarray, ...]:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return Session(proto.SerializeToString()).run(feed)


def load(proto: onnx.ModelProto) -> ir.Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return ir.from_proto(copy)


def names(graph: ir.Model) -> list[str | None]:
    return [value.name for value in (*graph.graph.inputs, *graph.graph.outputs)]


def operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("one", EXACT, ids=lambda one: one.__name__)
def test_contract(one, graph: str) -> None:
    proto = GRAPHS[graph]
    feed = feed_of(proto)
    expected, before = Session(proto.SerializeToString()).run(feed), load(proto)
    nodes_before = [(n.op_type, n.name) for n in before.graph]

    first = one(before)
    assert first.count >= 0
    assert names(first.model) == names(load(proto))
    for reference, actual in zip(expected, run(first.model, feed), strict=True):
        assert sqnr_db(reference, actual) > 120
    if first.count == 0:
        assert [(n.op_type, n.name) for n in first.model.graph] == nodes_before

    once = operators(first.model)
    second = one(first.model)
    assert second.count == 0
    assert operators(second.model) == once


def test_folding_says_nothing_of_what_it_cannot_compute(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Gather of an index that is not there: onnxscript evaluates it, and warns."""
    weights = {"table": np.ones((2, 3), "f4"), "far": np.array([7])}
    nodes = [node("Gather", "table far", "row"), node("Add", "x row", "y")]
    graph = load(model(nodes, {"x": [1, 3]}, {"y": [1, 3]}, weights))
    with caplog.at_level("WARNING"):
        optimizer.fold_constants(graph.clone())
    assert "Evaluation failed" in caplog.text
    caplog.clear()
    fold_constants(graph)
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


def test_fold_constants_finds_what_is_constant_unused_and_double() -> None:
    result = fold_constants(load(foldable_net()))
    assert sorted(operators(result.model)) == ["Add", "Mul", "Relu", "Reshape", "Shape"]
    assert result.count == 10 - 5
    simpler = simplify(result.model)  # it knows the shapes
    assert sorted(operators(simpler.model)) == ["Add", "Mul", "Relu"]
    assert simpler.count == 2


DIVISIONS = {
    "product": ([node("Reciprocal", "b", "r"), node("Mul", "a r", "y")], ["Div"]),
    "product, other order": ([node("Reciprocal", "b", "r"), node("Mul", "r a", "y")], ["Div"]),
    "square": ([node("Reciprocal", "b", "r"), node("Mul", "r r", "y")], ["Div", "Mul"]),
    "two consumers": (
        [node("Reciprocal", "b", "r"), node("Mul", "a r", "m"), node("Add", "m r", "y")],
        ["Div", "Mul", "Add"],
    ),
    "two products": (
        [
            node("Reciprocal", "b", "r"),
            node("Mul", "a r", "m"),
            node("Mul", "r b", "n"),
            node("Add", "m n", "y"),
        ],
        ["Div", "Mul", "Mul", "Add"],
    ),
    "no product": ([node("Reciprocal", "b", "r"), node("Sub", "a r", "y")], ["Div", "Sub"]),
    "of its own": ([node("Reciprocal", "b", "r"), node("Reciprocal", "r", "y")], ["Div", "Div"]),
    "product with its denominator": (
        [node("Reciprocal", "b", "r"), node("Mul", "b r", "y")],
        ["Div"],
    ),
}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("case", DIVISIONS)
def test_reciprocal_to_div(case: str, opset: int) -> None:
    nodes, expected = DIVISIONS[case]
    proto = reciprocal_net(nodes, opset=opset)
    feed = feed_of(proto, 1)
    result = reciprocal_to_div(load(proto))
    assert operators(result.model) == expected
    assert result.count == sum(n.op_type == "Reciprocal" for n in nodes)
    (reference,) = Session(proto.SerializeToString()).run(feed)
    (actual,) = run(result.model, feed)
    assert sqnr_db(reference, actual) > 120


@pytest.mark.parametrize("opset", [13, 21])
def test_reciprocal_that_is_a_graph_output_keeps_its_name_and_value(opset: int) -> None:
    nodes = [node("Reciprocal", "b", "r"), node("Mul", "a r", "y")]
    proto = reciprocal_net(nodes, ("r", "y"), opset=opset)
    feed = feed_of(proto)
    result = reciprocal_to_div(load(proto))
    assert [value.name for value in result.model.graph.outputs] == ["r", "y"]
    assert "Reciprocal" not in operators(result.model)
    for reference, actual in zip(
        Session(proto.SerializeToString()).run(feed), run(result.model, feed), strict=True
    ):
        assert sqnr_db(reference, actual) > 120


def test_reciprocal_of_another_broadcast_shape() -> None:
    nodes = [node("Reciprocal", "b", "r"), node("Mul", "a r", "y")]
    proto = model(nodes, {"a": [4, 3], "b": [3]}, {"y": [4, 3]})
    feed = feed_of(proto)
    (reference,) = Session(proto.SerializeToString()).run(feed)
    (actual,) = run(reciprocal_to_div(load(proto)).model, feed)
    assert sqnr_db(reference, actual) > 120


def test_reciprocal_in_float16_without_stated_types() -> None:
    """The type of an inner tensor is often not in the file; a float32 one would be invalid."""
    nodes = [node("Sqrt", "b", "q"), node("Reciprocal", "q", "r"), node("Add", "a r", "y")]
    shape = [2, 3]
    proto = model(nodes, {"a": shape, "b": shape}, {"y": shape}, dtype=TensorProto.FLOAT16)
    feed = {name: array.astype(np.float16) for name, array in feed_of(proto).items()}
    result = reciprocal_to_div(load(proto))
    assert (result.count, result.refused) == (1, ())
    (reference,) = Session(proto.SerializeToString()).run(feed)
    (actual,) = Session(ir.to_proto(result.model).SerializeToString()).run(feed)
    assert sqnr_db(reference, actual) > 50


def test_reciprocal_of_unknown_type_is_refused_in_a_sentence() -> None:
    """Behind an operator that onnx does not know, nothing says which 1 to write."""
    strange = helper.make_node("Frobnicate", ["b"], ["f"], domain="my.company", name="strange")
    nodes = [strange, node("Reciprocal", "f", "r"), node("Add", "a r", "y")]
    shapes = {"a": [2, 3], "b": [2, 3]}
    opsets = [helper.make_opsetid("my.company", 1)]
    proto = model(nodes, shapes, {"y": [2, 3]}, opset_imports=opsets)
    result = reciprocal_to_div(load(proto))
    assert (result.count, operators(result.model)) == (0, ["Frobnicate", "Reciprocal", "Add"])
    assert result.refused == ("n_r: the type of its input is not known",)


def subgraph_model() -> onnx.ModelProto:
    """An If whose branches hold a Reciprocal of a tensor of the outer graph."""

    def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 3])
        return helper.make_graph(nodes, name, [], [made])

    then = branch("then", [node("Reciprocal", "b", "tr"), node("Add", "tr a", "ty")], "ty")
    other = branch("else", [node("Reciprocal", "b", "er"), node("Mul", "a er", "ey")], "ey")
    nodes = [
        node("ReduceSum", "a", "total", keepdims=0),
        node("Greater", "total limit", "cond"),
        helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other),
    ]
    shapes = {"a": [2, 3], "b": [2, 3]}
    return model(nodes, shapes, {"y": [2, 3]}, {"limit": np.zeros((), np.float32)})


@pytest.mark.parametrize("shift", [4.0, -4.0])
def test_reciprocal_in_a_subgraph(shift: float) -> None:
    proto = subgraph_model()
    feed = {"a": gaussian([2, 3]) + np.float32(shift), "b": gaussian([2, 3], 1) + 3}
    result = reciprocal_to_div(load(proto))
    assert result.count == 2
    (reference,) = Session(proto.SerializeToString()).run(feed)
    (actual,) = run(result.model, feed)
    assert sqnr_db(reference, actual) > 120


def function_model() -> onnx.ModelProto:
    """A local function that adds its argument to its reciprocal."""
    body = [node("Reciprocal", "p", "r"), node("Add", "r p", "q")]
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("local", "Inverse", ["p"], ["q"], body, opsets)
    call = helper.make_node("Inverse", ["x"], ["y"], domain="local", name="call")
    return model(
        [call],
        {"x": [2, 3]},
        {"y": [2, 3]},
        functions=[function],
        opset_imports=[helper.make_opsetid("local", 1)],
    )


def test_reciprocal_in_a_function_goes_with_all_passes() -> None:
    proto = function_model()
    feed = feed_of(proto)
    (reference,) = Session(proto.SerializeToString()).run(feed)
    graph = load(proto)
    for one in EXACT:
        graph = one(graph).model
    assert "Reciprocal" not in operators(graph)
    (actual,) = run(graph, feed)
    assert sqnr_db(reference, actual) > 120


def test_simplify_goes_on_without_a_child_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real onnxsim is killed: by memory, then by time."""
    for limits, word in ((Limits(120, 4 << 20), "memory"), (Limits(0.05, 8 << 30), "0.05 s")):
        monkeypatch.setattr(SIMPLIFY, "LIMITS", limits)
        before = load(foldable_net())
        result = simplify(before)
        assert result.model is before
        assert result.count == 0
        (sentence,) = result.refused
        assert sentence.startswith("went on without it")
        assert word in sentence
        assert ".log" not in sentence  # that file is gone with the child's folder


def test_a_refusal_reaches_the_notes_and_the_rest_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SIMPLIFY, "LIMITS", Limits(0.05, 8 << 30))
    proto = GRAPHS["reciprocal"]
    applied = apply_passes(load(proto), EXACT, [feed_of(proto)], minimum_db=80)
    assert [step.name for step in applied.steps if step.count] == ["reciprocal to Div"]
    assert any("went on without it" in note for note in applied.notes)
