"""The peak of activations: small graphs by hand, random ones against an allocator, real ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support import conv_net, model, node, save

from edgeport.errors import InputError
from edgeport.liveness import VIEWS, Memory, memory_of, peak_activation_bytes

GRID = {"s": np.float32(0.1), "z": np.uint8(128)}
OTHER = {"s2": np.float32(0.2), "z2": np.uint8(7)}
EIGHT = {"x": [8]}  # 32 bytes of floats, 8 of integers


def measured(tmp_path: Path, *arguments: object, **more: object) -> Memory:
    return memory_of(save(model(*arguments, **more), tmp_path / "net.onnx"))  # type: ignore[arg-type]


def quantize(source: str, target: str, grid: str = "s z") -> onnx.NodeProto:
    return node("QuantizeLinear", f"{source} {grid}", target)


def dequantize(source: str, target: str, grid: str = "s z") -> onnx.NodeProto:
    return node("DequantizeLinear", f"{source} {grid}", target)


def test_a_chain_holds_two_tensors(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    assert measured(tmp_path, nodes, EIGHT, {"y": [8]}) == Memory(64, 0, "n_a")


def test_a_skip_connection_holds_three(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Add", "a b", "y")]
    assert measured(tmp_path, nodes, EIGHT, {"y": [8]}) == Memory(96, 0, "n_y")


def test_inputs_end_with_their_last_reader_and_outputs_last(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "y"), node("Relu", "w", "a"), node("Relu", "a", "v")]
    found = measured(tmp_path, nodes, {"x": [8], "w": [2]}, {"y": [8], "v": [2]})
    assert found == Memory(32 + 32 + 8, 0, "n_y")  # x, y and w; then y, w, a; then y, a, v
    unread = [node("Relu", "w", "a"), node("Relu", "a", "y")]
    assert measured(tmp_path, unread, {"x": [8], "w": [2]}, {"y": [2]}) == Memory(48, 0, "n_a")


def test_weights_are_counted_apart_and_folded(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "w", "t", perm=[1, 0]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1]))),
        node("MatMul", "x t", "a"),
        node("Add", "a c", "y"),
    ]
    weights = {"w": np.zeros((2, 8), np.float32)}
    found = measured(tmp_path, nodes, {"x": [1, 8]}, {"y": [1, 2]}, weights)
    assert found == Memory(40, 64 + 4, "n_a")  # x and a


def test_weights_of_four_bits_are_packed(tmp_path: Path) -> None:
    four = helper.make_tensor("w", TensorProto.INT4, [3, 5], np.zeros(15, np.int8))
    proto = model(
        [node("DequantizeLinear", "w s", "d"), node("MatMul", "x d", "y")],
        {"x": [1, 3]},
        {"y": [1, 5]},
        {"s": np.float32(1)},
    )
    proto.graph.initializer.append(four)
    assert memory_of(save(proto, tmp_path / "four.onnx")) == Memory(32, 8 + 4, "n_y")


@pytest.mark.parametrize("operator", sorted(VIEWS))
def test_views_share_their_sources_memory(tmp_path: Path, operator: str) -> None:
    more = {"Reshape": " shape", "Squeeze": " axes", "Unsqueeze": " axes"}.get(operator, "")
    shape = {"Unsqueeze": [1, 1, 8], "Squeeze": [8]}.get(operator, [1, 8])
    weights = {"shape": np.int64([1, 8]), "axes": np.int64([0])}
    nodes = [node("Relu", "x", "a"), node(operator, f"a{more}", "v"), node("Relu", "v", "y")]
    found = measured(tmp_path, nodes, {"x": [1, 8]}, {"y": shape}, weights)
    assert found.peak_activation_bytes == 64  # x and a; a, which is v; v and y


def test_a_view_keeps_its_source_alive(tmp_path: Path) -> None:
    """a lives as v until n_y, beside b: 32 + 32 + 32."""
    nodes = [
        node("Relu", "x", "a"),
        node("Identity", "a", "v"),
        node("Relu", "a", "b"),
        node("Add", "v b", "y"),
    ]
    assert measured(tmp_path, nodes, EIGHT, {"y": [8]}) == Memory(96, 0, "n_y")


def test_between_a_pair_the_integers_count(tmp_path: Path) -> None:
    """x and q, 32 + 8; q and p; p and r; r and y: the floats d, f, e and g are never made."""
    nodes = [
        quantize("x", "q"),
        dequantize("q", "d"),
        node("Softmax", "d", "f"),
        quantize("f", "p"),
        dequantize("p", "e"),
        node("Softmax", "e", "g"),
        quantize("g", "r"),
        dequantize("r", "y"),
    ]
    found = measured(tmp_path, nodes, EIGHT, {"y": [8]}, GRID)
    assert found == Memory(32 + 8, 5, "n_q")


def test_floats_that_an_operator_in_float_reads_are_there(tmp_path: Path) -> None:
    """A second reader of d takes the floats, as no pair is behind it, and Add so too."""
    nodes = [
        quantize("x", "q"),
        dequantize("q", "d"),
        node("Softmax", "d", "f"),
        quantize("f", "p"),
        dequantize("p", "e"),
        node("Exp", "d", "g"),
        node("Add", "e g", "y"),
    ]
    found = measured(tmp_path, nodes, EIGHT, {"y": [8]}, GRID)
    # n_q: x, q. n_d: q, d. n_f: q, d, p. n_e: p, e, d. n_g: e, d, g. n_y: e, g, y.
    assert found == Memory(96, 5, "n_g")


def test_an_operator_whose_output_is_a_graph_output_writes_floats(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "q"),
        dequantize("q", "d"),
        node("Softmax", "d", "y"),
        quantize("y", "p"),
    ]
    proto = model(nodes, EIGHT, {"y": [8]}, GRID)
    proto.graph.output.append(helper.make_tensor_value_info("p", TensorProto.UINT8, [8]))
    # x 32, q 8; q 8, d 32; d 32, y 32; y 32, p 8
    assert memory_of(save(proto, tmp_path / "net.onnx")) == Memory(64, 5, "n_y")


def test_a_float_constant_beside_integers_keeps_the_operator_in_float(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "q"), dequantize("q", "d"), node("Mul", "d k", "f"), quantize("f", "p"),
        dequantize("p", "y"),
    ]  # fmt: skip
    weights = {**GRID, "k": np.ones(8, np.float32)}
    found = measured(tmp_path, nodes, EIGHT, {"y": [8]}, weights)
    assert found == Memory(64, 5 + 32, "n_f")  # d and f


def test_a_relu_in_front_of_the_pair_is_part_of_the_kernel(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "q"),
        dequantize("q", "d"),
        node("Softmax", "d", "f"),
        node("Relu", "f", "g"),
        quantize("g", "p"),
        dequantize("p", "y"),
    ]
    assert measured(tmp_path, nodes, EIGHT, {"y": [8]}, GRID) == Memory(40, 5, "n_q")


@pytest.mark.parametrize(("grid", "peak"), [("s z", 8 * 2), ("s2 z2", 8 * 2 + 8)])
def test_a_view_of_integers_shares_only_what_has_the_same_grid(
    tmp_path: Path, grid: str, peak: int
) -> None:
    """Integers at the edges: x, its view v, and at the end both v and w, of 8 bytes each."""
    proto = model(
        [
            dequantize("x", "d"),
            node("Reshape", "d shape", "f"),
            quantize("f", "v", grid),
            dequantize("v", "e", grid),
            node("Softmax", "e", "g"),
            quantize("g", "w"),
            dequantize("x", "h"),
            node("Reshape", "h shape", "i"),
            quantize("i", "u"),
        ],
        EIGHT,
        {"w": [1, 8], "u": [1, 8]},
        {**GRID, **OTHER, "shape": np.int64([1, 8])},
        dtype=TensorProto.UINT8,
    )
    found = memory_of(save(proto, tmp_path / "net.onnx"))
    assert found.peak_activation_bytes == peak


def branches(large: int) -> onnx.NodeProto:
    """Returns If: the one branch makes `large` floats on its way to its output, the other none."""
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "wide"], ["t"]),
            helper.make_node("ReduceSum", ["t", "first"], ["then_y"], keepdims=0),
        ],
        "then",
        [],
        [value("then_y", TensorProto.FLOAT, [8])],
        [numpy_helper.from_array(np.int64([large // 8, 8]), "wide"),
         numpy_helper.from_array(np.int64([0]), "first")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["else_y"])],
        "else",
        [],
        [value("else_y", TensorProto.FLOAT, [8])],
    )
    return helper.make_node("If", ["c"], ["a"], "choose", then_branch=then, else_branch=other)


def test_the_larger_branch_counts_while_if_runs(tmp_path: Path) -> None:
    proto = model([branches(80), node("Relu", "a", "y")], EIGHT, {"y": [8]})
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    found = memory_of(save(proto, tmp_path / "if.onnx"))
    # x 32, c 1, a 32 (the branch's output is If's), and t 320; its two constants are weights
    assert found == Memory(32 + 1 + 32 + 320, 16 + 8, "choose")


def test_a_loops_body_counts_with_its_own_inputs_and_outputs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Relu", ["v"], ["w"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         value("v", TensorProto.FLOAT, [8])],
        [value("on", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, [8])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "c", "x"], ["y"], "again", body=body)
    weights = {"n": np.int64(3), "c": np.bool_(True)}
    found = measured(tmp_path, [loop], EIGHT, {"y": [8]}, weights)
    # x, y; in the body i 8, go (which is on) 1, v 32, w 32
    assert found == Memory(64 + 8 + 1 + 64, 9, "again")


def test_what_has_no_static_shape_is_named(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "a"), node("Relu", "a", "y")], {"x": ["n", 3]}, {"y": [2, 3]})
    with pytest.raises(InputError, match=r"dynamic\.onnx: tensor 'x' has no static shape"):
        memory_of(save(proto, tmp_path / "dynamic.onnx"))
    nodes = [node("NonZero", "x", "i"), node("Cast", "i", "y", to=TensorProto.FLOAT)]
    proto = model(nodes, EIGHT, {"y": [1, 8]})
    with pytest.raises(InputError, match="tensor 'i' has no static shape"):
        memory_of(save(proto, tmp_path / "data.onnx"))


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(InputError, match=r"text\.onnx is not a readable ONNX file"):
        memory_of(tmp_path / "text.onnx")
    with pytest.raises(InputError, match=r"absent\.onnx is not a readable ONNX file"):
        memory_of(tmp_path / "absent.onnx")


def test_weights_beside_the_file_are_not_read(tmp_path: Path) -> None:
    onnx.save(conv_net(), tmp_path / "own.onnx")
    onnx.save(
        conv_net(), tmp_path / "beside.onnx", save_as_external_data=True, location="w.data",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "w.data").unlink()
    found = memory_of(tmp_path / "beside.onnx")
    # c and r, 8 channels each; weights of 8x3x3x3, 8 and 4x8
    assert found == Memory(2 * 8 * 256 * 4, 4 * (216 + 8 + 32), "n_r")
    assert found == memory_of(tmp_path / "own.onnx")
    assert peak_activation_bytes(tmp_path / "own.onnx") == found.peak_activation_bytes


Plan = tuple[tuple[str, int, int], ...]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, tuple[int, ...]]:
    """Draws operators (kind, first and second operand) and which tensors are outputs."""
    count = draw(st.integers(1, 12))
    kinds = st.sampled_from(["Relu", "Concat", "Identity", "ReduceSum"])
    steps = [
        (draw(kinds), draw(st.integers(0, at + 1)), draw(st.integers(0, at + 1)))
        for at in range(count)
    ]
    last = count + 1
    kept = draw(st.lists(st.integers(2, last), unique=True, max_size=3))
    return tuple(steps), tuple(sorted({*kept, last}))


def build(plan: Plan, outputs: Sequence[int]) -> tuple[onnx.ModelProto, list[int]]:
    """Returns the model of a plan, whose first two tensors are inputs, and the tensors' sizes."""
    sizes, nodes = [3, 5], []
    for kind, one, other in plan:
        names = f"t{one} t{other}" if kind == "Concat" else f"t{one}"
        more = {"Concat": {"axis": 0}, "ReduceSum": {"keepdims": 1}}.get(kind, {})
        nodes.append(node(kind, names, f"t{len(sizes)}", **more))
        size = {"Concat": sizes[one] + sizes[other], "ReduceSum": 1}.get(kind, sizes[one])
        sizes.append(size)
    shapes = {f"t{at}": [sizes[at]] for at in outputs}
    return model(nodes, {"t0": [3], "t1": [5]}, shapes), sizes


def allocated(plan: Plan, outputs: Sequence[int], sizes: Sequence[int]) -> int:
    """Returns the peak bytes of an allocator that counts the readers left of each buffer."""
    buffer = list(range(2))
    for kind, one, _ in plan:
        buffer.append(buffer[one] if kind == "Identity" else len(buffer))
    operands = [
        {buffer[one], buffer[other] if kind == "Concat" else buffer[one]}
        for kind, one, other in plan
    ]
    held, peak = {0, 1}, 0
    for at in range(len(plan)):
        held.add(buffer[at + 2])
        peak = max(peak, sum(sizes[one] * 4 for one in held))
        later = {one for names in operands[at + 1 :] for one in names}
        held &= later | {buffer[one] for one in outputs}
    return peak


@settings(max_examples=150, deadline=None)
@given(plans())
def test_random_graphs_take_what_an_allocator_takes(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Plan, tuple[int, ...]]
) -> None:
    plan, outputs = drawn
    proto, sizes = build(plan, outputs)
    path = save(proto, tmp_path_factory.getbasetemp() / "random.onnx")
    assert peak_activation_bytes(path) == allocated(plan, outputs, sizes)


def build_quantized(plan: Plan, outputs: Sequence[int], sizes: Sequence[int]) -> onnx.ModelProto:
    """Returns the same operators on integers, each between its own pairs."""
    nodes = []
    for at, (kind, *operands) in enumerate(plan):
        taken = operands if kind == "Concat" else operands[:1]
        more = {"Concat": {"axis": 0}, "ReduceSum": {"keepdims": 1}}.get(kind, {})
        nodes += [dequantize(f"t{one}", f"d{at}_{index}") for index, one in enumerate(taken)]
        names = " ".join(f"d{at}_{index}" for index in range(len(taken)))
        nodes += [node(kind, names, f"f{at}", **more), quantize(f"f{at}", f"t{at + 2}")]
    shapes = {f"t{at}": [sizes[at]] for at in outputs}
    return model(nodes, {"t0": [3], "t1": [5]}, shapes, GRID, dtype=TensorProto.UINT8)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_random_graphs_of_integers_take_a_byte_for_each_value(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Plan, tuple[int, ...]]
) -> None:
    plan, outputs = drawn
    _, sizes = build(plan, outputs)
    proto = build_quantized(plan, outputs, sizes)
    path = save(proto, tmp_path_factory.getbasetemp() / "random_integers.onnx")
    assert peak_activation_bytes(path) * 4 == allocated(plan, outputs, sizes)


def test_a_thousand_nodes_take_under_a_second(tmp_path: Path) -> None:
    nodes = [node("Add", f"t{at} t{at // 2}", f"t{at + 1}") for at in range(1000)]
    path = save(model(nodes, {"t0": [8]}, {"t1000": [8]}), tmp_path / "long.onnx")
    started = time.process_time()
    found = memory_of(path)
    assert time.process_time() - started < 1
    assert found == memory_of(path)
    assert found == Memory(252 * 32, 0, "n_t500")  # t249 to t500
