"""Softmax self-attention on a grid: the baseline that PADRe replaces."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Softmax self-attention over the H W positions of `B x D x H x W`: the baseline.

    The heads are split from 4-D tensors, without the 5-D view of a joint qkv projection that
    phones handle badly, and `scaled_dot_product_attention` may use its fused kernel.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(conv(x)) for conv in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(2, 3).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """Returns `B x heads x H W x D/heads`, contiguous: torch's fused kernel needs it so."""
        return x.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3]).mT.contiguous()
