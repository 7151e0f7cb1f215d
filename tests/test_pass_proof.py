"""The proof of every pass: what changes the answer is rolled back and named."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support import conv_net, model, node
from test_passes import GRAPHS, feed_of, load, run

from edgeport.passes.apply import apply_passes
from edgeport.passes.fold import fold_constants
from edgeport.passes.reciprocal import reciprocal_to_div
from edgeport.runtimes.onnx import Session
from edgeport.types import PassResult


def scaled(graph: ir.Model) -> PassResult:
    """Multiplies the second convolution's weight by 1.01: valid, and wrong."""
    value = graph.graph.initializers["w2"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name="w2")
    return PassResult("scaled", graph, 1)


def cut(graph: ir.Model) -> PassResult:
    """Leaves a node without its producer."""
    relu = next(node for node in graph.graph if node.op_type == "Relu")
    relu.replace_input_with(0, ir.Value(name="nobody_makes_this"))
    return PassResult("cut", graph, 1)


def misspelt(graph: ir.Model) -> PassResult:
    next(node for node in graph.graph if node.op_type == "Relu").op_type = "Reluu"
    return PassResult("misspelt", graph, 1)


def reshaped(graph: ir.Model) -> PassResult:
    """Gives the output another shape: the stride of the last convolution."""
    last = next(node for node in reversed(graph.graph) if node.op_type == "Conv")
    last.attributes["strides"] = ir.AttrInt64s("strides", [2, 2])
    graph.graph.outputs[0].shape = ir.Shape([1, 4, 8, 8])
    return PassResult("reshaped", graph, 1)


def renamed_input(graph: ir.Model) -> PassResult:
    graph.graph.inputs[0].name = "picture"
    return PassResult("renamed_input", graph, 1)


def lost_output(graph: ir.Model) -> PassResult:
    graph.graph.outputs.pop()
    return PassResult("lost_output", graph, 1)


def raising(graph: ir.Model) -> PassResult:
    raise KeyError("nobody expected this")


@pytest.mark.parametrize(
    "wrong", [scaled, cut, misspelt, reshaped, renamed_input, lost_output, raising]
)
def test_a_wrong_pass_is_rolled_back_and_named(wrong) -> None:
    proto = conv_net()
    extra = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 8, 16, 16])
    proto.graph.output.append(extra)
    given, feed = load(proto), feed_of(proto)
    before = ir.to_proto(given).SerializeToString()
    passes = (fold_constants, wrong, reciprocal_to_div)
    applied = apply_passes(given, passes, [feed], minimum_db=80)
    assert ir.to_proto(given).SerializeToString() == before  # the model given is as it was
    for reference, actual in zip(Session(before).run(feed), run(applied.model, feed), strict=True):
        assert np.array_equal(reference, actual)
    fold, step, last = applied.steps
    assert (fold.rolled_back, last.rolled_back, step.count) == ("", "", 0)
    assert step.sqnr_db < 80
    (note,) = applied.notes
    assert note == f"{wrong.__name__}: rolled back, {step.rolled_back}"
    assert "\n" not in note


def test_the_steps_carry_their_proof() -> None:
    proto = GRAPHS["reciprocal"]
    applied = apply_passes(load(proto), (reciprocal_to_div,), [feed_of(proto)], minimum_db=80)
    (step,) = applied.steps
    assert (step.name, step.count, step.rolled_back) == ("reciprocal to Div", 1, "")
    assert step.sqnr_db > 120
    assert applied.least_db(80) == 80


def test_every_feed_counts_for_the_proof() -> None:
    """A pass that is right on the first feed only is found on the second."""

    def clip(graph: ir.Model) -> PassResult:
        output = graph.graph.outputs[0]
        producer = output.producer()
        assert producer is not None and isinstance(producer.graph, ir.Graph)
        producer.outputs[0].name = "unclipped"
        limit = ir.tensor(np.float32(5.0), name="limit")
        value = ir.Value(name="limit", const_value=limit, type=ir.TensorType(limit.dtype))
        producer.graph.register_initializer(value)
        made = ir.node("Min", [producer.outputs[0], value])
        made.outputs[0].name, made.outputs[0].type = "y", output.type
        made.outputs[0].shape = output.shape
        producer.graph.append(made)
        graph.graph.outputs[0] = made.outputs[0]
        return PassResult("clip", graph, 1)

    proto = model([node("Relu", "x", "y")], {"x": [2, 3]}, {"y": [2, 3]})
    low = {"x": np.ones((2, 3), np.float32)}
    (kept,) = apply_passes(load(proto), (clip,), [low], minimum_db=80).steps
    assert (kept.count, kept.rolled_back) == (1, "")
    feeds = [low, {"x": low["x"] * 9}]
    (dropped,) = apply_passes(load(proto), (clip,), feeds, minimum_db=80).steps
    assert dropped.count == 0
    assert "it changed the answer: " in dropped.rolled_back
