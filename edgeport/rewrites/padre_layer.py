"""The layer of PADRe (arXiv 2407.11306), and its forms for tokens and for `nn.MultiheadAttention`.

`edgeport.rewrites.padre` puts them where attention stood.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from edgeport.errors import InputError

Prefix = Literal["identity", "pool"]


def init_fan_in(conv: nn.Conv2d | nn.Linear) -> None:
    """Draws weights that keep the variance of a unit Gaussian input (std 1/sqrt(fan-in)), bias 0.

    The 0.02 usual for transformers would leave an untrained net's mixers so quiet that a wrong
    mixer could hardly be seen in its output, and a comparison of two such nets proves little.
    """
    nn.init.trunc_normal_(conv.weight, std=1 / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class Mix(nn.Module):
    """Computes A X B: B mixes channels (pointwise), then A mixes tokens (depthwise)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.channels = nn.Conv2d(dim, dim, 1)
        self.tokens = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        init_fan_in(self.channels)
        init_fan_in(self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tokens(self.channels(x))
        return y


class PADRe(nn.Module):
    """Maps `B x D x H x W` to the same shape; each element is a polynomial of degree `degree`.

    Z_1 = Y_1 and Z_{i+1} = (C_i Z_i D_i) * Y_{i+1}, with Y_i = A_i X B_i; the last Z is returned,
    as the residual connection around the layer gives the linear term and the biases the constant
    one. Cost and parameters are linear in H W. Source: arXiv 2407.11306, section 3.
    """

    def __init__(self, dim: int, degree: int, kernel: int = 11) -> None:
        super().__init__()
        if degree < 1 or kernel < 1 or kernel % 2 == 0:
            raise InputError(
                f"PADRe needs a degree of at least 1 and an odd kernel, not degree {degree} and "
                f"kernel {kernel}: give for example degree=3, kernel=11."
            )
        self.branches = nn.ModuleList(Mix(dim, kernel) for _ in range(degree))
        self.carries = nn.ModuleList(Mix(dim, kernel) for _ in range(degree - 1))
        for branch in list(self.branches)[1:]:
            assert isinstance(branch, Mix) and branch.tokens.bias is not None
            nn.init.ones_(branch.tokens.bias)  # the layer starts near degree 1, not near x**degree

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.branches[0](x)
        for carry, branch in zip(self.carries, list(self.branches)[1:], strict=True):
            z = carry(z) * branch(x)
        return z


class PADReTokens(nn.Module):
    """Applies PADRe to tokens `B x N x D` that lie row by row on a grid, N = prefix + h * w.

    A grid has no place for prefix tokens such as CLS, and what the authors did is not published.
    With `prefix="identity"` they go around it unchanged, so this layer gives them nothing of the
    image: right only for a net that reads its answer from the grid. With "pool" each becomes
    U mean(mixed grid) + V token, with learned U and V: linear in the tokens, no softmax. Either
    way the grid receives nothing from them. With `batch_first` false the tokens are `N x B x D`.
    Raises InputError for another number of tokens, and for "pool" without prefix tokens.
    """

    def __init__(
        self,
        dim: int,
        degree: int,
        kernel: int,
        grid: tuple[int, int],
        prefix_tokens: int = 0,
        batch_first: bool = True,
        prefix: Prefix = "identity",
    ) -> None:
        super().__init__()
        if reason := _why_not_prefix(prefix, prefix_tokens):
            raise InputError(f"PADRe: {reason}.")
        self.mixer = PADRe(dim, degree, kernel)
        self.grid = grid
        self.prefix_tokens = prefix_tokens
        self.batch_first = batch_first
        self.prefix = prefix
        if prefix == "pool":
            self.pooled, self.kept = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
            init_fan_in(self.pooled)
            init_fan_in(self.kept)

    def forward(self, x: Tensor, *others: object, **named: object) -> Tensor:
        """Returns the mixed tokens; raises InputError where a mask or anything else is given."""
        named.update({f"argument {place}": other for place, other in enumerate(others, 2)})
        if extra := given(named):
            raise InputError(f"PADRe has no place for {extra}: leave this attention as it is.")
        return self._mix(x) if self.batch_first else self._mix(x.transpose(0, 1)).transpose(0, 1)

    def _mix(self, x: Tensor) -> Tensor:
        if reason := grid_mismatch(tuple(x.shape), self.grid, self.prefix_tokens):
            raise InputError(f"PADRe: {reason}.")
        prefix, tokens = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        image = tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)
        mixed: Tensor = self.mixer(image).flatten(2).transpose(1, 2)
        if self.prefix == "pool":
            prefix = self.pooled(mixed.mean(1, keepdim=True)) + self.kept(prefix)
        return torch.cat([prefix, mixed], dim=1) if self.prefix_tokens else mixed


class PADReMultihead(PADReTokens):
    """Stands where an `nn.MultiheadAttention` stood: same arguments, returns (output, None)."""

    # nn.TransformerEncoderLayer reads these before a fused path that would go around this layer;
    # with these values it calls the layer.
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None
    num_heads = 1

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True, **named: object
    ) -> tuple[Tensor, None]:
        """Returns (mixed tokens, None); raises InputError for cross attention and for masks.

        There are no attention weights to give, whatever `need_weights` says.
        """
        if key is not query or value is not query:
            raise InputError("PADRe replaces self-attention; key and value must be the query.")
        named.pop("average_attn_weights", None)
        return super().forward(query, **named), None


def _why_not_prefix(prefix: str, prefix_tokens: int) -> str:
    """Returns why prefix tokens cannot be carried so; empty where they can."""
    if prefix not in get_args(Prefix):
        return f"unknown prefix {prefix!r}; give one of {', '.join(get_args(Prefix))}"
    if prefix == "pool" and prefix_tokens < 1:
        return "prefix 'pool' needs prefix_tokens of at least 1; give how many there are"
    return ""


def grid_mismatch(shape: tuple[int, ...], grid: tuple[int, int], prefix: int) -> str:
    """Returns why tokens of `shape` (batch first) do not lie on `grid`; empty where they do."""
    wanted = prefix + grid[0] * grid[1]
    if len(shape) == 3 and shape[1] == wanted:
        return ""
    return (
        f"the grid does not match: an input of shape {shape} is not batch x {wanted} x channels "
        f"({prefix} prefix tokens and {grid[0]} x {grid[1]})"
    )


def given(named: dict[str, Any]) -> str:
    """Returns the names of the arguments that were really given: neither None nor False."""
    return ", ".join(
        name for name, value in named.items() if value is not None and value is not False
    )
