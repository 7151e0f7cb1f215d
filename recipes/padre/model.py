"""A vision transformer shaped as DeiT-Tiny with one mixer slot: attention, or PADRe of degree 2, 3.

Features stay `B x D x H x W` from the patch embedding to the head, so that PADRe needs no
transpose. Untrained: weights keep the variance, so every layer counts in the output.
"""

from __future__ import annotations

import copy

import torch
from edgeport_recipes.padre.attention import Attention
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe, init_fan_in

PATCH = 16
GRIDS = range(14, 129)
PARTS = ("net", "block")


class ChannelLayerNorm(nn.Module):
    """Normalises `B x D x H x W` over D at each position: (x - mean) / sqrt(var + eps)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        x_hat = centred * torch.rsqrt(variance + self.eps)
        return x_hat * self.weight + self.bias


class MLP(nn.Sequential):
    """Two pointwise convolutions with a GELU between, `ratio` times as wide inside."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__(nn.Conv2d(dim, ratio * dim, 1), nn.GELU(), nn.Conv2d(ratio * dim, dim, 1))


class Block(nn.Module):
    """x = x + mixer(norm(x)), then x = x + mlp(norm(x)): the pre-norm block of DeiT."""

    def __init__(self, dim: int, mixer: nn.Module, mlp: int = 4) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(dim)
        self.mixer = mixer
        self.norm2 = ChannelLayerNorm(dim)
        self.mlp = MLP(dim, mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Maps images `B x 3 x patch grid x patch grid` to logits `B x classes`.

    The paper does not say what became of DeiT's CLS token, and a grid has no place for one: the
    features are averaged over the grid instead. A `dense` net averages nothing and gives
    `B x classes x grid x grid`.
    """

    output_names = ("logits",)

    def __init__(
        self,
        blocks: list[nn.Module],
        dim: int,
        grid: int,
        classes: int,
        patch: int = PATCH,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.dense = dense
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, dim, grid, grid))
        self.blocks = nn.Sequential(*blocks)
        self.norm = ChannelLayerNorm(dim)
        self.head = nn.Conv2d(dim, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image) + self.position
        x = self.norm(self.blocks(x))
        if self.dense:
            return self.head(x)
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


def attention(seed: int = 0, **options: int | str) -> nn.Module:
    """Returns the baseline with softmax attention; options as for `build`."""
    return build("attention", seed, **options)


def padre2(seed: int = 0, **options: int | str) -> nn.Module:
    """Returns the net with PADRe of degree 2; options as for `build`."""
    return build("padre2", seed, **options)


def padre3(seed: int = 0, **options: int | str) -> nn.Module:
    """Returns the net with PADRe of degree 3; options as for `build`."""
    return build("padre3", seed, **options)


def build(
    mixer: str,
    seed: int,
    *,
    grid: int = 14,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    kernel: int = 11,
    classes: int = 1000,
    part: str = "net",
    trained: str = "untrained",
) -> nn.Module:
    """Returns the net, or one block of it, in eval mode with weights that follow from `seed`.

    With `trained` it is a trained net and has the shape of its file; see `trained.load`. A block
    maps `B x dim x grid x grid` to the same shape. Raises InputError for a grid outside 14
    to 128, heads that do not divide dim, an even kernel, an unknown part, and sizes below 1.
    """
    if trained != "untrained":
        from edgeport_recipes.padre.trained import load

        return load(mixer, trained, part)
    check_options(grid, dim, depth, heads, kernel, classes, part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks: list[nn.Module] = [
            Block(dim, make_mixer(mixer, dim, heads, kernel))
            for _ in range(depth if part == "net" else 1)
        ]
        net = VisionTransformer(blocks, dim, grid, classes) if part == "net" else blocks[0]
        initialise(net)
    return net.eval()


def check_options(
    grid: int, dim: int, depth: int, heads: int, kernel: int, classes: int, part: str
) -> None:
    """Raises InputError, in one line, for options of which no net can be built."""
    sizes = {"dim": dim, "depth": depth, "heads": heads, "kernel": kernel, "classes": classes}
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"padre: {name} is {value}; give 1 or more.")
    if grid not in GRIDS:
        raise InputError(f"padre: grid is {grid}; give {GRIDS[0]} to {GRIDS[-1]}.")
    if dim % heads:
        raise InputError(f"padre: {heads} heads do not divide dim {dim}; give heads that do.")
    if kernel % 2 == 0:
        raise InputError(f"padre: kernel is {kernel}; give an odd one, such as 11.")
    if part not in PARTS:
        raise InputError(f"padre: unknown part {part!r}; give one of {', '.join(PARTS)}.")


def make_mixer(name: str, dim: int, heads: int, kernel: int) -> nn.Module:
    """Returns what goes into a block's mixer slot."""
    if name == "attention":
        return Attention(dim, heads)
    return PADRe(dim, {"padre2": 2, "padre3": 3}[name], kernel)


def initialise(net: nn.Module) -> None:
    """Gives every layer outside PADRe weights that keep the variance; PADRe did so itself.

    The positional embedding is as loud as the features: at the usual 0.02 an error in it would
    hide below the tolerances.
    """
    inside = {
        conv for module in net.modules() if isinstance(module, PADRe) for conv in module.modules()
    }
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module not in inside:
            init_fan_in(module)
    if isinstance(net, VisionTransformer):
        nn.init.trunc_normal_(net.position, std=0.5)


def zero_mixers(model: nn.Module) -> nn.Module:
    """Returns a copy whose mixers all give zero: the control without which parity proves little.

    Only weights change, so the graph stays what it was: the factor Y_d of PADRe, or attention's
    output projection.
    """
    result = copy.deepcopy(model)
    for module in result.modules():
        if isinstance(module, PADRe):
            last = module.branches[-1].tokens
        elif isinstance(module, Attention):
            last = module.proj
        else:
            continue
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return result
