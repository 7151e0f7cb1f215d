"""The runtime tflite: what its file computes, takes and gives, and where its operators run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import (
    conv_net,
    gaussian,
    model,
    node,
    save,
    shrink_net,
)

import edgeport
from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import InputError, StageFailed
from edgeport.runtimes import CompileRequest, find_runtime
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples

pytest.importorskip("litert_torch", reason="needs tflite: pip install 'edgeport[tflite]'")

from edgeport.runtimes import tflite
from edgeport.runtimes.tflite_delegate import (
    read_operators,
)

S24 = find_device("s24")
S24_TFLITE = {"device": "s24", "target_runtimes": ("tflite",)}


def compiled(
    folder: Path, proto: onnx.ModelProto, precision: str = "float", feeds: list | None = None
) -> dict:
    """Compiles in this process, whose imports the tests share; returns the facts."""
    calibration = None
    if feeds is not None:
        save_samples(folder / "calibration.npz", feeds)
        calibration = str(folder / "calibration.npz")
    source = save(proto, folder / "net.onnx")
    return tflite.compile_model(
        CompileRequest(str(source), str(folder), precision, {}, calibration)
    )


@pytest.fixture(autouse=True, scope="module")
def _convert_once() -> Iterator[None]:
    """Keeps what the converter gave for each graph: its seconds are most of these tests'."""
    convert, kept = tflite._converted, {}

    def converted(path: str, inputs: list) -> tuple:
        content = Path(path).read_bytes()
        if content not in kept:
            kept[content] = convert(path, inputs)
        return kept[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite, "_converted", converted)
        yield


def image_feeds(count: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    return [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(start, start + count)]


def least_db(folder: Path, proto: onnx.ModelProto, feed: dict) -> float:
    """Returns the SQNR of the file's worst output against onnxruntime, output by output."""
    actual = tflite.load(folder, {}, 1).run(feed)
    references = Session(proto.SerializeToString(), 1).run(feed)
    assert [one.shape for one in actual] == [one.shape for one in references]
    return min(sqnr_db(r, a) for r, a in zip(references, actual, strict=True))


def odd_names() -> onnx.ModelProto:
    """Returns (2a - b, a + 3b): equal shapes, and names that are no identifiers, out of order."""
    nodes = [
        helper.make_node("Mul", ["9/b:0", "two"], ["doubled"], name="double"),
        helper.make_node("Sub", ["doubled", "a"], ["z out"], name="subtract"),
        helper.make_node("Mul", ["a", "three"], ["tripled"], name="triple"),
        helper.make_node("Add", ["9/b:0", "tripled"], ["1"], name="add"),
    ]
    weights = {"two": np.float32(2), "three": np.float32(3)}
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    return model(nodes, {"9/b:0": [2, 3], "a": [2, 3]}, {"z out": [2, 3], "1": [2, 3]}, arrays)


@pytest.mark.parametrize("precision", ["float", "w8a8"])
def test_names_and_order_are_the_graphs(tmp_path: Path, precision: str) -> None:
    """Two inputs of one shape and two outputs: exchanged, each would be far off."""
    feeds = [{"9/b:0": gaussian([2, 3], i), "a": gaussian([2, 3], i + 50)} for i in range(9)]
    facts = compiled(tmp_path, odd_names(), precision, feeds if precision != "float" else None)
    assert [one["name"] for one in facts["inputs"]] == ["9/b:0", "a"]
    assert [one["name"] for one in facts["outputs"]] == ["z out", "1"]
    assert {one["dtype"] for one in (*facts["inputs"], *facts["outputs"])} == {"float32"}
    assert least_db(tmp_path, odd_names(), feeds[0]) > (100 if precision == "float" else 25)
    # By place, as an app may set them, as well as by name.
    session = tflite.load(tmp_path, {}, 1)
    details = session._interpreter.get_input_details()
    assert [one["name"] for one in details] == ["9/b:0", "a"]
    assert [one["name"] for one in session._interpreter.get_output_details()] == ["z out", "1"]


# The quantized file is near the float one, and no nearer than its grids allow.
@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [
        ("float", 100, 200),
        ("w8a8", 28, 50),
        ("w8a16", 35, 60),
        ("w8-dynamic", 30, 60),
        ("w8", 35, 60),
        ("w4", 12, 30),
    ],
)
def test_precisions(tmp_path: Path, precision: str, low: float, high: float) -> None:
    feeds = image_feeds(8) if precision in ("w8a8", "w8a16") else None
    facts = compiled(tmp_path, conv_net(), precision, feeds)
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 3, 16, 16]}]
    assert facts["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 4, 16, 16]}]
    assert low < least_db(tmp_path, conv_net(), image_feeds(1, 100)[0]) < high


def test_four_bits_where_there_are_such_kernels(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Conv", "c d", "y", group=8, pads=[1, 1, 1, 1]),
    ]
    weights = {"w": gaussian([8, 4, 1, 1], 1), "d": gaussian([8, 1, 3, 3], 2)}
    proto = model(nodes, {"x": [1, 4, 6, 6]}, {"y": [1, 8, 6, 6]}, weights)
    compiled(tmp_path, proto, "w4")
    operators = read_operators(tmp_path / tflite.FILE)
    held = sorted(one.inputs[0].dtype for one in operators if one.name == "DEQUANTIZE")
    assert held == ["INT4", "INT8"]


def test_a_normalisation_stays_in_floats(tmp_path: Path) -> None:
    """Its parts, each on a grid of its own, would lose most of what 16 bits hold."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("LayerNormalization", "a g b", "n"),
        node("MatMul", "n w", "y"),
    ]
    weights = {"w": gaussian([32, 32], 1), "g": gaussian([32], 2), "b": gaussian([32], 3)}
    proto = model(nodes, {"x": [4, 32]}, {"y": [4, 32]}, weights)
    feeds = [{"x": gaussian([4, 32], seed)} for seed in range(8)]
    compiled(tmp_path, proto, "w8a16", feeds)
    assert least_db(tmp_path, proto, feeds[0]) > 40
    types = {one.name: one.inputs[0].dtype for one in read_operators(tmp_path / tflite.FILE)}
    assert (types["MEAN"], types["FULLY_CONNECTED"]) == ("FLOAT32", "INT16")


def test_the_ranges_are_the_extremes_of_the_feeds(tmp_path: Path) -> None:
    """A moving average would depend on the order, and clip the one large feed."""
    feeds = [*image_feeds(7), {"image": 20 * gaussian([1, 3, 16, 16], 7)}]
    files = []
    for order in (feeds, feeds[::-1]):
        compiled(tmp_path, conv_net(), "w8a8", order)
        files.append((tmp_path / tflite.FILE).read_bytes())
    assert files[0] == files[1]
    assert least_db(tmp_path, conv_net(), feeds[-1]) > 25


def half(*shape: int) -> np.ndarray:
    return gaussian(shape, sum(shape), 0.5)


MANY = (  # each reads the picture x [1, 4, 9, 9], and gives one output
    node("AveragePool", "x", "pool_edge", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    node("AveragePool", "x", "pool_counted", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    node("MaxPool", "x", "max", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    node("MaxPool", "x", "max_uneven", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    node("Conv", "x k", "conv_uneven", group=2, strides=[2, 1], pads=[0, 1, 2, 0]),
    node("Conv", "x k", "conv_dilated", group=2, dilations=[2, 2], pads=[2, 2, 2, 2]),
    node("ConvTranspose", "x t", "up", strides=[2, 2], pads=[1, 1, 0, 0]),
    node("ConvTranspose", "x t", "up_groups", group=2, strides=[2, 2], output_padding=[1, 1]),
    node("Resize", "x no no seven", "nearest", coordinate_transformation_mode="asymmetric",
         nearest_mode="floor"),
    node("Resize", "x no no twice", "linear", mode="linear"),
    node("Resize", "x no no seven", "linear_down", mode="linear"),
    node("Resize", "x no no twice", "corners", mode="linear",
         coordinate_transformation_mode="align_corners"),
    node("Resize", "x no no twice", "cubic", mode="cubic"),
    node("Pad", "x around", "mirror", mode="reflect"),
    node("Pad", "x around", "edge", mode="edge"),
    node("Pad", "x around", "wrap", mode="wrap"),
    node("InstanceNormalization", "x g b", "instance"),
    node("GroupNormalization", "x g b", "group", num_groups=2),
    node("LayerNormalization", "x line", "layer", axis=-1),
    node("BatchNormalization", "x g b b2 g2", "batch"),
    node("LRN", "x", "local", size=3),
    node("PRelu", "x slopes", "prelu"),
    node("HardSigmoid", "x", "hard_sigmoid"),
    node("HardSwish", "x", "hard_swish"),
    node("Elu", "x", "elu"),
    node("Celu", "x", "celu", alpha=0.7),
    node("Selu", "x", "selu"),
    node("Softplus", "x", "softplus"),
    node("Mish", "x", "mish"),
    node("Gelu", "x", "gelu"),
    node("Gelu", "x", "gelu_tanh", approximate="tanh"),
    node("Erf", "x", "erf"),
    node("Softmax", "x", "softmax", axis=1),
    node("LogSoftmax", "x", "log_softmax", axis=-1),
    node("CumSum", "x three", "sums", reverse=1),
    node("ReduceL2", "x axes", "norm"),
    node("ReduceProd", "x axes", "product"),
    node("ReduceLogSumExp", "x axes", "log_sum"),
    node("Slice", "x last first three minus", "backwards"),
    node("Gather", "x some", "some_rows", axis=2),
    node("DepthToSpace", "x", "blocks", blocksize=2),
    node("DepthToSpace", "x", "blocks_crd", blocksize=2, mode="CRD"),
    node("GridSample", "x grid", "sampled"),
    node("Einsum", "x mix", "mixed", equation="nchw,cd->ndhw"),
    node("Pow", "x three_f", "cube"),
    node("Round", "x", "rounded"),
    node("Trilu", "x", "triangle"),
)  # fmt: skip
CONSTANTS = {
    "k": half(4, 2, 3, 3), "t": half(4, 2, 3, 3), "no": np.zeros(0, "f4"),
    "seven": np.array([1, 4, 7, 4]), "twice": np.array([1, 4, 18, 18]),
    "around": np.array([0, 0, 2, 1, 0, 0, 3, 0]), "g": half(4) + 2, "b": half(4),
    "b2": half(4), "g2": np.abs(half(4)) + 1, "line": half(9), "slopes": half(4, 1, 1),
    "three": np.array([3]), "axes": np.array([1, 3]), "last": np.array([-1]),
    "first": np.array([-99]), "minus": np.array([-2]), "some": np.array([5, 0, 5]),
    "grid": np.tanh(gaussian([1, 5, 6, 2])), "mix": half(4, 3), "three_f": np.float32(3),
}  # fmt: skip


FEW = tuple(one for one in MANY if one.output[0] in ("nearest", "max_uneven", "mirror"))


@pytest.mark.parametrize("nodes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_operators_in_litert(tmp_path: Path, nodes: tuple[onnx.NodeProto, ...]) -> None:
    """One file with an output per operator: what litert-torch writes computes what ONNX states."""
    names = {one.output[0]: () for one in nodes}
    read = {name for one in nodes for name in one.input}
    arrays = {name: np.asarray(value) for name, value in CONSTANTS.items() if name in read}
    proto = model(nodes, {"x": [1, 4, 9, 9]}, names, arrays)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    feed = {"x": gaussian([1, 4, 9, 9], 5)}
    compiled(tmp_path, proto)
    actual = tflite.load(tmp_path, {}, 1).run(feed)
    references = Session(proto.SerializeToString(), 1).run(feed)
    found = {name: sqnr_db(r, a) for name, r, a in zip(names, references, actual, strict=True)}
    assert {name: db for name, db in found.items() if db < 90} == {}


def test_wide_integers_are_narrowed_at_the_edges(tmp_path: Path) -> None:
    nodes = [node("Gather", "table ids", "y"), node("ArgMax", "y", "best", axis=1, keepdims=0)]
    proto = model(nodes, {}, {"y": [4, 3]}, {"table": gaussian([5, 3])})
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [4])
    proto.graph.input.append(ids)
    proto.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [4]))
    facts = compiled(tmp_path, proto)
    assert [one["dtype"] for one in (*facts["inputs"], *facts["outputs"])] == [
        "int32",
        "float32",
        "int32",
    ]
    feed = {"ids": np.array([3, 0, 4, -1])}
    references = Session(proto.SerializeToString(), 1).run(feed)
    actual = tflite.load(tmp_path, {}, 1).run(feed)
    assert all(np.array_equal(r, a) for r, a in zip(references, actual, strict=True))


# Where its operators run


def test_a_convolution_net_runs_on_the_gpu(tmp_path: Path) -> None:
    compiled(tmp_path, conv_net())
    found = tflite.report_nodes(tmp_path)
    assert {one.unit for one in found} == {"gpu"}
    assert [one.node for one in found if one.op == "CONV_2D"] == ["n_r", "n_y"]


def test_what_the_gpu_leaves_says_why(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "x five", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 4, 3]),
        node("Reshape", "t four", "f"),
        node("TopK", "f k", "v i", axis=3),
        node("Cast", "i", "c", to=TensorProto.FLOAT),
        node("Relu", "c", "y"),
    ]
    weights = {"five": [1, 2, 3, 4, 5], "four": [1, 3, 2, 20], "k": [2]}
    arrays = {name: np.array(value) for name, value in weights.items()}
    compiled(tmp_path, model(nodes, {"x": [1, 6, 4, 5]}, {"y": [1, 3, 2, 2]}, arrays))
    left = {one.op: (one.reason, one.fix) for one in tflite.report_nodes(tmp_path) if one.reason}
    assert left["TRANSPOSE"] == (
        "a tensor of rank 5: the GPU delegate takes 4 at most",
        "reshape to 4 axes before it",
    )
    assert left["TOPK_V2"][0] == "LiteRT's GPU delegate has no TOPK_V2"
    assert "RELU" not in left


# What cannot be done


def test_an_operator_that_does_not_reach_torch(tmp_path: Path) -> None:
    proto = shrink_net()
    proto.graph.node[1].op_type = "Hardmax"
    with pytest.raises(InputError, match=r"Hardmax \(n_b\) does not reach torch"):
        compiled(tmp_path, proto)


def test_a_shape_that_is_not_static(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": ["n", 3]}, {"y": [2, 3]})
    with pytest.raises(InputError, match="input x has no static shape"):
        compiled(tmp_path, proto)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / tflite.FILE).write_bytes(b"no model")
    with pytest.raises(StageFailed, match=r"LiteRT cannot load model\.tflite") as caught:
        tflite.load(tmp_path, {}, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "w8a8", "calibration": "mse"}, "--calibration mse: tflite's own converter"),
        ({"precision": "w8a8", "quantize_io": True}, "--quantize-io: tflite's inputs and outputs"),
        ({"precision": "w8a8", "min_sqnr": 30.0}, "--min-sqnr: tflite's own converter"),
        ({"precision": "w4a16"}, "tflite has no w4a16"),
    ],
)
def test_settings_that_mean_nothing_here(tmp_path: Path, options: dict, words: str) -> None:
    source = str(save(conv_net(), tmp_path / "net.onnx"))
    with pytest.raises(InputError, match=words):
        edgeport.export(source, output_dir=tmp_path / "out", **S24_TFLITE, **options)
    assert not (tmp_path / "out").exists()


def test_the_row_is_plain_data() -> None:
    row = json.loads(json.dumps(find_runtime("tflite").to_dict()))
    assert row["install"] == 'pip install "edgeport[tflite]"'
