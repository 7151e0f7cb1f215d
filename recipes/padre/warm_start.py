"""Starts a PADRe from the attention that it stands for, so that it has less to learn.

Attention is A X V O for each head: tokens mixed by scores, channels by the value and the output
projection. The scores cannot be carried over; V O can, as the channel mixing of the first branch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeport.rewrites.padre import Mix, PADRe, PADReTokens

QUIET = 0.1
"""What is left of the drawn weights in the factors: they start near 1, and no two alike."""


@torch.no_grad()
def start_from(mixer: nn.Module, attention: nn.Module) -> None:
    """Makes the mixer near a mean over its window of the attention's projected values.

    Y_1 gets them, the carries start as the identity, the other factors near 1, and a pooled prefix
    as the mean of the grid. Both modules are as `replace_attention` pairs them.
    """
    layer = mixer.mixer if isinstance(mixer, PADReTokens) else mixer
    assert isinstance(layer, PADRe)
    first, *others = _mixes(layer.branches)
    weight, bias = projected_values(attention)
    first.channels.weight.copy_(weight[:, :, None, None])
    _bias(first.channels).copy_(bias)
    side = first.tokens.kernel_size[0]
    seen = [min(side, length) for length in getattr(mixer, "grid", (side, side))]
    first.tokens.weight.fill_(1 / (seen[0] * seen[1]))  # of the window what lies on the grid
    for factor in others:
        factor.tokens.weight.mul_(QUIET)
    for carry in _mixes(layer.carries):
        nn.init.dirac_(carry.channels.weight)
        nn.init.dirac_(carry.tokens.weight, groups=carry.tokens.groups)
    if isinstance(mixer, PADReTokens) and mixer.prefix == "pool":
        nn.init.eye_(mixer.pooled.weight)
        nn.init.zeros_(mixer.kept.weight)


def projected_values(attention: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns weight `dim x dim` and bias of x -> O(V(x)), for the forms of `replace_attention`."""
    if isinstance(attention, nn.MultiheadAttention):
        assert isinstance(attention.in_proj_weight, Tensor)
        value = attention.in_proj_weight.chunk(3)[2], _part(attention.in_proj_bias, 2, 3)
        output = attention.out_proj.weight, attention.out_proj.bias
    else:
        last = attention.proj
        assert isinstance(last, nn.Linear | nn.Conv2d)
        output = last.weight.flatten(1), last.bias
        joint = getattr(attention, "qkv", None)
        if isinstance(joint, nn.Linear):
            value = joint.weight.chunk(3)[2], _part(joint.bias, 2, 3)
        else:
            single = attention.value
            assert isinstance(single, nn.Conv2d)
            value = single.weight.flatten(1), single.bias
    bias = output[0].new_zeros(len(output[0]))
    if value[1] is not None:
        bias = bias + output[0] @ value[1]
    if output[1] is not None:
        bias = bias + output[1]
    return output[0] @ value[0], bias


def _part(bias: Tensor | None, index: int, count: int) -> Tensor | None:
    return None if bias is None else bias.chunk(count)[index]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _mixes(modules: nn.ModuleList) -> list[Mix]:
    found = [module for module in modules if isinstance(module, Mix)]
    assert len(found) == len(modules)
    return found
