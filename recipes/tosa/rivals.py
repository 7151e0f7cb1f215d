"""What ToSA is compared with at equal cost: tokens that are dropped, and tokens that are merged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from edgeport_recipes.tosa.configs import Shape
from edgeport_recipes.tosa.cost import drop_counts, merge_counts
from edgeport_recipes.tosa.model import Layer, VisionTransformer, received
from torch import Tensor

from edgeport.rewrites.token_selection import ranks, top_tokens


class DroppingTransformer(VisionTransformer):
    """Drops, after the first layer of each pair, the tokens that receive the least attention in it.

    Dropped tokens pass no later layer. At the end every token is back in its place, the dropped
    ones with the features that they had (as EViT, arXiv 2202.07800, without its fused token).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.counts = drop_counts(shape)

    def encode(self, x: Tensor) -> Tensor:
        whole = x
        left = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        for first, second, count in zip(self.layers[::2], self.layers[1::2], self.counts):
            x, logits = first.with_logits(x)
            whole = whole.scatter(1, wide(left, x), x)
            chosen = top_tokens(received(logits), count)
            left, x = left.gather(1, chosen), x.gather(1, wide(chosen, x))
            x = second(x)
        return whole.scatter(1, wide(left, x), x)


class MergingTransformer(VisionTransformer):
    """Merges, in each layer between attention and MLP, the tokens whose keys are most alike.

    As ToMe (arXiv 2210.09461): tokens are split in two sets by turns; each of the first finds the
    nearest of the second, and the nearest pairs become their mean, weighted by how many patches a
    token stands for. Attention counts a token that often too. At the end each patch has the
    features of the token that stands for it.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.counts = merge_counts(shape)

    def encode(self, x: Tensor) -> Tensor:
        owner = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        size = torch.ones_like(x[:, :, :1])
        for layer, count in zip(self.layers, self.counts, strict=True):
            mixed, keys = attend(layer, x, size)
            target = match(keys, count)
            x, size = merge(x + mixed, size, target, count)
            owner = target.gather(1, owner)
            x = x + layer.mlp(layer.norm2(x))
        return x.gather(1, wide(owner, x))


def attend(layer: Layer, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the attention, where a key counts `size` times, and the mean key of the heads."""
    query, key, value = layer.attention.project(layer.norm1(x))
    weight = size.log().mT.unsqueeze(1)  # B x 1 x 1 x N
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=weight)
    return layer.attention.join(mixed), key.mean(1)


def match(keys: Tensor, count: int) -> Tensor:
    """Returns where each of N tokens goes among N - count, `B x N`, from keys `B x N x D`.

    Tokens 0, 2, ... may be merged; each finds the most alike by cosine among 1, 3, ...; the `count`
    most alike go there. The others keep their order, those of the first set before the second.
    """
    keys = F.normalize(keys, dim=-1)
    alike, nearest = (keys[:, ::2] @ keys[:, 1::2].mT).max(-1)
    stay = alike.shape[1] - count
    place = ranks(alike).long()
    first = torch.where(place < count, stay + nearest, place - count)
    second = stay + torch.arange(keys.shape[1] // 2, device=keys.device)
    both = torch.cat([first, second.expand(len(keys), -1)], 1)
    return both[:, by_turns(keys.shape[1])]


def by_turns(count: int) -> Tensor:
    """Returns the order that puts 0, 2, ..., 1, 3, ... back to 0, 1, 2, ..."""
    return torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)]).argsort()


def merge(x: Tensor, size: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the means of tokens `B x N x D` that go to one place, weighted by size `B x N x 1`,
    and their sizes."""
    shape = (x.shape[0], x.shape[1] - count, x.shape[2])
    sizes = size.new_zeros(*shape[:2], 1).scatter_add(1, target.unsqueeze(2), size)
    sums = x.new_zeros(shape).scatter_add(1, wide(target, x), x * size)
    return sums / sizes, sizes


def wide(index: Tensor, x: Tensor) -> Tensor:
    """Returns indices `B x K` of tokens once for each of their features, `B x K x D`."""
    return index.unsqueeze(2).expand(-1, -1, x.shape[2])
