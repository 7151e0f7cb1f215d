"""Networks that others trained, as plain modules: ResNet for CIFAR-10, VDSR, and TAEF2.

Their weights are in `$EDGEPORT_DATA/weights`; each is the benchmark's model from outside:

    edgeport export benchmarks/real_models.py:resnet20 --input "image:float32[1,3,32,32]" \
        --weights $EDGEPORT_DATA/weights/cifar_resnet/resnet20-12fca82f.th --calib-data IMAGES
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in its training


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut drops every other pixel and pads with zero channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """Classifies images `B x 3 x 32 x 32` in 0..1 into 10 logits."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        for number, (before, after) in enumerate(widths, start=1):
            first = BasicBlock(before, after, 1 + (after > before))
            rest = [BasicBlock(after, after, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1((image - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    """Returns ResNet20: three blocks in each of three stages."""
    return CifarResNet(3)


def resnet56() -> nn.Module:
    """Returns ResNet56: nine blocks in each of three stages."""
    return CifarResNet(9)


class VDSR(nn.Module):
    """Sharpens an upscaled luminance image `B x 1 x H x W` in 0..1 by twenty convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, *(64,) * 19, 1)
        for index, (before, after) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            self.add_module(f"conv{index:02}", convolution)

    def forward(self, luminance: Tensor) -> Tensor:
        x = luminance
        *hidden, last = self.children()
        for convolution in hidden:
            x = F.relu(convolution(x))
        return luminance + last(x)


def vdsr() -> nn.Module:
    """Returns VDSR."""
    return VDSR()


class Block(nn.Module):
    """A residual block of TAEF2: three 3 x 3 convolutions, some after a normalised 1 x 1 branch."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        layers = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        if pooled:
            narrow, wide = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)
            self.pool = nn.Sequential(wide, nn.GroupNorm(4, 256), nn.ReLU(), narrow)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Bounds latents softly: 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _halve() -> nn.Module:
    return nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)


def _double() -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)


def _three(pooled: bool = False) -> tuple[nn.Module, ...]:
    return tuple(Block(pooled) for _ in range(3))


def taef2_encoder() -> nn.Module:
    """Returns the encoder: an image `B x 3 x H x W` in 0..1 to latents `B x 32 x H/8 x W/8`."""
    first, last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
    down = (_halve(), *_three(), _halve(), *_three(), _halve(), *_three(pooled=True))
    return nn.Sequential(first, Block(False), *down, last)


def taef2_decoder() -> nn.Module:
    """Returns the decoder: latents `B x 32 x H/8 x W/8` to an image `B x 3 x H x W` in 0..1."""
    first, last = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    up = (*_three(pooled=True), *_double(), *_three(), *_double(), *_three(), *_double())
    return nn.Sequential(Clamp(), first, nn.ReLU(), *up, Block(False), last)
