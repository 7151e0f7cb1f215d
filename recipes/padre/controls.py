"""Mixers that tell what PADRe's product is worth: what its reviewers asked to be compared with."""

from __future__ import annotations

from edgeport_recipes.padre.attention import Attention
from torch import Tensor, nn

from edgeport.rewrites.padre import PADRe, init_fan_in


class Convolutions(PADRe):
    """The convolutions of PADRe with a sum wherever it has a product: linear in its input."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.branches[0](x)
        for carry, branch in zip(self.carries, list(self.branches)[1:], strict=True):
            z = carry(z) + branch(x)
        return z


class LocalAttention(nn.Module):
    """Softmax attention plus one depthwise convolution of its input: locality, and no product."""

    def __init__(self, dim: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.local = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        init_fan_in(self.local)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x) + self.local(x)
        return mixed


class NoMixing(nn.Module):
    """Nothing: each token keeps to itself until the features are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())
