"""The runtimes: what the vendor's compiler and emulator really do with small nets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import LIMITS, conv_net, gaussian, model, needs_compiler, node, save, shrink_net

from edgeport import stages
from edgeport.catalog import find_source
from edgeport.compare import sqnr_db
from edgeport.devices import find_device
from edgeport.errors import InputError, RuntimeCrashed, StageFailed, UnknownName
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS
from edgeport.passes.reciprocal import reciprocal_to_div
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes import RUNTIMES, find_runtime
from edgeport.runtimes.lowering import Compiled, compile_for, run_compiled
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.qnn_context_binary import BINARY, WRAPPER
from edgeport.runtimes.qnn_context_binary import NAME as NPU
from edgeport.runtimes.samples import load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits

S24 = find_device("s24")


def prepared(directory: Path, proto: onnx.ModelProto, precision: str, feeds) -> Path:
    """Returns the file to compile: the float model, or the one calibrated on `feeds`."""
    source = save(proto, directory / "float.onnx")
    if precision == "float":
        return source
    quantize_file(source, directory / "quantized.onnx", CONFIGS[precision], iter(feeds))
    return directory / "quantized.onnx"


def compiled(directory: Path, proto: onnx.ModelProto, precision: str, feeds) -> Compiled:
    path = prepared(directory, proto, precision, feeds)
    return compile_for(NPU, path, directory, S24, precision, LIMITS)


def emulated(directory: Path, feeds: list[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    save_samples(directory / "inputs.npz", feeds)
    outputs = run_compiled(NPU, directory, directory, directory / "inputs.npz", S24, LIMITS)
    return [sample["output_0"] for sample in outputs]


def image_feeds(count: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    return [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(start, start + count)]


@needs_compiler
@pytest.mark.parametrize(("precision", "least_db"), [("float", 55), ("w8a8", 30), ("w8a16", 35)])
def test_a_convolution_net_in_the_emulator(tmp_path: Path, precision: str, least_db: float) -> None:
    made = compiled(tmp_path, conv_net(), precision, image_feeds(8))
    assert [node.unit for node in made.nodes if node.op == "Conv"] == ["npu", "npu"]
    assert {node.unit for node in made.nodes} == {"npu"}
    assert made.facts["qairt_version"]
    assert sorted(p.name for p in tmp_path.glob("model*")) == [BINARY, WRAPPER]
    wrapper = onnx.load(tmp_path / WRAPPER, load_external_data=False)
    (context,) = (n for n in wrapper.graph.node if n.op_type == "EPContext")
    named = {a.name: a for a in context.attribute}
    assert named["ep_cache_context"].s == BINARY.encode()
    # The wrapper takes and gives the model's own floats under its own names.
    assert [v.name for v in (*wrapper.graph.input, *wrapper.graph.output)] == ["image", "y"]

    feeds = image_feeds(2, start=100)
    for feed, actual in zip(feeds, emulated(tmp_path, feeds), strict=True):
        (reference,) = Session(conv_net().SerializeToString()).run(feed)
        # Above 120 dB the emulator would compute in float32, and prove nothing about the NPU.
        assert least_db < sqnr_db(reference, actual) < 120


@needs_compiler
def test_the_same_bytes_from_another_folder(tmp_path: Path) -> None:
    """The compiler writes the graph's name into the binary, and makes it from the model's path."""
    binaries = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        compiled(tmp_path / name, conv_net(), "float", ())
        binaries.append([(tmp_path / name / file).read_bytes() for file in (BINARY, WRAPPER)])
    assert binaries[0] == binaries[1]


@needs_compiler
def test_fallback_to_the_cpu_is_named_and_counted(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"1 of 3 ops would run on the CPU.*1 Shrink"):
        compiled(tmp_path, shrink_net(), "float", ())
    assert not (tmp_path / BINARY).exists()


@needs_compiler
def test_a_chip_without_fp16_says_so(tmp_path: Path) -> None:
    path = prepared(tmp_path, conv_net(), "float", ())
    with pytest.raises(StageFailed, match=r"in this precision.* try w8a8"):
        compile_for(NPU, path, tmp_path, find_device("rb3-gen2"), "float", LIMITS)


@needs_compiler
def test_a_folder_that_holds_a_context_is_refused(tmp_path: Path) -> None:
    """The compiler never overwrites one; each compilation gets a new folder."""
    compiled(tmp_path, conv_net(), "float", ())
    before = (tmp_path / BINARY).read_bytes()
    with pytest.raises(StageFailed, match="exists already") as caught:
        compile_for(NPU, tmp_path / "float.onnx", tmp_path, S24, "float", LIMITS)
    assert "\n" not in str(caught.value)
    assert (tmp_path / BINARY).read_bytes() == before


@needs_compiler
@pytest.mark.parametrize("limits", [Limits(0.3, 8 << 30), Limits(120, 16 << 20)])
def test_a_compiler_that_is_killed(tmp_path: Path, limits: Limits) -> None:
    path = prepared(tmp_path, conv_net(), "float", ())
    with pytest.raises(RuntimeCrashed) as caught:
        compile_for(NPU, path, tmp_path, S24, "float", limits)
    assert caught.value.reason == ("timeout" if limits.seconds < 1 else "memory")
    assert caught.value.stage == "lower"


@needs_compiler
def test_a_damaged_binary_is_one_error(tmp_path: Path) -> None:
    compiled(tmp_path, conv_net(), "float", ())
    content = (tmp_path / BINARY).read_bytes()
    (tmp_path / BINARY).write_bytes(content[: len(content) // 2])
    with pytest.raises(StageFailed) as caught:
        emulated(tmp_path, image_feeds(1))
    assert "\n" not in str(caught.value)


# The control: the emulator's parity must fail for an answer that is not this input's


def reference_folder(folder: Path, feeds, answers) -> Path:
    folder.mkdir()
    save_samples(folder / PARITY_INPUTS, feeds)
    save_samples(folder / PARITY_OUTPUTS, [named_outputs([answer]) for answer in answers])
    return folder


def constant_net() -> onnx.ModelProto:
    """Returns the convolution net with its answer replaced by its mean, whatever the image."""
    proto = conv_net()
    answers = [Session(proto.SerializeToString()).run(feed)[0] for feed in image_feeds(8)]
    proto.graph.node[-1].name, proto.graph.node[-1].output[0] = "n_z", "z"
    proto.graph.node.extend([node("Mul", "z zero", "v"), node("Add", "v mean", "y")])
    for name, array in (("zero", np.zeros(1)), ("mean", np.mean(answers, axis=0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f4"), name))
    return proto


@needs_compiler
@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_parity_refuses_another_images_answer_and_a_constant(
    tmp_path: Path, precision: str
) -> None:
    recipe = find_source("padre")  # for its tolerances
    feeds = image_feeds(2, start=100)
    answers = [Session(conv_net().SerializeToString()).run(feed)[0] for feed in feeds]
    right = reference_folder(tmp_path / "right", feeds, answers)
    swapped = reference_folder(tmp_path / "swapped", feeds, answers[::-1])

    def check(net: onnx.ModelProto, folder: str, captured: Path) -> None:
        directory = tmp_path / folder
        if not directory.exists():
            directory.mkdir()
            compiled(directory, net, precision, image_feeds(8))
        model = next(directory.glob("*quantized*.onnx"))
        stages.run_here(
            directory, NPU, directory, model, captured, recipe, S24, precision, LIMITS, precision
        )

    check(conv_net(), "real", right)
    with pytest.raises(StageFailed, match="dB from the reference"):
        check(conv_net(), "real", swapped)
    with pytest.raises(StageFailed, match="dB from the reference"):
        check(constant_net(), "constant", right)


def inverse_net() -> onnx.ModelProto:
    """Returns 1 / (x^2 + 0.1), written as exporters write it: with Reciprocal."""
    nodes = [node("Mul", "x x", "s"), node("Add", "s c", "d"), node("Reciprocal", "d", "y")]
    shape = [1, 8, 16, 16]
    return model(nodes, {"x": shape}, {"y": shape}, {"c": np.array(0.1, np.float32)})


@needs_compiler
def test_why_reciprocal_to_div_exists(tmp_path: Path) -> None:
    """HTP's 16-bit Reciprocal is wrong beyond 1; if this fails, the pass is no longer needed."""
    feeds = [{"x": gaussian([1, 8, 16, 16], seed, 0.1)} for seed in range(4)]
    feed = {"x": gaussian([1, 8, 16, 16], 99, 0.1)}
    (reference,) = Session(inverse_net().SerializeToString()).run(feed)
    rewritten = ir.to_proto(reciprocal_to_div(ir.from_proto(inverse_net())).model)
    found = {}
    for name, proto in (("without", inverse_net()), ("with", rewritten)):
        (tmp_path / name).mkdir()
        compiled(tmp_path / name, proto, "w8a16", feeds)
        (actual,) = emulated(tmp_path / name, [feed])
        found[name] = sqnr_db(reference, actual)
    assert found["without"] < 20
    assert found["with"] > 50


# onnx, samples, and the table


def test_a_session_keeps_the_order_of_outputs_and_names_its_inputs() -> None:
    nodes = [node("Relu", "a", "r"), node("Neg", "b", "n")]
    shapes = {"a": [2], "b": [3]}
    session = Session(model(nodes, shapes, {"n": [3], "r": [2]}).SerializeToString())
    assert [str(spec) for spec in session.inputs()] == ["a:float32[2]", "b:float32[3]"]
    negative, positive = session.run({"b": np.ones(3, "f4"), "a": np.ones(2, "f4")})
    assert (negative.tolist(), positive.tolist()) == ([-1, -1, -1], [1, 1])


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a"])
def test_a_file_that_does_not_load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(StageFailed, match=r"onnxruntime cannot load broken\.onnx") as caught:
        Session(path)
    assert "\n" not in str(caught.value)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    samples = [
        {"b:0/x": gaussian([2, 3], i), "a": np.array(i), "file": np.zeros((0, 2), np.uint8)}
        for i in range(12)
    ]
    save_samples(tmp_path / "samples.npz", samples)
    loaded = load_samples(tmp_path / "samples.npz")
    assert len(loaded) == 12
    for one, other in zip(samples, loaded, strict=True):
        assert list(one) == list(other)
        assert all(np.array_equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def test_the_table_of_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_runtime("onnx").name == "onnx"
    json.dumps([runtime.to_dict() for runtime in RUNTIMES.values()])
    with pytest.raises(UnknownName, match="Did you mean 'onnx'"):
        find_runtime("onx")
    missing = replace(
        RUNTIMES["onnx"], name="later", requires=("no_such_package",), install="pip install later"
    )
    monkeypatch.setitem(RUNTIMES, "later", missing)
    with pytest.raises(InputError, match="needs no_such_package: pip install later"):
        find_runtime("later")
