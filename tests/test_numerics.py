"""One operator of each class in the emulator against the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from support import LIMITS, conv_net, gaussian, model, needs_compiler, node, save
from test_doctor import aborting_net

from edgeport.devices import find_device
from edgeport.numerics import ClassResult, compare_classes, op_classes, worst_db
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes.qnn_classes import run_each
from edgeport.runtimes.samples import save_samples
from edgeport.subgraph import Workbench
from edgeport.types import plain

S24 = find_device("s24")


def inverses() -> onnx.ModelProto:
    """Returns two Reciprocals, of which only the second has results above 1, and an Add."""
    weights = {"four": np.array(4, "f4"), "tenth": np.array(0.1, "f4")}
    nodes = [
        node("Mul", "x x", "s"),
        node("Add", "s four", "d"),
        node("Reciprocal", "d", "small"),
        node("Add", "s tenth", "e"),
        node("Reciprocal", "e", "large"),
        node("Add", "small large", "y"),
    ]
    shape = [1, 8, 16, 16]
    return model(nodes, {"x": shape}, {"y": shape}, weights)


def quantized(folder: Path, proto: onnx.ModelProto, name: str, shape) -> Workbench:
    source = save(proto, folder / "float.onnx")
    feeds = [{name: gaussian(shape, seed, 0.1)} for seed in range(4)]
    quantize_file(source, folder / "q.onnx", CONFIGS["w8a16"], iter(feeds))
    return Workbench(onnx.load(folder / "q.onnx"), {name: gaussian(shape, 99, 0.1)})


@needs_compiler
def test_a_fault_that_depends_on_the_values_is_seen(tmp_path: Path) -> None:
    bench = quantized(tmp_path, inverses(), "x", [1, 8, 16, 16])
    names = [one.name for one in bench.nodes]
    results = compare_classes(bench, S24, "w8a16", LIMITS, names)
    by_op = {one.op: one for one in results}
    assert by_op["Reciprocal"].status == "wrong"
    assert by_op["Reciprocal"].node == "n_large"  # the widest of the two stands for them
    assert by_op["Reciprocal"].nodes == 2
    assert {one.status for one in results if one.op != "Reciprocal"} == {"right"}
    assert worst_db(results) == by_op["Reciprocal"].sqnr_db < 20
    assert [ClassResult.from_dict(one) for one in plain(results)] == list(results)


@needs_compiler
def test_a_crash_is_the_fault_of_the_graph_that_ran(tmp_path: Path) -> None:
    feeds = [{"image": gaussian((1, 3, 16, 16), 1)}, {"x": gaussian((1, 3, 6, 6), 2)}]
    models = [
        save(conv_net(), tmp_path / "right.onnx"),
        save(aborting_net(), tmp_path / "not.onnx"),
    ]
    inputs = [tmp_path / "right.npz", tmp_path / "not.npz"]
    for path, feed in zip(inputs, feeds, strict=True):
        save_samples(path, [feed])
    order = (0, 1, 0, 1)
    answers = run_each(
        [models[i] for i in order], [inputs[i] for i in order], tmp_path, S24, "float", LIMITS
    )
    assert ["SIGABRT" in one.problem for one in answers] == [False, True, False, True]
    assert [one.outputs is None for one in answers] == [False, True, False, True]
    assert np.array_equal(*(answers[i].outputs["output_0"] for i in (0, 2)))


def test_classes_differ_by_type_rank_and_kernel() -> None:
    weights = {
        "w": gaussian((4, 4, 3, 3)),
        "d": gaussian((4, 1, 3, 3)),
        "p": gaussian((4, 4, 1, 1)),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x w", "a", **pads),
        node("Conv", "a d", "b", group=4, **pads),
        node("Conv", "b p", "c"),
        node("Conv", "c w", "e", **pads),
        node("Relu", "e", "y"),
    ]
    shape = [1, 4, 8, 8]
    bench = Workbench(model(nodes, {"x": shape}, {"y": shape}, weights), {"x": gaussian(shape)})
    found = op_classes(bench, [one.name for one in bench.nodes])
    assert {key: len(units) for key, units in found.items()} == {
        ("Conv", "float[4], float[4] const, 3x3"): 2,
        ("Conv", "float[4], float[4] const, depthwise 3x3"): 1,
        ("Conv", "float[4], float[4] const, 1x1"): 1,
        ("Relu", "float[4]"): 1,
    }
    assert op_classes(bench, ["n_y"]) == {("Relu", "float[4]"): [4]}
