"""A small vision transformer, and ToSA: every second layer takes only the tokens that it will need.

Layers come in pairs. The first is a normal layer; a selector reads its attention logits and
predicts the attention of the second; the tokens that are predicted to receive most pass the second,
attention and MLP, and the others bypass it (arXiv 2406.08816). Tokens are `B x N x D`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from edgeport_recipes._shared.vision.patches import Patches
from edgeport_recipes._shared.vision.weights import UNTRAINED
from edgeport_recipes.tosa.configs import Shape
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.token_selection import TopKTokens, replace_top_k

RANKS = {"int32": torch.int32, "float32": torch.float32}

# The ordinary transformer


class Attention(nn.Module):
    """Softmax self-attention with separate projections and 4-D heads: phones do badly on 5-D."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attention by torch's fused kernel, which never holds the N x N map."""
        return self.join(F.scaled_dot_product_attention(*self.project(x)))

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention and its logits Q K^T / sqrt(D / heads), `B x heads x N x N`."""
        query, key, value = self.project(x)
        logits = query * query.shape[-1] ** -0.5 @ key.mT
        return self.join(logits.softmax(-1) @ value), logits

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits alone."""
        query, key = self.split(self.query(x)), self.split(self.key(x))
        return query * query.shape[-1] ** -0.5 @ key.mT

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns query, key and value, each `B x heads x N x D / heads`."""
        return self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def join(self, mixed: Tensor) -> Tensor:
        """Returns the projection of heads side by side, `B x N x D`."""
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp * dim), nn.GELU(), nn.Linear(mlp * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the layer's output and its attention logits, which are computed explicitly."""
        mixed, logits = self.attention.with_logits(self.norm1(x))
        x = x + mixed
        return x + self.mlp(self.norm2(x)), logits

    def logits(self, x: Tensor) -> Tensor:
        """Returns the attention logits that the layer would have on tokens `x`."""
        return self.attention.logits(self.norm1(x))


class VisionTransformer(nn.Module):
    """Maps images `B x 3 x grid patch x grid patch` in 0..1 to `B x outputs`, of the mean token, or
    to `B x outputs x grid x grid`, of each token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.output_names = ("logits",) if shape.head == "pooled" else ("values",)
        self.patches = Patches(shape.dim, shape.patch)
        self.position = nn.Parameter(torch.zeros(1, shape.tokens, shape.dim))
        self.layers = nn.ModuleList(
            Layer(shape.dim, shape.heads, shape.mlp) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6)
        self.head = nn.Linear(shape.dim, shape.outputs)

    def forward(self, image: Tensor) -> Tensor:
        return self.read_out(self.encode(self.embed(image)))

    def embed(self, image: Tensor) -> Tensor:
        """Returns the tokens of the patches, rows first."""
        return self.patches(image).flatten(2).mT + self.position

    def encode(self, x: Tensor) -> Tensor:
        """Takes every token through every layer."""
        for layer in self.layers:
            x = layer(x)
        return x

    def read_out(self, x: Tensor) -> Tensor:
        """Returns the outputs of the tokens after the last layer."""
        x = self.norm(x)
        if self.shape.head == "pooled":
            return self.head(x.mean(1))
        return self.head(x).mT.reshape(x.shape[0], -1, self.shape.grid, self.shape.grid)


# ToSA


class Selector(nn.Module):
    """Predicts the attention of the next layer from the logits of this one, point by point.

    Two convolutions of kernel 1 over `B x heads x N x N`, heads -> 2 heads -> heads, with a ReLU
    between.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(heads, 2 * heads, 1), nn.Conv2d(2 * heads, heads, 1)

    def start_as_copy(self) -> None:
        """Makes it the identity, relu(x) - relu(-x) = x, from which training starts: it then
        predicts that the next layer attends as this one does."""
        unit = torch.eye(self.conv2.out_channels)
        with torch.no_grad():
            self.conv1.weight.copy_(torch.cat([unit, -unit])[:, :, None, None])
            self.conv2.weight.copy_(torch.cat([unit, -unit], 1)[:, :, None, None])
            self.conv1.bias.zero_()
            self.conv2.bias.zero_()

    def predict(self, logits: Tensor) -> Tensor:
        """Returns the logarithm of the predicted map, `B x heads x queries x keys`."""
        return F.log_softmax(self.predicted_logits(logits), -1)

    def predicted_logits(self, logits: Tensor) -> Tensor:
        """Returns the predicted logits, less what is the same for all keys of a query.

        The convolutions are written as products: for two or three channels, onnxruntime's own take
        longer than the layers. Softmax does not see the second one's bias.
        """
        points = logits.flatten(2)
        inner = self.conv1.weight.flatten(1) @ points + self.conv1.bias[:, None]
        return (self.conv2.weight.flatten(1) @ F.relu(inner)).reshape(logits.shape)

    def forward(self, logits: Tensor) -> Tensor:
        """Returns the scores `B x N`."""
        return received(self.predicted_logits(logits))


class CopyScores(nn.Module):
    """The control that predicts nothing: the attention that tokens receive in this layer."""

    def forward(self, logits: Tensor) -> Tensor:
        return received(logits)


class RandomScores(nn.Module):
    """The control that looks at nothing: other tokens for every image in training, afterwards the
    same ones for all, which follow from the seed."""

    fixed: Tensor

    def __init__(self, tokens: int, seed: int) -> None:
        super().__init__()
        drawn = torch.rand(1, tokens, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("fixed", drawn, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            return torch.rand_like(logits[:, 0, 0])
        return self.fixed.expand(logits.shape[0], -1)


def received(logits: Tensor) -> Tensor:
    """Returns how much attention each token receives of all queries and heads, `B x N`."""
    return logits.softmax(-1).sum(2).sum(1)


class SelectiveTransformer(VisionTransformer):
    """The transformer whose every second layer only the best-scored tokens pass.

    `scorers` give scores `B x N` from the logits of the layer before, one for each pair.
    """

    def __init__(self, shape: Shape, scorers: Sequence[nn.Module]) -> None:
        super().__init__(shape)
        self.scorers = nn.ModuleList(scorers)
        for at in range(1, shape.depth, 2):
            self.layers[at] = TopKTokens(self.layers[at], shape.kept)

    def encode(self, x: Tensor) -> Tensor:
        for normal, scorer, selective in self.pairs():
            x, logits = normal.with_logits(x)
            x = selective(x, scorer(logits))
        return x

    def pairs(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Returns the normal layer, the scorer and the selective layer of each pair."""
        return list(zip(self.layers[::2], self.scorers, self.layers[1::2], strict=True))


# Variants


def full(seed: int = 0, **options: int | float | str) -> nn.Module:
    """Returns the baseline, every token through every layer; options as for `build`."""
    return build("full", seed, **options)


def topk(seed: int = 0, **options: int | float | str) -> nn.Module:
    """Returns ToSA with TopK, Gather and Scatter; options as for `build`."""
    return build("topk", seed, **options)


def onehot(seed: int = 0, **options: int | float | str) -> nn.Module:
    """Returns ToSA with the exact one-hot products; options as for `build`."""
    return build("onehot", seed, **options)


def build(
    variant: str,
    seed: int,
    *,
    trained: str = UNTRAINED,
    ranks: str = "int32",
    **sizes: int | float | str,
) -> nn.Module:
    """Returns the net of `Shape(**sizes)` in eval mode with weights that follow from `seed`.

    With `trained` it is a trained net and has the shape of its file; see `trained.load`. `ranks` is
    the type that the one-hot form counts in. Raises InputError for an unknown variant and for sizes
    of which no net can be built.
    """
    if variant == "onehot":  # the same network, so the same weights
        topk = build("topk", seed, trained=trained, **sizes)
        return replace_top_k(topk, RANKS[ranks])
    if trained != UNTRAINED:
        from edgeport_recipes.tosa.trained import load

        return load(variant, trained)
    shape = Shape(**sizes)
    shape.check()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make(variant, shape, seed)
        torch.manual_seed(seed)  # so that all variants of a seed share their weights
        initialise(net)
    return net.eval()


def make(variant: str, shape: Shape, seed: int) -> VisionTransformer:
    """Returns the network of a variant with torch's own initial weights."""
    from edgeport_recipes.tosa.rivals import DroppingTransformer, MergingTransformer

    pairs = range(shape.depth // 2)
    if variant == "topk":
        return SelectiveTransformer(shape, [Selector(shape.heads) for _ in pairs])
    if variant == "copy":
        return SelectiveTransformer(shape, [CopyScores() for _ in pairs])
    if variant == "random":
        scorers = [RandomScores(shape.tokens, 1000 * seed + pair) for pair in pairs]
        return SelectiveTransformer(shape, scorers)
    others = {"full": VisionTransformer, "drop": DroppingTransformer, "merge": MergingTransformer}
    if variant not in others:
        raise InputError(f"tosa: unknown variant {variant!r}; give one of {', '.join(VARIANTS)}.")
    return others[variant](shape)


VARIANTS = ("full", "topk", "onehot", "copy", "random", "drop", "merge")


def initialise(net: VisionTransformer) -> None:
    """Gives every layer weights that keep the variance, and the position the loudness of the
    features: at the usual 0.02 an error in it would hide below the tolerances."""
    for module in net.modules():
        if isinstance(module, nn.Linear) or module is net.patches:
            keep_variance(module)
    nn.init.trunc_normal_(net.position, std=0.5)
    for module in net.modules():  # last, so that all variants of a seed share the rest
        if isinstance(module, Selector):
            keep_variance(module.conv1, 2**0.5)
            keep_variance(module.conv2)


def keep_variance(module: nn.Module, gain: float = 1.0) -> None:
    """Draws weights of deviation gain / sqrt(inputs) and sets the bias to zero."""
    nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
    nn.init.zeros_(module.bias)
