"""A layer that only the best-scored tokens pass, in two forms that give the same bits.

`TopKTokens` picks them with TopK, Gather and Scatter; `OneHotTokens` with comparisons and two
matrix products, for accelerators that lack those three. The number of tokens is fixed when the
module is made, so every shape is static (ToSA, arXiv 2406.08816).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgeport.errors import InputError


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` highest scores `B x N`, best first, `B x count`.

    Equal scores go by index, as in ONNX's TopK. Torch's own `topk` leaves ties open and its
    exporters have no stable sort: so the sort is used, and `topk` where a graph is exported.
    """
    if torch.compiler.is_exporting():
        return torch.topk(scores, count, dim=1, sorted=True).indices
    order: Tensor = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return order[:, :count]


def ranks(scores: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
    """Returns the place of each score among `B x N`, 0 for the highest, by comparisons alone.

    rank_j = sum_k [s_k > s_j] + sum_{k < j} [s_k = s_j].
    """
    count = scores.shape[1]
    own, others = scores.unsqueeze(2), scores.unsqueeze(1)
    earlier = torch.ones(count, count, dtype=dtype, device=scores.device).tril(-1)
    ahead = (others > own).to(dtype) + (others == own).to(dtype) * earlier
    return ahead.sum(2, dtype=dtype)


class TopKTokens(nn.Module):
    """Passes the `count` tokens with the highest scores through `inner`; the others bypass it.

    Maps tokens `B x N x D` and scores `B x N` to `B x N x D`, each token in its old place. `inner`
    gets `B x count x D`, best first, and gives the same shape. Give a token that must pass, such as
    CLS, the highest score. No gradient reaches the scores. Raises InputError for a count below 1.
    """

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        if count < 1:
            raise InputError(f"count is {count}; give 1 or more tokens")
        self.inner, self.count = inner, count

    def forward(self, tokens: Tensor, scores: Tensor) -> Tensor:
        self.check(tokens)
        chosen = top_tokens(scores, self.count).unsqueeze(2).expand(-1, -1, tokens.shape[2])
        return tokens.scatter(1, chosen, self.inner(tokens.gather(1, chosen)))

    def check(self, tokens: Tensor) -> None:
        """Raises InputError where there are fewer tokens than shall pass."""
        if tokens.shape[1] < self.count:
            raise InputError(f"{tokens.shape[1]} tokens are fewer than the {self.count} to pass")


class OneHotTokens(TopKTokens):
    """As `TopKTokens`, by matrix products: P x, then P^T f(P x) + (1 - sum_r P) x.

    P_{rj} = [rank_j = r] has one 1 a row, so the products copy finite values exactly. They cost
    2 count N D multiply-accumulates more. `ranks` is the type to count in: int32, which no
    quantizer rounds, or float32 for LiteRT's GPU delegate, which lacks integers; its 16-bit floats
    count exactly to 2,048 tokens.
    """

    def __init__(self, inner: nn.Module, count: int, ranks: torch.dtype = torch.int32) -> None:
        super().__init__(inner, count)
        self.ranks = ranks

    def forward(self, tokens: Tensor, scores: Tensor) -> Tensor:
        self.check(tokens)
        places = torch.arange(self.count, dtype=self.ranks, device=scores.device)
        picked = ranks(scores, self.ranks).unsqueeze(1) == places.reshape(1, -1, 1)
        one_hot = picked.to(tokens.dtype)
        passed = self.inner(one_hot @ tokens)
        bypass = 1 - one_hot.sum(1).unsqueeze(2)
        return one_hot.mT @ passed + bypass * tokens


def replace_top_k(model: nn.Module, ranks: torch.dtype = torch.int32) -> nn.Module:
    """Returns a copy whose every `TopKTokens` is a `OneHotTokens`; it gives the same outputs.

    Raises InputError where there is none.
    """
    whole = nn.Sequential(copy.deepcopy(model))
    count = 0
    for parent in reversed(list(whole.modules())):  # what is inside a selection comes first
        for name, child in parent.named_children():
            if type(child) is TopKTokens:
                setattr(parent, name, OneHotTokens(child.inner, child.count, ranks))
                count += 1
    if not count:
        raise InputError("the model has no TopKTokens: nothing selects tokens in it")
    return whole[0]
