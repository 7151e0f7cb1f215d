"""What an app gives against what the model takes: layout, normalisation, integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import conv_net, gaussian, save

from edgeport.boundary import Boundary, parse_normalisation
from edgeport.capture import load_onnx, model_inputs, save_model
from edgeport.errors import InputError, UnknownName
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.quantize.integer_io import (
    Affine,
    decode_outputs,
    edge_scales,
    encode_feed,
    quantize_edges,
)
from edgeport.runtimes.onnx import Session
from edgeport.types import TensorSpec

IMAGENET = "0.485,0.456,0.406,0.229,0.224,0.225"
BOUNDARIES = {
    "layout": Boundary(channel_last=("image",)),
    "one mean": Boundary(mean=(0.5,), std=(0.25,)),
    "a mean a channel": Boundary((), *parse_normalisation(IMAGENET)),
    "both": Boundary(("image",), *parse_normalisation(IMAGENET)),
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save(conv_net(), tmp_path / "net.onnx")


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
def test_the_graph_does_what_numpy_does(net: Path, tmp_path: Path, boundary: Boundary) -> None:
    specs = model_inputs(load_onnx(net))
    inner = gaussian(specs[0].shape)
    outer = boundary.to_outer({"image": inner}, specs)
    folded = load_onnx(net)
    boundary.fold(folded, specs)
    save_model(folded, tmp_path / "folded.onnx")
    onnx.checker.check_model(tmp_path / "folded.onnx", full_check=True)
    assert model_inputs(folded) == boundary.outer_specs(specs)
    assert outer["image"].shape == boundary.outer_specs(specs)[0].shape
    (expected,) = Session(net).run({"image": inner})
    (actual,) = Session(tmp_path / "folded.onnx").run(outer)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        boundary.to_inner(outer, specs)["image"], inner, rtol=1e-5, atol=1e-5
    )
    (other,) = Session(tmp_path / "folded.onnx").run({"image": outer["image"] + 0.5})
    assert not np.allclose(other, expected, atol=1e-2)


def test_only_images_are_normalised() -> None:
    boundary = Boundary(mean=(0.0, 1.0, 2.0), std=(1.0, 1.0, 1.0))
    image, tokens = TensorSpec("x", "float32", (1, 3, 4, 4)), TensorSpec("t", "int64", (1, 3))
    feed = {"x": np.zeros(image.shape, "float32"), "t": np.ones(tokens.shape, "int64")}
    inner = boundary.to_inner(feed, (image, tokens))
    assert inner["t"] is feed["t"]
    assert inner["x"][0, :, 0, 0].tolist() == [0.0, -1.0, -2.0]


@pytest.mark.parametrize("text", ["", "0.5", "a,b", "0.5,0", "0.5,-1", "0.1,0.2,0.3", "0,inf"])
def test_what_is_no_normalisation(text: str) -> None:
    with pytest.raises(InputError, match="MEAN,STD"):
        parse_normalisation(text)


def test_a_boundary_that_does_not_fit_is_refused() -> None:
    specs = (TensorSpec("x", "float32", (1, 4, 8, 8)), TensorSpec("n", "int64", (1, 3)))
    with pytest.raises(UnknownName, match="Did you mean 'x'"):
        Boundary(("X",)).check(specs)
    with pytest.raises(InputError, match="no channel order"):
        Boundary(("n",)).check(specs)
    with pytest.raises(InputError, match="3 means"):
        Boundary((), *parse_normalisation(IMAGENET)).check(specs)
    Boundary(("x",), (0.5,), (0.5,)).check(specs)


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_integer_edges_give_the_same_answer(net: Path, tmp_path: Path, precision: str) -> None:
    (spec,) = model_inputs(load_onnx(net))
    feeds = [{"image": gaussian(spec.shape, seed)} for seed in range(3)]
    target = tmp_path / "quantized.onnx"
    quantize_file(net, target, CONFIGS[precision], iter(feeds))
    session = Session(target)
    (expected,) = session.run(feeds[0])
    scales = edge_scales(onnx.load(target))
    edges = quantize_edges(target)
    assert edges == scales
    assert set(edges) == {"image", *(value.name for value in onnx.load(target).graph.output)}
    onnx.checker.check_model(target, full_check=True)
    assert not {"image"} & {
        n.input[0] for n in onnx.load(target).graph.node if n.op_type == "QuantizeLinear"
    }
    stored = encode_feed(feeds[0], edges)
    assert stored["image"].dtype == {"w8a8": "uint8", "w8a16": "uint16"}[precision]
    names = [value.name for value in onnx.load(target).graph.output]
    outputs = Session(target).run(stored)
    assert outputs[0].dtype.kind == "u"
    (actual,) = decode_outputs(outputs, names, edges)
    assert np.array_equal(actual, expected)


def test_values_outside_the_range_saturate() -> None:
    affine = Affine("uint8", 0.5, 10)
    stored = affine.encode(np.array([-100.0, 0.0, 0.25, 0.75, 1e9], "float32"))
    assert stored.tolist() == [0, 10, 10, 12, 255]
    assert affine.decode(stored).tolist() == [-5.0, 0.0, 0.0, 1.0, 122.5]


def test_a_model_without_quantization_keeps_its_edges(net: Path) -> None:
    before = ir.to_proto(load_onnx(net)).SerializeToString()
    assert quantize_edges(net) == {}
    assert ir.to_proto(load_onnx(net)).SerializeToString() == before
