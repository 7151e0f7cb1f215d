"""The runtime executorch: XNNPACK gives the model's numbers; names, order and bytes are kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support import LIMITS, conv_net, gaussian, model, node, save

import edgeport
from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import InputError, StageFailed
from edgeport.runtimes import CompileRequest, executorch
from edgeport.runtimes.executorch import FILE, NAME
from edgeport.runtimes.lowering import compile_for
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason='needs executorch: pip install "edgeport[executorch]"',
)
S24 = find_device("s24")


def made(folder: Path, proto: onnx.ModelProto, precision: str = "float", feeds=None) -> dict:
    """Compiles in this process, which is faster than a child and what a child would do."""
    path = save(proto, folder / "net.onnx")
    calibration = folder / "calibration.npz"
    save_samples(calibration, feeds or [feed(proto, seed) for seed in range(8)])
    static = str(calibration) if precision == "w8a8" else None
    request = CompileRequest(str(path), str(folder), precision, {}, static)
    return executorch.compile_model(request)


def feed(proto: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    graph = proto.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    return {name: gaussian(shape, 10 * seed + i) for i, (name, shape) in enumerate(shapes.items())}


def distance_db(folder: Path, proto: onnx.ModelProto, given=None) -> list[float]:
    """Returns, per output, how near the .pte is to onnxruntime, on inputs that calibrated none."""
    given = feed(proto, 99) if given is None else given
    actual = executorch.load(folder, {}).run(given)
    expected = Session(proto.SerializeToString()).run(given)
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    return [sqnr_db(*pair) for pair in zip(expected, actual, strict=True)]


@pytest.mark.parametrize(("precision", "least"), [("float", 100), ("w8a8", 30), ("w8-dynamic", 35)])
def test_a_convolution_net(tmp_path: Path, precision: str, least: float) -> None:
    facts = made(tmp_path, conv_net(), precision)
    assert facts == {"delegated": 3, "notes": []}
    (near_db,) = distance_db(tmp_path, conv_net())
    assert least < near_db
    assert near_db < 100 or precision == "float"  # else nothing was quantized
    reports = executorch.report_nodes(tmp_path)
    assert [(one.node, one.op) for one in reports] == [
        ("n_c", "convolution"),
        ("n_r", "relu"),
        ("n_y", "convolution"),
    ]
    assert {(one.unit, one.reason) for one in reports} == {("cpu", "in XNNPACK")}


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_with_constant_weights_is_xnnpacks(tmp_path: Path, turned: int) -> None:
    """With a weight that is turned while the model runs it was ten times slower, and portable."""
    weights = {"w": gaussian([6, 8] if turned else [8, 6]), "b": gaussian([1, 6], 2)}
    gemm = node("Gemm", "x w b", "y", transB=turned, alpha=0.5, beta=2.0)
    proto = model([gemm], {"x": [4, 8]}, {"y": [4, 6]}, weights)
    assert made(tmp_path, proto)["notes"] == []
    assert min(distance_db(tmp_path, proto)) > 100


def test_names_order_and_what_stays_outside(tmp_path: Path) -> None:
    nodes = [
        node("Mul", "in.2 scale", "a"),
        node("Erf", "in.2", "out/2"),
        node("Sub", "in:1 a", "out.1"),
    ]
    ends = {"in:1": [1, 4, 8, 8], "in.2": [1, 4, 8, 8]}
    outputs = {"out.1": [1, 4, 8, 8], "out/2": [1, 4, 8, 8]}
    proto = model(nodes, ends, outputs, {"scale": np.array(0.5, np.float32)})
    facts = made(tmp_path, proto)
    # In another order than the graph's: the file knows the names.
    given = dict(reversed(feed(proto, 99).items()))
    assert min(distance_db(tmp_path, proto, given)) > 100
    assert facts["notes"] == ["1 of 3 ops run outside XNNPACK, in portable kernels: 1 erf"]
    (outside,) = (one for one in executorch.report_nodes(tmp_path) if "outside" in one.reason)
    assert (outside.op, outside.unit) == ("erf", "cpu")


def shared_bias() -> onnx.ModelProto:
    """Returns two convolutions in a row with one bias, at scales that differ by a hundred."""
    weights = {
        "w1": gaussian([8, 8, 1, 1], 1),
        "w2": gaussian([8, 8, 1, 1], 2, 0.01),
        "bias": gaussian([8], 3),
    }
    nodes = [node("Conv", "x w1 bias", "a"), node("Conv", "a w2 bias", "y")]
    return model(nodes, {"x": [1, 8, 16, 16]}, {"y": [1, 8, 16, 16]}, weights)


@pytest.mark.parametrize("between", ["", "Relu"])
@pytest.mark.parametrize(("precision", "least"), [("float", 100), ("w8a8", 25)])
def test_a_softmax_after_a_convolution(
    tmp_path: Path, precision: str, least: float, between: str
) -> None:
    """XNNPACK takes it over the channels, its own layout's last axis: -5 dB, as it was."""
    weights = {"w": gaussian([3, 3, 1, 1], 1, scale=2.0)}
    nodes = [node("Conv", "x w", "c"), node("Softmax", "c", "y", axis=-1)]
    if between:
        nodes[1:] = [node(between, "c", "r"), node("Softmax", "r", "y", axis=-1)]
    proto = model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 3, 8, 8]}, weights)
    made(tmp_path, proto, precision)
    (near_db,) = distance_db(tmp_path, proto)
    assert least < near_db
    assert all(one.reason == "in XNNPACK" for one in executorch.report_nodes(tmp_path))


def test_two_convolutions_with_one_bias(tmp_path: Path) -> None:
    made(tmp_path, shared_bias(), "w8a8")
    assert min(distance_db(tmp_path, shared_bias())) > 30


def normalised() -> onnx.ModelProto:
    """Returns a layer norm in parts, as the passes leave it, and a linear layer behind it."""
    weights = {
        "axes": np.array([-1]),
        "eps": np.array(1e-5, np.float32),
        "w": gaussian([32, 16], 5, 0.2),
    }
    nodes = [
        node("ReduceMean", "x axes", "m", keepdims=1),
        node("Sub", "x m", "d"),
        node("Mul", "d d", "s"),
        node("ReduceMean", "s axes", "v", keepdims=1),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "r"),
        node("Div", "d r", "n"),
        node("MatMul", "n w", "y"),
    ]
    return model(nodes, {"x": [1, 64, 32]}, {"y": [1, 64, 16]}, weights)


def test_a_variance_stays_in_float(tmp_path: Path) -> None:
    """Rows whose sizes span a thousand have variances that int8 would make zero."""
    rows = np.geomspace(0.01, 10, 64, dtype=np.float32).reshape(1, 64, 1)
    feeds = [{"x": gaussian([1, 64, 32], seed) * rows} for seed in range(9)]
    made(tmp_path, normalised(), "w8a8", feeds[:8])
    (near_db,) = distance_db(tmp_path, normalised(), feeds[8])
    assert 30 < near_db < 100


def test_a_graph_that_xnnpack_has_no_part_of(tmp_path: Path) -> None:
    ends = {"x": [1, 8]}
    with pytest.raises(StageFailed, match="XNNPACK took none of the operators"):
        made(tmp_path, model([node("Erf", "x", "y")], ends, {"y": [1, 8]}))


def test_integers_as_inputs(tmp_path: Path) -> None:
    weights = {"table": gaussian([50, 16], 0)}
    nodes = [node("Gather", "table ids", "e", axis=0), node("Mul", "e e", "y")]
    proto = model(nodes, {"ids": [1, 8]}, {"y": [1, 8, 16]}, weights)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    path = save(proto, tmp_path / "net.onnx")
    executorch.compile_model(CompileRequest(str(path), str(tmp_path), "float", {}))
    ids = np.arange(0, 40, 5, dtype=np.int64)[None]
    assert min(distance_db(tmp_path, proto, {"ids": ids})) > 100


def test_what_is_refused(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="executorch has no w8a16"):
        edgeport.export(
            str(path),
            device="s24",
            precision="w8a16",
            target_runtimes=(NAME,),
            output_dir=tmp_path / "out",
        )
    determinant = model([node("Det", "x", "y")], {"x": [1, 4, 4]}, {"y": [1]})
    with pytest.raises(InputError, match=r"Det \(n_y\) does not reach torch"):
        made(tmp_path, determinant)


@pytest.mark.slow
def test_an_export(tmp_path: Path) -> None:
    export = edgeport.export(
        str(save(conv_net(), tmp_path / "net.onnx")),
        device="pixel-6",
        precision="w8a8",
        calib_samples=8,
        target_runtimes=(NAME,),
        output_dir=tmp_path / "out",
    )
    run = export.artifact("run", NAME)
    assert (run.path, run.computed, run.parity[0].provenance) == (FILE, "w8a8", "host")
    assert run.parity[0].value > 30
    assert export.manifest["placement"] == {NAME: {"cpu": 3}}
    assert "## With ExecuTorch: model.pte" in (export.directory / "DEPLOY.md").read_text()


@pytest.mark.slow
def test_the_same_bytes_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        path = save(normalised(), folder / "net.onnx")
        save_samples(folder / "in.npz", [feed(normalised(), index) for index in range(2)])
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        compile_for(NAME, path, folder, S24, "w8a8", LIMITS, folder / "in.npz")
        files.append((folder / FILE).read_bytes())
    assert files[0] == files[1]
