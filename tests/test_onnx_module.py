"""The bridge from ONNX to torch: every operator that it has, against onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from backend_suite import Case, cases, load, run, same
from onnx import TensorProto
from support import conv_net, gaussian, model, node, save

from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.passes.fold import fold_constants
from edgeport.passes.inline import inline_functions
from edgeport.passes.raise_opset import raise_opset
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.onnx_module import onnx_module, translated_operators

EXACT_DB = 100.0
# What the suite states and the module refuses, by operator and reason.
REFUSED = r"""
    Arg(Max|Min) .*select_last_index 1 is not translated
    AveragePool .*dilations .* is not translated
    BatchNormalization .*training_mode 1
    ConvTranspose .*(auto_pad 'SAME_UPPER'|output_shape)
    Conv(Transpose)? .*computed, and it states no kernel_shape
    GatherND .*batch_dims 1
    LayerNormalization .*mean and deviation are not translated
    MaxPool .*indices are not translated
    Resize .*(antialias|exclude_outside|keep_aspect_ratio_policy|half_pixel|tf_crop|asymmetric)
    ScatterND .*reduction '(add|max|min|mul)'
    SpaceToDepth .*attribute mode
    .* input \d, '.*', is not a constant
    .*not implemented for 'UInt(16|32|64)'
    Reduce(Max|Min) .*Expected reduction dim 1 to have non-zero size
    .* is (bfloat16|string), which does not reach torch
"""
PATTERNS = [re.compile(line.strip()) for line in REFUSED.strip().splitlines()]
# torch's topk gives equal elements in no stated order, ONNX the first one first.
TIES = "test_top_k_same_values"


def prepared(case: Case) -> onnx.ModelProto | None:
    """Returns the case as the passes leave a graph; None where they do not apply to it."""
    try:
        model = load(case.model)
        for one in (inline_functions, raise_opset, fold_constants):
            model = one(model).model
        proto = ir.to_proto(model)
    except Exception:  # the suite also has graphs that are only partly valid
        return None
    operators = {one.op_type for one in proto.graph.node}
    numeric = all(
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf" for value in case.feed.values()
    )
    known = operators and operators <= {*translated_operators(), "Constant"} and numeric
    return proto if known and not case.name.startswith(TIES) else None


def in_torch(proto: onnx.ModelProto, feed: dict, folder: Path) -> list[np.ndarray]:
    """Returns the module's outputs; inputs are those that the graph still has."""
    module = onnx_module(save(proto, folder / "case.onnx"))
    inputs = [torch.from_numpy(np.array(feed[one.name])) for one in proto.graph.input]
    with torch.no_grad():
        outputs = module(*inputs)
    return [one.numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]


def verdicts(picked: tuple[Case, ...], folder: Path) -> Iterator[tuple[str, str]]:
    """Yields each case's name with "same", "refused", or what is wrong."""
    for case in picked:
        proto = prepared(case)
        reference = None if proto is None else run(proto, case.feed)
        if proto is None or reference is None:
            continue
        try:
            actual = in_torch(proto, case.feed, folder)
        except InputError as error:
            known = any(pattern.search(str(error)) for pattern in PATTERNS)
            yield case.name, "refused" if known else str(error)
            continue
        yield case.name, "same" if same(reference, actual, EXACT_DB) else "another answer"


def check(picked: tuple[Case, ...], folder: Path, least: int) -> None:
    found = dict(verdicts(picked, folder))
    wrong = {name: why for name, why in found.items() if why not in ("same", "refused")}
    assert not wrong
    assert list(found.values()).count("same") >= least


def test_a_sample_of_the_backend_suite(tmp_path: Path) -> None:
    check(cases()[0][::7], tmp_path, 120)


@pytest.mark.slow
def test_the_whole_backend_suite(tmp_path: Path) -> None:
    check(cases()[0], tmp_path, 980)


# What the suite has no static case for


def both(proto: onnx.ModelProto, feed: dict, folder: Path) -> float:
    """Returns the SQNR in dB of the module's worst output against onnxruntime."""
    references = Session(proto.SerializeToString(), 1).run(feed)
    actual = in_torch(proto, feed, folder)
    assert [(one.shape, one.dtype) for one in actual] == [(r.shape, r.dtype) for r in references]
    return min(sqnr_db(r, a) for r, a in zip(references, actual, strict=True))


def test_a_convolution_net_and_its_names(tmp_path: Path) -> None:
    feed = {"image": gaussian([1, 3, 16, 16])}
    assert both(conv_net(), feed, tmp_path) > EXACT_DB
    module = onnx_module(tmp_path / "case.onnx")
    weights = dict(module.named_parameters())
    assert {name: tuple(one.shape) for name, one in weights.items()} == {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (4, 8, 1, 1),
    }
    exported = torch.export.export(module, (torch.from_numpy(feed["image"]),), strict=False)
    scopes = [
        [*one.meta["nn_module_stack"].values()][-1][0]
        for one in exported.graph.nodes
        if one.op == "call_function"
    ]
    assert scopes == ["n_c", "n_r", "n_y"]  # the nodes' names in the ONNX file


def test_inputs_and_outputs_keep_the_graphs_order(tmp_path: Path) -> None:
    nodes = [node("Relu", "b", "r"), node("Neg", "a", "n")]
    proto = model(nodes, {"b": [2], "a": [2]}, {"n": [2], "r": [2]})
    feed = {"b": np.array([-1, 2], "f4"), "a": np.array([3, 4], "f4")}
    negative, positive = in_torch(proto, feed, tmp_path)
    assert (negative.tolist(), positive.tolist()) == ([-3, -4], [0, 2])


def test_outputs_that_nobody_reads(tmp_path: Path) -> None:
    nodes = [
        node("Split", "x", "a b c", axis=1, num_outputs=3),
        node("TopK", "b k", "v i"),
        node("Add", "a v", "y"),
    ]
    proto = model(nodes, {"x": [2, 6]}, {"y": [2, 2]}, {"k": np.array([2])})
    assert both(proto, {"x": gaussian([2, 6])}, tmp_path) > EXACT_DB


def test_names_that_no_module_can_have(tmp_path: Path) -> None:
    """Names of ONNX are any text: a module's attributes, each other's, or no identifier at all."""
    nodes = [
        onnx.helper.make_node("Add", ["x", "forward"], ["a.b"], name="training"),
        onnx.helper.make_node("Mul", ["a.b", "1/w"], ["a_b"], name="train"),
        onnx.helper.make_node("Sub", ["a_b", "1_w"], ["y"], name=""),
    ]
    weights = {"forward": gaussian([3], 1), "1/w": gaussian([3], 2), "1_w": gaussian([3], 3)}
    proto = model(nodes, {"x": [3]}, {"y": [3]}, weights)
    assert both(proto, {"x": gaussian([3])}, tmp_path) > EXACT_DB


ROWS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ONE_NODE = {
    "cumulative": (node("CumSum", "x i", "y", exclusive=1, reverse=1), {"i": np.array(1)}),
    "backwards": (
        node("Slice", "x s e a t", "y"),
        {"s": [-1, 2], "e": [-100, 0], "a": [2, 1], "t": [-2, -1]},
    ),
    "outside": (node("Slice", "x s e", "y"), {"s": [0, -9], "e": [1, 99]}),
    "turned over": (node("Gather", "x i", "y", axis=2), {"i": np.array([[3, 1], [-1, 0]])}),
    "every second": (node("Gather", "x i", "y", axis=2), {"i": np.array([0, 2])}),
    "one": (node("Gather", "x i", "y", axis=1), {"i": np.array(-2)}),
    "half away": (node("Pad", "x p v", "y"), {"p": [0, -1, 2, 0, 0, -1], "v": np.float32(3)}),
    "mirror": (node("Pad", "x p", "y", mode="reflect"), {"p": [0, 2, 1, 1, 0, 3]}),
    "to scalar": (node("ReduceSum", "x", "y", keepdims=0), {}),
    "flat": (node("Flatten", "x", "y", axis=-1), {}),
    "norm of two axes": (
        node("LayerNormalization", "x g b", "y", axis=1),
        {"g": gaussian([3, 4], 1), "b": gaussian([4], 2)},
    ),
    "slopes": (node("PRelu", "x s", "y"), {"s": gaussian([3, 1], 1)}),
}


@pytest.mark.parametrize("what", ONE_NODE)
def test_forms_of_one_operator(tmp_path: Path, what: str) -> None:
    one, constants = ONE_NODE[what]
    weights = {name: np.asarray(value) for name, value in constants.items()}
    proto = model([one], {"x": [2, 3, 4]}, {"y": []}, weights)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert both(proto, {"x": ROWS - 11.5}, tmp_path) > EXACT_DB


def test_a_lookup_with_negative_indices(tmp_path: Path) -> None:
    """torch's own lookup would read outside the table."""
    nodes = [node("Gather", "table ids", "y"), node("GatherElements", "table more", "z")]
    proto = model(nodes, {}, {"y": [2, 2, 3], "z": [5, 2]}, {"table": gaussian([5, 3])})
    for name, shape in (("ids", [2, 2]), ("more", [5, 2])):
        info = onnx.helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        proto.graph.input.append(info)
    feed = {"ids": np.array([[0, -1], [4, -5]]), "more": np.array([[-1, 0]] * 5)}
    assert both(proto, feed, tmp_path) == float("inf")


def test_classes_spread_over_an_axis(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("OneHot", "i d v", "y", axis=1)]
    constants = {"d": np.array(5), "v": np.array([2, 7], "f4")}
    proto = model(nodes, {"x": [2, 3]}, {"y": [2, 5, 3]}, constants)
    feed = {"x": np.array([[0, 4.7, -1], [3, -5, 2]], "f4")}
    assert both(proto, feed, tmp_path) == float("inf")


# Refusals: one line with the operator, the node, and what to do


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (node("Hardmax", "x", "y"), r"Hardmax \(n_y\) .* there is no translation"),
        (node("Mine", "x", "y", domain="my.own"), r"Mine \(n_y\) .* of domain 'my.own'"),
        (node("Expand", "x x", "y"), r"Expand \(n_y\) .* input 1, 'x', is not a constant"),
        (
            node("Resize", "x r s", "y", mode="linear", antialias=1),
            r"Resize \(n_y\) .* antialias 1",
        ),
    ],
)
def test_what_is_not_translated(tmp_path: Path, one: onnx.NodeProto, words: str) -> None:
    weights = {"s": np.array([1, 2], "f4"), "r": np.zeros(0, "f4")}
    path = save(model([one], {"x": [2, 3]}, {"y": [2, 3]}, weights), tmp_path / "net.onnx")
    with pytest.raises(InputError, match=f"{words}.*; write it with other operators") as caught:
        onnx_module(path)
    assert "\n" not in str(caught.value)


def test_an_attribute_that_nobody_asked_for_is_no_silent_loss(tmp_path: Path) -> None:
    path = save(
        model([node("Relu", "x", "y", alpha=0.5)], {"x": [2]}, {"y": [2]}), tmp_path / "net.onnx"
    )
    with pytest.raises(InputError, match=r"Relu .* attribute alpha is not translated"):
        onnx_module(path)


def test_a_size_that_torch_refuses_names_the_node(tmp_path: Path) -> None:
    path = save(
        model([node("MatMul", "x w", "y")], {"x": [2, 3]}, {"y": [2, 5]}, {"w": gaussian([4, 5])}),
        tmp_path / "net.onnx",
    )
    with pytest.raises(InputError, match=r"MatMul \(n_y\) does not reach torch: mat1 and mat2"):
        onnx_module(path)(torch.zeros(2, 3))
