"""The ToSA recipe: its selection, its controls and rivals, its options, and what it costs."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import onnx
import pytest
import torch
from edgeport_recipes.tosa import cost, model, recipe, rivals
from edgeport_recipes.tosa.configs import Shape
from edgeport_recipes.tosa.selection import divergence, overlap
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.macs import node_macs
from edgeport.rewrites.token_selection import OneHotTokens, TopKTokens

SMALL = Shape(grid=6, dim=24, depth=4, heads=3, mlp=2, patch=4, outputs=7)


def small(variant: str, **changes: int | float | str) -> model.VisionTransformer:
    net = model.build(variant, 0, **{**asdict(SMALL), **changes})
    assert isinstance(net, model.VisionTransformer)
    return net.requires_grad_(False)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


# The network


@pytest.mark.parametrize("variant", model.VARIANTS)
@pytest.mark.parametrize("head", ["pooled", "dense"])
def test_every_variant_gives_outputs_that_depend_on_the_image(variant: str, head: str) -> None:
    found = small(variant, head=head)(images())
    assert found.shape == ((3, 7) if head == "pooled" else (3, 7, 6, 6))
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 0.05


def test_explicit_and_fused_attention_agree() -> None:
    layer, x = small("full").layers[0], torch.randn(2, 36, 24)
    found, logits = layer.with_logits(x)
    torch.testing.assert_close(found, layer(x))
    torch.testing.assert_close(logits, layer.logits(x))
    assert logits.shape == (2, 3, 36, 36)
    heads = [layer.attention.split(one(layer.norm1(x))) for one in (layer.attention.query,)]
    assert heads[0].shape == (2, 3, 36, 8)


def test_a_dense_head_keeps_the_places_of_patches() -> None:
    net = small("full", head="dense", depth=2)
    for layer in net.layers:
        for last in (layer.attention.proj, layer.mlp[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    first = images(1)
    second = first.clone()
    second[:, :, 8:12, 20:24] = 0  # row 2, column 5
    changed = (net(first) - net(second)).abs().sum((0, 1)) > 1e-6
    assert torch.nonzero(changed).tolist() == [[2, 5]]


def test_all_variants_of_a_seed_share_the_full_networks_weights() -> None:
    known = small("full").state_dict()
    for variant in model.VARIANTS:
        state = small(variant).state_dict()
        renamed = {name.replace(".inner.", "."): value for name, value in state.items()}
        assert all(torch.equal(value, renamed[name]) for name, value in known.items())
        extra = {name.split(".")[0] for name in renamed} - {name.split(".")[0] for name in known}
        assert extra == ({"scorers"} if variant in ("topk", "onehot") else set())


def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    nets = [model.build("topk", seed, **asdict(SMALL)) for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not nets[0].training


# Selection


@pytest.mark.parametrize("head", ["pooled", "dense"])
@pytest.mark.parametrize("ranks", ["int32", "float32"])
def test_both_forms_of_the_network_give_the_same_bits(head: str, ranks: str) -> None:
    topk = small("topk", head=head)
    onehot = model.onehot(0, ranks=ranks, **{**asdict(SMALL), "head": head})
    forms = [[type(one) for one in net.layers[1::2]] for net in (topk, onehot)]
    assert forms == [[TopKTokens] * 2, [OneHotTokens] * 2]
    with torch.no_grad():
        assert torch.equal(topk(images()), onehot(images()))


def test_with_every_token_kept_it_is_the_full_network() -> None:
    torch.testing.assert_close(small("topk", keep=1.0)(images()), small("full")(images()))


@pytest.mark.parametrize("source", ["topk", "copy", "random"])
def test_k_tokens_pass_the_second_layer_and_the_others_bypass_it(source: str) -> None:
    net = small(source, keep=0.3)
    normal, scorer, selective = net.pairs()[0]
    x, logits = normal.with_logits(net.embed(images()))
    found = selective(x, scorer(logits))
    changed = (found != x).any(2)
    assert changed.sum(1).tolist() == [net.shape.kept] * 3 == [11] * 3
    best = scorer(logits).topk(11, 1).indices.sort(1).values
    assert torch.equal(torch.nonzero(changed)[:, 1].reshape(3, -1), best)


def test_scores_are_the_attention_that_each_token_receives() -> None:
    logits = torch.randn(2, 3, 5, 5)
    maps = logits.softmax(-1)
    wanted = [[float(maps[b, :, :, k].sum()) for k in range(5)] for b in range(2)]
    torch.testing.assert_close(model.CopyScores()(logits), torch.tensor(wanted))


def test_the_selector_is_two_convolutions_of_kernel_1_and_starts_as_a_copy() -> None:
    torch.manual_seed(0)
    selector, logits = model.Selector(3), torch.randn(2, 3, 5, 5)
    by_hand = selector.conv2(torch.relu(selector.conv1(logits))).log_softmax(-1)
    torch.testing.assert_close(selector.predict(logits), by_hand)
    torch.testing.assert_close(selector(logits), by_hand.exp().sum((1, 2)))
    selector.start_as_copy()
    torch.testing.assert_close(selector.predict(logits), logits.log_softmax(-1))


def test_the_divergence_is_zero_for_the_truth_alone() -> None:
    selector, logits = model.Selector(2), torch.randn(2, 2, 5, 5)
    selector.start_as_copy()
    assert float(divergence(selector, logits, logits + 3)) == pytest.approx(0, abs=1e-6)
    true = torch.randn(2, 2, 5, 5)
    p, q = true.softmax(-1), logits.softmax(-1)
    wanted = (p * (p / q).log()).sum(-1).mean()
    assert float(divergence(selector, logits, true)) == pytest.approx(float(wanted), rel=1e-5)


def test_overlap_is_the_share_of_the_best_that_both_have() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [1, 1, 1, 1]])
    truth = torch.tensor([[1.0, 2, 3, 4], [9, 1, 8, 0], [0, 0, 7, 7]])
    assert overlap(scores, truth, 2).tolist() == [0.0, 0.5, 0.0]


def test_random_tokens_are_drawn_for_each_image_in_training_and_fixed_afterwards() -> None:
    scorer, logits = model.RandomScores(16, 3), torch.zeros(4, 2, 16, 16)
    assert not torch.equal(scorer(logits), scorer(logits))
    assert len({tuple(row) for row in scorer(logits).tolist()}) == 4
    scorer.eval()
    assert torch.equal(scorer(logits), scorer(logits))
    assert len({tuple(row) for row in scorer(logits).tolist()}) == 1
    assert not torch.equal(scorer.fixed, model.RandomScores(16, 4).fixed)
    assert list(scorer.state_dict()) == []


# Rivals


def test_dropped_tokens_keep_the_features_that_they_had() -> None:
    net = small("drop")
    assert isinstance(net, rivals.DroppingTransformer)
    x = net.embed(images())
    found = net.encode(x)
    after_first = net.layers[0](x)
    stale = torch.isclose(found, after_first, atol=1e-5).all(2)
    assert stale.sum(1).tolist() == [36 - net.counts[0]] * 3
    least = model.received(net.layers[0].logits(x)).topk(36 - net.counts[0], largest=False).indices
    assert torch.equal(torch.nonzero(stale)[:, 1].reshape(3, -1), least.sort(1).values)


def test_matching_merges_the_most_alike_and_keeps_the_rest() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0.1], [-1, 0]]])
    target = rivals.match(keys, 1)  # token 0 is most like token 3; 2 and 4 stay, before 1 and 3
    assert target.tolist() == [[3, 2, 0, 3, 1]]
    x = torch.arange(5.0).reshape(1, 5, 1)
    size = torch.tensor([1.0, 1, 1, 3, 1]).reshape(1, 5, 1)
    merged, sizes = rivals.merge(x, size, target, 1)
    assert merged.flatten().tolist() == [2.0, 4.0, 1.0, (0 * 1 + 3 * 3) / 4]
    assert sizes.flatten().tolist() == [1.0, 1.0, 1.0, 4.0]


def test_merging_nothing_is_the_full_network() -> None:
    net = small("merge")
    assert isinstance(net, rivals.MergingTransformer) and sum(net.counts) > 0
    assert not torch.allclose(net(images()), small("full")(images()), atol=1e-3)
    net.counts = (0,) * 4
    torch.testing.assert_close(net(images()), small("full")(images()))


def test_two_equal_tokens_count_twice_after_they_merged() -> None:
    layer = small("full").layers[0]
    x = torch.randn(1, 4, 24)
    twice = torch.cat([x, x[:, :1]], 1)
    once, _ = rivals.attend(layer, x, torch.tensor([2.0, 1, 1, 1]).reshape(1, 4, 1))
    wanted, _ = rivals.attend(layer, twice, torch.ones(1, 5, 1))
    torch.testing.assert_close(once, wanted[:, :4])


def test_unmerged_tokens_have_the_features_of_what_they_became() -> None:
    net = small("merge")
    assert isinstance(net, rivals.MergingTransformer)
    found = net.encode(net.embed(images(1)))[0]
    assert len(torch.unique(found, dim=0)) == 36 - sum(net.counts)


# Cost


def macs_of(net: nn.Module, folder: Path, image: Tensor) -> int:
    file = folder / "net.onnx"
    torch.onnx.export(net, (image,), file, dynamo=True, verbose=False)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file), data_prop=True).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for one in (*graph.input, *graph.output, *graph.value_info):
        shapes[one.name] = tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim)
    return sum(node_macs(node, shapes) for node in graph.node)


@pytest.mark.parametrize("variant", ["full", "topk", "onehot", "drop", "merge"])
def test_the_formula_counts_what_the_exported_graph_multiplies(
    variant: str, tmp_path: Path
) -> None:
    counted = macs_of(small(variant, head="dense"), tmp_path, images(1))
    wanted = cost.count_macs(variant, Shape(**{**asdict(SMALL), "head": "dense"}))
    assert counted == pytest.approx(wanted, rel=0.001)


@pytest.mark.parametrize("shape", [Shape(), Shape(8, 64, 4, 2, 4, 4, 0.5, 10), SMALL])
def test_the_rivals_cost_what_tosa_costs_or_up_to_3_percent_more(shape: Shape) -> None:
    ours = cost.body("topk", shape)
    for rival in ("drop", "merge"):
        assert ours <= cost.body(rival, shape) <= 1.03 * ours


def test_the_saving_of_both_forms_at_half_the_tokens() -> None:
    saved = {form: round(cost.saving(form, Shape()), 3) for form in ("topk", "onehot", "full")}
    assert saved == {"topk": 0.255, "onehot": 0.22, "full": 0.0}


def test_a_selector_that_costs_more_than_it_saves_leaves_the_rivals_their_tokens() -> None:
    greedy = Shape(grid=16, dim=8, depth=2, heads=8, keep=0.9)
    assert cost.saving("topk", greedy) < 0
    assert cost.drop_counts(greedy) == (256,) and cost.merge_counts(greedy) == (0, 0)


# Options and declaration


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": 0}, "grid is 0; give 1 or more"),
        ({"depth": 3}, "depth is 3; layers come in pairs, give an even one"),
        ({"heads": 5}, "5 heads do not divide dim 192"),
        ({"keep": 0.0}, "keep is 0.0; give a share above 0, up to 1"),
        ({"keep": 1.5}, "keep is 1.5; give a share above 0, up to 1"),
        ({"head": "cls"}, "unknown head 'cls'; give one of pooled, dense"),
        ({"trained": "nothing"}, "no weights nothing of tosa; give a file of train.py"),
    ],
)
def test_options_of_which_no_net_can_be_built_are_refused_in_one_line(
    options: dict[str, int | float | str], words: str
) -> None:
    for build in (model.topk, model.onehot):
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            build(0, **options)
        assert "\n" not in str(caught.value)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(InputError, match="unknown variant 'best'; give one of full, topk"):
        model.build("best", 0)


def test_k_is_the_same_for_every_image_and_never_none() -> None:
    assert [Shape(keep=keep).kept for keep in (0.5, 0.7, 1.0, 0.001)] == [98, 137, 196, 1]


def test_the_declared_options_are_those_of_build() -> None:
    built = {field.name: field.default for field in fields(Shape)}
    parameters = inspect.signature(model.build).parameters
    built |= {name: parameters[name].default for name in ("ranks", "trained")}
    assert {option.name: option.default for option in recipe.RECIPE.options} == built


def test_the_declared_input_is_that_of_the_net() -> None:
    (spec,) = recipe.inputs(grid=6, patch=4)
    assert spec.shape == (1, 3, 24, 24) and recipe.inputs()[0].shape == (1, 3, 224, 224)
    assert small("full")(torch.rand(spec.shape)).shape == (1, 7)


def test_what_is_claimed_can_be_measured() -> None:
    counted = Counter(claim.metric for claim in recipe.RECIPE.claims)
    assert set(counted.values()) == {1}
    measured = {"sqnr_db", "cpu_ops", "speedup", "macs_saving", "top1_loss", "absrel_growth"}
    assert {name.split(":")[0] for name in counted} == {*measured, "selector_overlap_gain"}
