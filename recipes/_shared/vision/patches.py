"""The first layer of a vision transformer, for images in 0..1."""

from __future__ import annotations

from torch import Tensor, nn


class Patches(nn.Conv2d):
    """Maps images `B x 3 x H x W` in 0..1 to features of patches, as a convolution of 4 x - 2.

    The scaling is in the weights, which is exact, as the windows do not overhang: an exported graph
    has no operator for it that could be quantized badly, or not at all.
    """

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__(3, dim, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        assert self.bias is not None
        shift = self.bias - 2 * self.weight.sum((1, 2, 3))
        return self._conv_forward(image, 4 * self.weight, shift)
