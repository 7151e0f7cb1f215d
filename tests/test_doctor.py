"""The doctor on small graphs: what falls, what crashes the compiler, what computes wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from support import (
    LIMITS,
    Command,
    conv_net,
    gaussian,
    model,
    needs_compiler,
    node,
    save,
)

from edgeport.cli.doctor import numbers_line
from edgeport.devices import find_device
from edgeport.diagnosis import causes, find_breaks
from edgeport.doctor import examine
from edgeport.errors import InputError
from edgeport.fixes import FIXES, UNKNOWN, find_fix
from edgeport.runtimes.qnn_placement import place
from edgeport.runtimes.samples import load_samples
from edgeport.subgraph import Workbench, run_on_host
from edgeport.types import PassResult

S24 = find_device("s24")


def scatter_net() -> onnx.ModelProto:
    """Returns a net that adds 64 values into 8 places: HTP compiles it in w8a16, and is wrong."""
    weights = {"zeros": np.zeros((1, 4, 8), "f4"), "index": np.tile(np.arange(64) % 8, (1, 4, 1))}
    nodes = [
        node("Relu", "x", "r"),
        node("ScatterElements", "zeros index r", "s", axis=2, reduction="add"),
        node("Relu", "s", "y"),
    ]
    return model(nodes, {"x": [1, 4, 64]}, {"y": [1, 4, 8]}, weights)


def einsum_net() -> onnx.ModelProto:
    """Returns a net with an Einsum that HTP refuses, and a pass replaces."""
    weights = {"e": gaussian((4, 6, 8))}
    nodes = [
        node("Relu", "x", "a"),
        node("Einsum", "a e", "b", equation="byhwc,wkc->byhwk"),
        node("Relu", "b", "y"),
    ]
    return model(nodes, {"x": [1, 2, 3, 4, 8]}, {"y": [1, 2, 3, 4, 6]}, weights)


def aborting_net(channels: int = 8) -> onnx.ModelProto:
    """Returns a net with an exported as_strided, on which the compiler aborts in every precision.

    If it no longer does, the compiler has been mended, and its row in fixes.py is not needed.
    """
    weights = {
        "w1": gaussian((channels, 3, 3, 3), 1, 0.3),
        "axes": np.array([2, 3]),
        "flat": np.array([-1]),
        "index": np.arange(channels).reshape(1, channels, 1, 1),
        "row": np.array([1, channels]),
        "w2": gaussian((channels, 5), 2),
    }
    nodes = [
        node("Conv", "x w1", "a"),
        node("Relu", "a", "b"),
        node("ReduceMean", "b axes", "m", keepdims=1),
        node("Reshape", "m flat", "f"),
        node("Gather", "f index", "g", axis=0),
        node("Transpose", "g", "t", perm=[0, 2, 3, 1]),
        node("Reshape", "t row", "r"),
        node("MatMul", "r w2", "y"),
    ]
    return model(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 5]}, weights)


def gather_to_reshape(graph: ir.Model) -> PassResult:
    """Replaces a Gather whose constant indices count up with the Reshape that it is."""
    found = [one for one in graph.graph if one.op_type == "Gather"]
    for one in found:
        shape = ir.Value(name="gathered", const_value=ir.tensor([1, 8, 1, 1], name="gathered"))
        graph.graph.register_initializer(shape)
        new = ir.node("Reshape", [one.inputs[0], shape], name=one.name)
        new.outputs[0].name = one.outputs[0].name
        graph.graph.insert_before(one, new)
        one.outputs[0].replace_all_uses_with(new.outputs[0])
        graph.graph.remove(one, safe=True)
    return PassResult("gather to Reshape", graph, len(found))


def shrink_net() -> onnx.ModelProto:
    """Returns a net with a Shrink that changes nothing, and for which the NPU has no operator."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Shrink", "a", "b", lambd=0.0, bias=0.0),
        node("Tanh", "b", "y"),
    ]
    shapes = {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}
    return model(nodes, *shapes, {"w": gaussian((4, 4, 1, 1))})


def drop_shrink(graph: ir.Model) -> PassResult:
    """Removes the Shrink that changes nothing."""
    found = [one for one in graph.graph if one.op_type == "Shrink"]
    for one in found:
        one.outputs[0].replace_all_uses_with(one.inputs[0])
        graph.graph.remove(one, safe=True)
    return PassResult("drop Shrink", graph, len(found))


def examined(folder: Path, proto: onnx.ModelProto, precision: str = "float", **options):
    path = save(proto, folder / "net.onnx")
    cache = folder / "cache"  # its key does not know the passes that a test puts in
    return examine(str(path), device="s24", precision=precision, cache_dir=cache, **options)


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_refused_operator_has_its_reason_its_fix_and_its_price(tmp_path: Path) -> None:
    found = examined(tmp_path, einsum_net())
    (fallen,) = [one for one in found.passed.nodes if one.unit == "cpu"]
    assert (fallen.op, fallen.node) == ("Einsum", "n_b")
    assert "byhwc,wkc->byhwk" in fallen.reason and "byhwc" in fallen.raw
    assert "MatMul" in fallen.fix and fallen.applied_by == ""
    assert (found.passed.npu_ops, found.passed.cpu_ops) == (2, 1)
    # Every product of the net is the Einsum's: 2 x 3 x 4 x 8 x 6.
    assert (found.passed.macs, found.passed.npu_macs) == (1152, 0)
    assert found.passed.npu_share == 0.0
    (gap,) = found.passed.breaks
    assert (gap.bytes_in, gap.bytes_out) == (2 * 3 * 4 * 8 * 4, 2 * 3 * 4 * 6 * 4)
    assert found.shortfalls(1.0) == ("0.00% of MACs on the NPU, 100.00% are required",)
    assert found.shortfalls(0.0) == ()
    assert found.sqnr_db is not None and found.sqnr_db > 60
    assert not (tmp_path / "manifest.json").exists()


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_net_that_is_wholly_on_the_npu(tmp_path: Path) -> None:
    found = examined(tmp_path, conv_net())
    assert found.passed.npu_share == 1.0 and not found.passed.breaks
    assert found.passed.macs == 16 * 16 * (8 * 27 + 4 * 8)
    assert found.shortfalls(1.0) == () and causes(found) == ()
    assert {one.status for one in found.classes} == {"right"}
    assert {one.op for one in found.classes} >= {"Conv"}
    assert len([one for one in found.classes if one.op == "Conv"]) == 2  # 3x3 and 1x1


@needs_compiler
def test_the_pass_that_applies_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("edgeport.stages", "edgeport.passes"):
        monkeypatch.setattr(f"{user}.passes_for", lambda target: (drop_shrink,))
    found = examined(tmp_path, shrink_net(), numerics=False)
    (cause,) = causes(found)
    assert (cause.op, cause.captured, cause.passed) == ("Shrink", 1, 0)
    assert cause.applied_by == ("drop Shrink",)
    assert (found.captured.cpu_ops, found.passed.cpu_ops) == (1, 0)
    assert found.passes == (("drop Shrink", 1),)
    assert found.shortfalls(1.0) == ()
    # Without the pass all MACs are on the NPU, and still the graph is not.
    without = replace(found, passed=found.captured)
    assert without.passed.npu_share == 1.0
    assert "1 op on the CPU" in without.shortfalls(1.0)[0] and without.shortfalls(0.99) == ()


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_numbers_that_are_wrong_are_found_and_fail_the_gate(tmp_path: Path) -> None:
    found = examined(tmp_path, scatter_net(), "w8a16")
    assert found.passed.cpu_ops == 0
    assert [one.op for one in found.wrong] == ["ScatterElements"]
    assert found.wrong[0].sqnr_db < 10
    assert found.sqnr_db < 10
    assert found.shortfalls(1.0) == ("wrong numbers on the NPU: ScatterElements",)


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_graph_that_is_wrong_though_its_classes_are_right_is_told(tmp_path: Path) -> None:
    found = examined(tmp_path, scatter_net(), "float")
    assert found.sqnr_db > 40 and found.host_sqnr_db > 100 and not found.wrong_as_a_whole
    # What a fusion of two right operators did to a network before a pass kept them apart.
    lost = replace(found, sqnr_db=-2.0, host_sqnr_db=22.6)
    assert lost.wrong_as_a_whole
    assert lost.shortfalls(0.5) == ("the whole graph is wrong on the NPU, -2.0 dB",)
    assert "THE WHOLE GRAPH IS WRONG ON THE NPU: -2.0 dB" in numbers_line(lost)
    assert not replace(found, sqnr_db=13.1, host_sqnr_db=13.2).wrong_as_a_whole


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_crash_is_reduced_to_its_operators_and_kept(tmp_path: Path) -> None:
    found = examined(tmp_path, aborting_net(), output_dir=tmp_path / "out")
    crash, small = found.passed.crash, found.passed.reduced
    assert crash is not None and crash.reason == "signal" and "SIGABRT" in crash.what
    assert "Assertion" in crash.last_line
    assert found.passed.npu_share == 0.0 and found.sqnr_db is None
    assert small is not None and small.minimal
    ops = [op for op, _ in small.nodes]
    assert ops[-2:] == ["Gather", "Transpose"] and len(ops) < small.total == 8
    assert "replace the Gather by Reshape" in small.fix and small.applied_by == ""
    assert found.shortfalls(0.0) == ("the compiler gives nothing",)
    # The kept graph does it too, and its inputs are real ones.
    repro = tmp_path / "out" / "repro.onnx"
    again, _ = place(repro, tmp_path, S24, "float", LIMITS)
    assert again.crash is not None and again.crash.same_as(crash)
    (feed,) = load_samples(tmp_path / "out" / "repro_inputs.npz")
    assert np.ptp(run_on_host(onnx.load(repro), feed)[-1]) > 0
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"doctor.json", "manifest.json", "repro.onnx", "repro_inputs.npz"}
    written = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert written["passed"]["reduced"]["nodes"] == [list(one) for one in small.nodes]


@needs_compiler
def test_the_pass_that_avoids_a_crash_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("edgeport.stages", "edgeport.passes"):
        monkeypatch.setattr(f"{user}.passes_for", lambda target: (gather_to_reshape,))
    found = examined(tmp_path, aborting_net(), numerics=False)
    assert found.captured.crash is not None and found.captured.reduced is not None
    assert found.captured.reduced.applied_by == "gather to Reshape"
    assert found.passed.crash is None and found.passed.npu_share == 1.0
    assert found.shortfalls(1.0) == ()


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_compiler_that_does_not_end_is_a_finding_of_these_limits_only(tmp_path: Path) -> None:
    found = examined(tmp_path, conv_net(), timeout_s=0.2)
    assert found.passed.crash is not None and found.passed.crash.reason == "timeout"
    assert found.passed.reduced is not None and "--timeout" in found.passed.reduced.fix
    assert examined(tmp_path, conv_net(), numerics=False).passed.npu_share == 1.0


@needs_compiler
def test_a_chip_without_fp16_is_a_finding(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="16-bit float"):
        examine(str(path), device="rb3-gen2")


@needs_compiler
def test_the_command(tmp_path: Path, run_cli: Command) -> None:
    save(shrink_net(), tmp_path / "net.onnx")
    words = ("doctor", "net.onnx", "--device", "s24", "--no-numerics")
    table = run_cli(*words, "--require-npu", "100%", "-v")
    assert table.returncode == 1, table.stderr
    assert table.stdout.splitlines()[1].startswith("npu 4 ops  cpu 1 ops  100.00% of 1.02 k MACs")
    assert "has no such operator" in table.stdout
    assert "--require-npu 100%: NOT held" in table.stdout
    assert table.stderr == ""
    document = run_cli(*words, "--json")
    assert document.returncode == 0, document.stderr
    assert json.loads(document.stdout)["causes"][0]["op"] == "Shrink"
    assert {path.name for path in tmp_path.iterdir()} - {"net.onnx"} == set()
    wrong = run_cli(*words, "--require-npu", "101%")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


# The table of fixes


def test_each_row_of_the_table_is_reached_and_no_other_answers_first() -> None:
    examples = {
        "Scatter.*": "ScatterND",
        "Gather.*|TopK|ArgMax|ArgMin": "TopK",
        ".*Gather.*Transpose.*": "Reshape Gather Transpose",
    }
    told = {
        ".*rank.*": "this rank",
        ".*NHWC.*": "the NHWC format",
        ".*ran out of memory.*": "the compiler ran out of memory",
        ".*depthwise 1x1.*": "signal: uint16[4], depthwise 1x1",
        "timeout:.*": "timeout: float[4]",
        "memory:.*": "memory: float[4]",
    }
    for fix in FIXES:
        op = examples.get(fix.ops, fix.ops.split("|")[0].replace(".*", "Shrink"))
        reason = told.get(fix.reason, fix.reason.replace(".*", "something"))
        assert find_fix(fix.trouble, op, reason) == fix.sentence


def test_an_operator_without_a_known_fix_says_so() -> None:
    assert find_fix("refused", "Det", "something new") == UNKNOWN
    assert "none known" in UNKNOWN


# Cutting subgraphs out


def net_with_units() -> onnx.ModelProto:
    """Returns Conv -> Relu with QuantizeLinear and DequantizeLinear as onnxruntime writes them."""
    weights = {
        "wq": np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1),
        "scale": np.array(0.1, "f4"),
        "zero": np.array(0, np.int8),
        "ys": np.array(0.02, "f4"),
        "yz": np.array(9, np.uint8),
    }
    nodes = [
        node("DequantizeLinear", "wq scale zero", "w"),
        node("QuantizeLinear", "x ys yz", "xq"),
        node("DequantizeLinear", "xq ys yz", "xd"),
        node("Conv", "xd w", "c"),
        node("QuantizeLinear", "c ys yz", "cq"),
        node("DequantizeLinear", "cq ys yz", "cd"),
        node("Relu", "cd", "r"),
        node("Neg", "cd", "n"),
    ]
    shapes = {"r": [1, 2, 3, 3], "n": [1, 2, 3, 3]}
    return model(nodes, {"x": [1, 4, 3, 3]}, shapes, weights)


def test_units_keep_an_operator_with_its_converters() -> None:
    bench = Workbench(net_with_units(), {"x": gaussian((1, 4, 3, 3))})
    # The input's QuantizeLinear has no operator before it; both users of cd have its converter.
    assert bench.units == ((1,), (0, 2, 3, 4), (5, 6), (5, 7))
    assert bench.merge((2, 3)) == (5, 6, 7)


def test_a_cut_computes_what_it_did_in_the_whole_graph() -> None:
    bench = Workbench(net_with_units(), {"x": gaussian((1, 4, 3, 3))})
    for unit in bench.units:
        cut = bench.cut(unit)
        onnx.checker.check_model(cut)
        inputs, outputs = bench.border(unit)
        answers = run_on_host(cut, bench.values(inputs))
        for name, answer in zip(outputs, answers, strict=True):
            assert np.array_equal(answer, bench.values([name])[name])
    assert bench.border(bench.units[1]) == (("xq",), ("cq",))


def test_nodes_get_names_of_their_own() -> None:
    proto = net_with_units()
    for one in proto.graph.node:
        one.name = "same"
    names = [one.name for one in Workbench(proto, {}).nodes]
    assert len(set(names)) == len(names) and names[0] == "same"


def test_types_that_no_inference_gives_come_from_the_host() -> None:
    nodes = [node("NonZero", "x", "p"), node("Transpose", "p", "q"), node("Cast", "q", "y", to=1)]
    proto = model(nodes, {"x": [2, 2]}, {"y": [4, 2]})
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    bench = Workbench(proto, {"x": np.ones((2, 2), "f4")})
    assert bench.types["p"].shape == (2, 4) and bench.types["y"].shape == (4, 2)


def test_breaks_are_the_islands_on_the_cpu() -> None:
    bench = Workbench(net_with_units(), {"x": gaussian((1, 4, 3, 3))})
    units = dict.fromkeys((one.name for one in bench.nodes), "npu")
    assert find_breaks(bench, units) == ()
    units["n_c"] = units["n_w"] = "cpu"  # the convolution and its weight's converter
    (gap,) = find_breaks(bench, units)
    assert set(gap.nodes) == {"n_c", "n_w"}
    assert (gap.bytes_in, gap.bytes_out) == (4 * 9 * 4, 2 * 9 * 4)
    assert find_breaks(bench, dict.fromkeys(units, "cpu")) == ()


def test_a_cut_keeps_what_a_subgraph_takes_from_outside() -> None:
    then = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["a"], ["t"])],
        "then",
        [],
        [onnx.helper.make_tensor_value_info("t", 1, [2])],
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Abs", ["a"], ["o"])],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("o", 1, [2])],
    )
    nodes = [node("Relu", "x", "a"), node("If", "flag", "y", then_branch=then, else_branch=other)]
    proto = model(nodes, {"x": [2]}, {"y": [2]})
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    bench = Workbench(proto, {"x": np.array([1, -1], "f4")})
    assert bench.border((1,)) == (("a",), ("y",))
    (answer,) = run_on_host(bench.cut((1,)), bench.values(["a"]))
    assert answer.tolist() == [-1, 0]
