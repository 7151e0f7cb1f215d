"""Replacing attention by PADRe in modules of torch, of timm's shape and of the recipe."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from edgeport_recipes.padre import model as padre
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe, PADReMultihead, PADReTokens, replace_attention

DIM, GRID = 24, (4, 5)
TOKENS = GRID[0] * GRID[1]
SETTINGS = {"degree": 2, "kernel": 3, "grid": GRID}


class TokenAttention(nn.Module):
    """Self-attention as timm writes it: one qkv projection, one output projection."""

    def __init__(self, dim: int = DIM, heads: int = 4, inner: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * (inner or dim))
        self.proj = nn.Linear(inner or dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = TokenAttention()
        self.mlp = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), attn_mask=attn_mask)
        return x + self.mlp(self.norm2(x))


class WindowAttention(TokenAttention):
    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 4))


class CrossByCall(nn.Module):
    """Cross attention that only a call shows: the widths are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(DIM, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(x, x.flip(1), x.flip(1))[0]
        return out


class GatedAttention(nn.Module):
    """Attention of a form that the rewrite does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.out = nn.Linear(DIM, TOKENS), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.scores(x).softmax(-1) @ x)


def tokens(*, prefix: int = 0) -> Tensor:
    return torch.randn(2, prefix + TOKENS, DIM, generator=torch.Generator().manual_seed(0))


def encoder(*, batch_first: bool = True, layers: int = 3) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(DIM, 4, 48, batch_first=batch_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=batch_first)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_every_layer_of_torchs_encoder_is_replaced_and_called(training: bool, grad: bool) -> None:
    model = encoder().train(training)
    result = replace_attention(model, **SETTINGS)
    assert result.replaced == tuple(f"layers.{i}.self_attn" for i in range(3))
    assert result.refused == ()
    calls: list[nn.Module] = []
    for module in result.model.modules():
        if isinstance(module, PADRe):
            module.forward = counted(module, calls)  # type: ignore[method-assign]
    with torch.set_grad_enabled(grad):
        assert result.model(tokens()).shape == (2, TOKENS, DIM)
    assert len(calls) == 3
    assert result.model.layers[0].self_attn.training is training


def counted(module: PADRe, calls: list[nn.Module]) -> object:
    """Counts without a hook, as a hook alone would keep torch off its fused path."""

    def forward(x: Tensor) -> Tensor:
        calls.append(module)
        return PADRe.forward(module, x)

    return forward


def test_the_given_model_is_left_as_it_was() -> None:
    model = encoder().eval()
    before = model(tokens())
    result = replace_attention(model, **SETTINGS, example_inputs=(tokens(),))
    assert torch.equal(model(tokens()), before)
    assert not any(isinstance(module, PADRe) for module in model.modules())
    assert not torch.allclose(result.model(tokens()), before, atol=1e-2)
    with pytest.raises(FrozenInstanceError):
        result.refused = ()  # type: ignore[misc]


def test_tokens_before_batch_are_mixed_along_tokens() -> None:
    first = replace_attention(encoder(batch_first=True).eval(), **SETTINGS).model
    second = replace_attention(encoder(batch_first=False).eval(), **SETTINGS).model
    second.load_state_dict(first.state_dict())
    x = tokens()
    torch.testing.assert_close(second(x.transpose(0, 1)).transpose(0, 1), first(x))


def test_the_replaced_encoder_is_exported_without_softmax() -> None:
    model = replace_attention(encoder(layers=1).eval(), **SETTINGS).model
    called = {str(node.target) for node in torch.export.export(model, (tokens(),)).graph.nodes}
    assert "aten.conv2d.default" in called
    assert not [name for name in called if "softmax" in name or "attention" in name]


def test_a_mask_is_refused_at_the_call_and_with_example_inputs_before_it() -> None:
    model, mask = encoder().eval(), torch.ones(TOKENS, TOKENS).triu(1).bool()
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[:, -3:] = True
    unseen = replace_attention(model, **SETTINGS).model
    for masks in ({"mask": mask}, {"src_key_padding_mask": padding}):
        with torch.no_grad(), pytest.raises(InputError, match=r"PADRe has no place for .*mask"):
            unseen(tokens(), **masks)
    seen = replace_attention(model, **SETTINGS, example_inputs=(tokens(), mask))
    assert seen.replaced == ()
    assert seen.refused[0].startswith("layers.0.self_attn: it was called with attn_mask")
    torch.testing.assert_close(seen.model(tokens(), mask), model(tokens(), mask))


def test_a_vit_block_keeps_its_prefix_token_on_an_identity_path() -> None:
    result = replace_attention(ViTBlock().eval(), **SETTINGS, prefix_tokens=1)
    assert result.replaced == ("attn",)
    mixer, x = result.model.attn, tokens(prefix=1)
    assert isinstance(mixer, PADReTokens)
    mixed = mixer(x)
    assert torch.equal(mixed[:, :1], x[:, :1])
    image = x[:, 1:].transpose(1, 2).reshape(2, DIM, *GRID)
    torch.testing.assert_close(
        mixed[:, 1:].transpose(1, 2).reshape(image.shape), mixer.mixer(image)
    )
    assert result.model(x).shape == x.shape


def test_tokens_lie_row_by_row() -> None:
    mixer = PADReTokens(DIM, 1, 3, GRID).double()
    x = torch.zeros(1, TOKENS, DIM, dtype=torch.float64)
    moved = x.clone()
    moved[0, 2 * GRID[1] + 1] = 1  # row 2, column 1
    changed = (mixer(moved) - mixer(x)).abs().sum(2)[0].reshape(GRID)
    rows, columns = (set(index.tolist()) for index in torch.nonzero(changed).T)
    assert (rows, columns) == ({1, 2, 3}, {0, 1, 2})


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MultiheadAttention(DIM, 4, kdim=16, vdim=20), "cross attention (keys of width 16"),
        (nn.MultiheadAttention(DIM, 4, add_bias_kv=True), "it attends to an added key"),
        (nn.MultiheadAttention(DIM, 4, add_zero_attn=True), "it attends to an added key"),
        (WindowAttention(), "relative_position_bias_table is added to attention scores"),
        (TokenAttention(inner=32), "width mismatch: qkv maps 24 to 96 channels"),
        (GatedAttention(), "GatedAttention is named like attention but is of no form"),
    ],
)
def test_what_padre_cannot_stand_for_is_refused_by_path_and_reason(
    module: nn.Module, reason: str
) -> None:
    result = replace_attention(nn.Sequential(nn.Identity(), module), **SETTINGS)
    assert result.replaced == ()
    (sentence,) = result.refused
    assert sentence.startswith(f"1: {reason}") and sentence.endswith(".")


def test_an_attention_that_is_causal_by_its_own_setting_is_refused() -> None:
    block = ViTBlock()
    block.attn.is_causal = True
    assert replace_attention(block, **SETTINGS).refused == (
        "attn: its is_causal hides tokens from each other, which a convolution cannot.",
    )


def test_a_decoder_layer_keeps_both_attentions() -> None:
    result = replace_attention(nn.TransformerDecoderLayer(DIM, 4, 48), **SETTINGS)
    assert result.replaced == ()
    causal, cross = result.refused
    assert re.match("self_attn: .*causal", causal) and re.match("multihead_attn: cross", cross)


def test_cross_attention_of_equal_widths_shows_in_the_call() -> None:
    seen = replace_attention(CrossByCall(), **SETTINGS, example_inputs=(tokens(),))
    assert seen.refused == (
        "attn: it was called as cross attention (key or value is not the query).",
    )
    with pytest.raises(InputError, match="key and value must be the query"):
        replace_attention(CrossByCall(), **SETTINGS).model(tokens())


def test_a_grid_that_does_not_match_is_refused() -> None:
    block, x = ViTBlock(), tokens(prefix=1)
    (sentence,) = replace_attention(block, **SETTINGS, example_inputs=(x,)).refused
    assert sentence.startswith("attn: the grid does not match: an input of shape (2, 21, 24)")
    with pytest.raises(InputError, match="is not batch x 20 x channels"):
        replace_attention(block, **SETTINGS).model(x)


def test_the_recipes_attention_is_replaced_by_the_recipes_padre() -> None:
    net = padre.attention(0, depth=2, dim=12, kernel=3, classes=5)
    result = replace_attention(net, degree=3, kernel=3, grid=(14, 14))
    assert result.replaced == ("blocks.0.mixer", "blocks.1.mixer")
    same_shape = padre.padre3(0, depth=2, dim=12, kernel=3, classes=5)
    result.model.load_state_dict(same_shape.state_dict())
    image = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(result.model(image), same_shape(image))


def test_a_model_that_is_itself_attention_and_a_shared_one() -> None:
    alone = replace_attention(nn.MultiheadAttention(DIM, 4, batch_first=True).double(), **SETTINGS)
    assert isinstance(alone.model, PADReMultihead) and alone.replaced == ("",)
    x = tokens().double()
    mixed, weights = alone.model(x, x, x)
    assert mixed.dtype == torch.float64 and weights is None
    block = ViTBlock()
    shared = replace_attention(nn.Sequential(block, block), **SETTINGS)
    assert shared.replaced == ("0.attn", "1.attn")
    assert shared.model[0].attn is shared.model[1].attn


def test_replacing_again_finds_nothing() -> None:
    once = replace_attention(nn.Sequential(ViTBlock(), encoder(layers=1)), **SETTINGS)
    assert once.replaced == ("0.attn", "1.layers.0.self_attn")
    twice = replace_attention(once.model, **SETTINGS)
    assert (twice.replaced, twice.refused) == ((), ())


def test_new_weights_follow_from_the_seed() -> None:
    first, again, other = (
        nn.utils.parameters_to_vector(
            replace_attention(ViTBlock(), **SETTINGS, seed=seed).model.attn.parameters()
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("degree", "kernel"), [(0, 11), (2, 4), (2, 0)])
def test_degree_and_kernel_that_padre_cannot_have(degree: int, kernel: int) -> None:
    with pytest.raises(InputError, match="odd kernel"):
        PADRe(DIM, degree, kernel)


def test_untrained_padre_starts_near_degree_one() -> None:
    """The biases of one in the factors keep the output at the input's scale times a linear map."""
    torch.manual_seed(0)
    layer = PADRe(64, 3, 5)
    for branch in layer.branches[1:]:
        torch.testing.assert_close(branch.tokens.bias, torch.ones(64))
    x = 1e-3 * torch.randn(1, 64, 12, 12)
    with torch.no_grad():
        growth = layer(2 * x).norm() / layer(x).norm()
    assert float(growth) == pytest.approx(2, rel=0.02)
