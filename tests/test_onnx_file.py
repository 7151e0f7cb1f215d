"""The user's ONNX file: open axes are pinned, operators and weights are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import conv_net, manifest_of, model, node, save

import edgeport
from edgeport.capture import model_inputs
from edgeport.catalog import parse_spec
from edgeport.errors import InputError, UnknownName
from edgeport.runtimes.samples import load_samples
from edgeport.sources.onnx_file import lookup_ranges, open_onnx

PINNED = "image:float32[2,3,16,16]"
ON_HOST = {"device": "s24", "target_runtimes": ("onnx",)}


def open_net() -> onnx.ModelProto:
    """Returns a net with open batch and sides, whose Reshape computes its own sizes."""
    nodes = [
        node("Conv", "image w", "c"),
        node("Shape", "c", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n zeros", "n1"),
        node("Concat", "n1 rest", "t", axis=0),
        node("Reshape", "c t", "y"),
    ]
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype("f4"),
        "zero": np.array(0),
        "zeros": np.array([0]),
        "rest": np.array([-1]),
    }
    return model(nodes, {"image": ["N", 3, "H", None]}, {"y": ["N", "F"]}, weights)


def test_open_axes_are_named_with_the_flag_that_closes_them(tmp_path: Path) -> None:
    path = save(open_net(), tmp_path / "open.onnx")
    with pytest.raises(InputError) as caught:
        open_onnx(path)
    assert "--input image:float32[N,3,H,axis3] with numbers for N, H, axis3" in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_pinned_axes_are_static_and_the_answer_is_the_files(tmp_path: Path, out: Path) -> None:
    path = save(open_net(), tmp_path / "open.onnx")
    edgeport.export(str(path), output_dir=out, inputs=[PINNED], **ON_HOST)
    manifest = manifest_of(out)
    assert manifest["inputs"][0]["shape"] == [2, 3, 16, 16]
    assert manifest["outputs"][0]["shape"] == [2, 1024]
    (sample,) = load_samples(out / "parity_inputs.npz")
    (answer,) = load_samples(out / "parity_outputs.npz")
    weight = numpy_helper.to_array(open_net().graph.initializer[0])[:, :, 0, 0]
    expected = np.einsum("oc,nchw->nohw", weight, sample["image"]).reshape(2, -1)
    np.testing.assert_allclose(next(iter(answer.values())), expected, rtol=1e-4, atol=1e-5)
    other = ["image:float32[1,3,8,8]"]
    assert edgeport.export(str(path), output_dir=out, inputs=other, **ON_HOST).cached_steps == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("image:float32[1,4,16,16]", "does not fit image"),
        ("image:float32[3,16,16]", "does not fit image"),
        ("image:int64[1,3,16,16]", "does not fit image"),
        ("picture:float32[1,3,16,16]", "Did you mean|Known: image"),
    ],
)
def test_specs_that_do_not_fit(tmp_path: Path, spec: str, words: str) -> None:
    path = save(open_net(), tmp_path / "open.onnx")
    with pytest.raises(InputError, match=words) as caught:
        open_onnx(path, [parse_spec(spec)])
    assert isinstance(caught.value, UnknownName) is ("picture" in spec)


def test_a_fixed_size_may_be_repeated_but_not_changed(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "net.onnx")
    graph = open_onnx(path, [parse_spec("image:float32[1,3,16,16]")])
    assert model_inputs(graph)[0].shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="does not fit"):
        open_onnx(path, [parse_spec(PINNED)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    proto = conv_net()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = value
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    with pytest.raises(InputError, match="weight w1 holds NaN or infinity"):
        open_onnx(save(proto, tmp_path / "net.onnx"))


def test_an_attention_mask_of_infinities_is_sound(tmp_path: Path) -> None:
    mask = np.triu(np.full((4, 4), -np.inf, "f4"), 1)
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y")]
    path = save(model(nodes, {"x": [4, 4]}, {"y": [4, 4]}, {"mask": mask}), tmp_path / "m.onnx")
    assert len(open_onnx(path).graph) == 2


def test_functions_of_the_file_are_known_operators(tmp_path: Path) -> None:
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("Twice", ["x"], ["y"], domain="mine")
    opsets = [helper.make_opsetid("mine", 1)]
    proto = model([call], {"x": [2]}, {"y": [2]}, opset_imports=opsets, functions=[twice])
    assert len(open_onnx(save(proto, tmp_path / "f.onnx")).graph) == 1


def test_integers_stay_below_the_table_they_index(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "ids", "i", to=TensorProto.INT64),
        node("Gather", "table i", "e"),
        node("Cast", "attention_mask", "m", to=TensorProto.FLOAT),
        node("Mul", "e m", "y"),
    ]
    table = np.zeros((30, 4), "f4")
    proto = model(nodes, {"ids": [5, 1]}, {"y": [5, 1, 4]}, {"table": table})
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, [5, 1])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [1])
    proto.graph.input[0].CopyFrom(ids)
    proto.graph.input.append(mask)
    graph = open_onnx(save(proto, tmp_path / "ids.onnx"))
    assert lookup_ranges(graph) == {"ids": (0, 30), "attention_mask": (1, 2)}
