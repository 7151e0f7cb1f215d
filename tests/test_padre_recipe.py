"""The PADRe recipe: the algebra the paper claims, its sizes, its options and its exported graph."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from edgeport_recipes._shared.images import feeds
from edgeport_recipes.padre import model as padre
from edgeport_recipes.padre import recipe
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe
from edgeport.types import TensorSpec

DIM, GRID = 12, 6
Layer = Callable[[Tensor], Tensor]


def make_layer(name: str, *, biases: bool) -> nn.Module:
    """Returns a small mixer in float64; its biases are zero, or all random."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = padre.make_mixer(name, DIM, heads=3, kernel=3).double()
        for key, parameter in layer.named_parameters():
            if key.endswith("bias"):
                nn.init.normal_(parameter, std=float(biases))
    return layer.eval().requires_grad_(False)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def homogeneity_error(layer: Layer, degree: int) -> float:
    """Returns the largest |f(tX) - t^d f(X)| relative to |t^d f(X)| over a few t."""
    x = draw(0, 2, DIM, GRID, GRID)
    pairs = [(layer(t * x), t**degree * layer(x)) for t in (0.3, 1.7, -2.0)]
    return max(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)


def finite_difference(layer: Layer, order: int) -> float:
    """Returns the size of the order-th difference of t -> f(X + tV), relative to its terms."""
    x, v = draw(0, 1, DIM, GRID, GRID), draw(1, 1, DIM, GRID, GRID)
    terms = [comb(order, i) * (-1) ** i * layer(x + i * v) for i in range(order + 1)]
    return float(sum(terms, torch.zeros(())).norm() / max(term.norm() for term in terms))


@pytest.mark.parametrize(("name", "degree"), [("padre2", 2), ("padre3", 3)])
def test_without_biases_the_layer_is_homogeneous_of_its_degree(name: str, degree: int) -> None:
    layer = make_layer(name, biases=False)
    assert homogeneity_error(layer, degree) < 1e-5
    assert homogeneity_error(layer, degree - 1) > 0.1
    assert homogeneity_error(layer, degree + 1) > 0.1


@pytest.mark.parametrize(("name", "degree"), [("padre2", 2), ("padre3", 3)])
def test_with_biases_the_layer_is_a_polynomial_of_its_degree(name: str, degree: int) -> None:
    layer = make_layer(name, biases=True)
    assert finite_difference(layer, degree + 1) < 1e-12
    assert finite_difference(layer, degree) > 1e-2


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_softmax_attention_is_no_such_polynomial(degree: int) -> None:
    assert homogeneity_error(make_layer("attention", biases=False), degree) > 1e-2
    assert finite_difference(make_layer("attention", biases=True), degree + 1) > 1e-3


@pytest.mark.parametrize(("degree", "kernel"), list(product([1, 2, 3], [1, 3, 5])))
def test_one_output_sees_1_plus_degree_times_kernel_minus_1_pixels(
    degree: int, kernel: int
) -> None:
    layer = PADRe(4, degree, kernel).double()
    x = draw(0, 1, 4, 33, 33).requires_grad_()
    layer(x)[0, :, 16, 16].sum().backward()
    assert x.grad is not None
    rows = torch.nonzero(x.grad.abs().sum((0, 1, 3))).flatten()
    assert int(rows.max() - rows.min()) + 1 == 1 + degree * (kernel - 1)


@pytest.mark.parametrize(
    ("name", "count"), [("attention", 148_224), ("padre2", 181_440), ("padre3", 302_400)]
)
def test_parameters_of_one_mixer(name: str, count: int) -> None:
    mixer = padre.make_mixer(name, 192, heads=3, kernel=11)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == count


def test_attention_is_softmax_attention_by_heads() -> None:
    layer = make_layer("attention", biases=True)
    assert isinstance(layer, padre.Attention)
    x = draw(0, 2, DIM, 2, 3)
    heads = [conv(x).flatten(2).unflatten(1, (3, -1)) for conv in (layer.query, layer.key)]
    scores = torch.einsum("bhdn,bhdm->bhnm", *heads) / (DIM // 3) ** 0.5
    value = layer.value(x).flatten(2).unflatten(1, (3, -1))
    mixed = torch.einsum("bhnm,bhdm->bhdn", scores.softmax(-1), value)
    torch.testing.assert_close(layer(x), layer.proj(mixed.reshape(x.shape)))


def test_channel_norm_is_torchs_layer_norm_over_channels() -> None:
    x = draw(0, 2, DIM, 3, 5)
    reference = nn.LayerNorm(DIM, eps=1e-6).double()
    found = padre.ChannelLayerNorm(DIM).double()(x)
    torch.testing.assert_close(found, reference(x.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("build", [padre.attention, padre.padre2, padre.padre3])
def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone(
    build: Callable[..., nn.Module],
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    nets = [build(seed, depth=1, dim=12, kernel=3) for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not nets[0].training


@pytest.mark.parametrize("name", ["attention", "padre2", "padre3"])
def test_image_mixers_and_position_all_move_the_logits(name: str) -> None:
    net = padre.build(name, 0, depth=2, dim=48, classes=20, kernel=5)
    assert isinstance(net, padre.VisionTransformer)
    images = [torch.from_numpy(feed["image"]) for feed in feeds(recipe.inputs(), 2, seed=0)]
    with torch.no_grad():
        logits = [net(image) for image in images]
        muted = padre.zero_mixers(net)(images[0])
    assert logits[0].shape == (1, 20)
    assert sqnr_db(logits[0], muted) < 10
    assert sqnr_db(logits[0], logits[1]) < 20
    with torch.no_grad():
        net.position.copy_(net.position.flip(2))
        assert sqnr_db(logits[0], net(images[0])) < 30


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


@pytest.mark.parametrize("name", ["attention", "padre2", "padre3"])
def test_zeroed_mixers_give_zero_and_the_original_keeps_its_weights(name: str) -> None:
    block = padre.build(name, 0, dim=12, kernel=3, part="block")
    before = nn.utils.parameters_to_vector(block.parameters()).clone()
    muted = padre.zero_mixers(block)
    x = draw(0, 1, 12, 14, 14).float()
    assert isinstance(muted, padre.Block)
    assert not muted.mixer(x).any()
    assert torch.equal(nn.utils.parameters_to_vector(block.parameters()), before)


@pytest.mark.parametrize(("grid", "name"), list(product([14, 128], ["padre2", "padre3"])))
def test_one_block_keeps_the_shape_at_the_smallest_and_the_largest_grid(
    grid: int, name: str
) -> None:
    options = {"grid": grid, "dim": 24, "part": "block"}
    (spec,) = recipe.inputs(**options)
    x = torch.from_numpy(feeds([spec], 1, seed=0)[0]["x"])
    with torch.no_grad():
        assert padre.build(name, 0, **options)(x).shape == spec.shape == (1, 24, grid, grid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": 13}, "grid is 13; give 14 to 128"),
        ({"grid": 129}, "grid is 129; give 14 to 128"),
        ({"dim": 100}, "3 heads do not divide dim 100"),
        ({"heads": 0}, "heads is 0; give 1 or more"),
        ({"depth": -1}, "depth is -1; give 1 or more"),
        ({"kernel": 4}, "kernel is 4; give an odd one"),
        ({"part": "half"}, "unknown part 'half'; give one of net, block"),
    ],
)
def test_options_of_which_no_net_can_be_built_are_refused_in_one_line(
    options: dict[str, int | str], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        padre.padre3(0, **options)
    assert "\n" not in str(caught.value)


def test_the_declared_options_are_those_of_build() -> None:
    built = inspect.signature(padre.build).parameters.values()
    defaults = {p.name: p.default for p in built if p.kind is p.KEYWORD_ONLY}
    assert {option.name: option.default for option in recipe.RECIPE.options} == defaults


def test_the_declaration_names_functions_that_exist_and_options_that_it_has() -> None:
    declared = recipe.RECIPE
    for where in (*declared.variants.values(), declared.calibration, declared.evaluate):
        module, _, function = where.partition(":")
        __import__(module)
        assert callable(getattr(sys.modules[module], function))
    assert {declared.default_variant, declared.baseline} <= set(declared.variants)
    names = {option.name for option in declared.options}
    assert all(set(options) <= names for _, options in declared.comparisons)


def test_the_declaration_is_short_and_imports_nothing_heavy() -> None:
    source = Path(inspect.getfile(recipe)).read_text()
    imports = [n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    assert not any(isinstance(node, ast.Import) for node in ast.walk(ast.parse(source)))
    ours = "edgeport_recipes.padre.claims"
    assert set(imports) == {"__future__", "types", "edgeport.types", ours}
    assert len(source.splitlines()) <= 80


@pytest.mark.parametrize("part", ["net", "block"])
def test_the_declared_input_fits_the_model(part: str) -> None:
    options = {"dim": 12, "part": part}
    (spec,) = recipe.inputs(**options)
    net = padre.padre2(0, depth=1, kernel=3, **options)
    with torch.no_grad():
        output = net(torch.zeros(spec.shape))
    assert output.shape == ((1, 1000) if part == "net" else spec.shape)


def exported(name: str) -> onnx.GraphProto:
    """Returns the ONNX graph of a net two blocks deep."""
    net = padre.build(name, 0, depth=2, dim=48)
    example = (torch.zeros(recipe.inputs()[0].shape),)
    program = torch.onnx.export(net, example, dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    return program.model_proto.graph


def products_of_activations(graph: onnx.GraphProto) -> list[str]:
    """Returns the matrix products of which neither factor is a weight."""
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and not weights.intersection(node.input[:2])
    ]


def test_exported_attention_has_what_padre_is_to_be_without() -> None:
    graph = exported("attention")
    assert {"Softmax", "Transpose"} <= {node.op_type for node in graph.node}
    assert len(products_of_activations(graph)) == 4


def test_exported_padre_has_no_softmax_no_transpose_and_no_product_of_matrices() -> None:
    graph = exported("padre3")
    operators = [node.op_type for node in graph.node]
    assert not {"Softmax", "Transpose"} & set(operators)
    assert products_of_activations(graph) == []
    assert operators.count("Conv") == 1 + 2 * (10 + 2) + 1


def test_feeds_are_images_that_follow_from_the_seed() -> None:
    spec = TensorSpec("image", "float32", (1, 3, 96, 160))
    first, again, other = (feeds([spec], 2, seed) for seed in (0, 0, 1))
    image = first[0]["image"]
    assert image.shape == spec.shape and image.dtype == np.float32
    np.testing.assert_allclose(image.mean((2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(image.std((2, 3)), 1, atol=1e-4)
    assert np.array_equal(image, again[0]["image"])
    distinct = [first[0], first[1], other[0], other[1]]
    assert len({feed["image"].tobytes() for feed in distinct}) == 4


def test_the_amplitude_of_the_images_falls_as_one_over_frequency() -> None:
    image = feeds([TensorSpec("image", "float32", (1, 3, 256, 256))], 1, seed=0)[0]["image"]
    power = np.abs(np.fft.rfft2(image[0])) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    low, high = (power[:, (frequency > f) & (frequency < 1.2 * f)].mean() for f in (0.04, 0.32))
    assert np.log2(low / high) / 3 == pytest.approx(2, abs=0.2)  # three octaves, power 1/f^2


def test_feeds_of_integers_are_refused() -> None:
    with pytest.raises(InputError, match="only float inputs"):
        feeds([TensorSpec("ids", "int64", (1, 8))], 1, seed=0)
