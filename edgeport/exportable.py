"""Lets torch export functions that its exporter refuses, or writes in ways no NPU takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MOST_DIFFERENCES = 1 << 22  # elements of the tensor of all differences: 16 MiB
_TENSORS = ("query", "key", "value", "attn_mask")  # of scaled_dot_product_attention


def exportable_functions() -> TorchFunctionMode:
    """Returns a context in which those functions reach torch as ones that its exporter takes.

    The answers are the same up to rounding.
    """
    return _Exportable()


class _Exportable(TorchFunctionMode):
    """Computes the functions of _FORMS in their own form, where that has one for the arguments."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(keywords or {})
        form = _FORMS.get(function)
        answer = None if form is None else form(*arguments, **named)
        return function(*arguments, **named) if answer is None else answer


def _attention(*arguments: Any, **named: Any) -> Tensor | None:
    """Returns the attention of tensors of any rank, computed at rank 4; None for those of rank 4.

    Leading axes are folded into the first, or some are added: the exporter takes no other rank.
    """
    named.update(zip((*_TENSORS, "dropout_p", "is_causal"), arguments))
    query, key, value = (named[name] for name in _TENSORS[:3])
    if query.dim() == 4:
        return None
    leading = np.broadcast_shapes(*(one.shape[:-2] for one in (query, key, value)))
    for name in _TENSORS:
        if named.get(name) is not None:
            whole = named[name].expand(*leading, *named[name].shape[-2:])
            named[name] = whole.reshape(-1, 1, *whole.shape[-2:])
    answer = functional.scaled_dot_product_attention(**named)
    return answer.reshape(*leading, *answer.shape[-2:])


def _resized(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    """Returns the area-weighted resize, an adaptive average pool; None for other modes."""
    if mode != "area" or size is None:
        return None
    return _pooled(input.dim() - 2, input, size)


def _pooled(rank: int, input: Tensor, output_size: Any) -> Tensor | None:
    """Returns the averages; None where all windows have one size, which is a plain pool."""
    before = [int(size) for size in input.shape[-rank:]]
    stated = output_size if isinstance(output_size, Sequence) else [output_size] * rank
    after = [old if new is None else int(new) for old, new in zip(before, stated, strict=True)]
    if all(old % new == 0 for old, new in zip(before, after, strict=True)):
        return None
    for axis, (old, new) in enumerate(zip(before, after, strict=True), input.dim() - rank):
        if old != new:
            lines = input.flatten(axis + 1) if axis + 1 < input.dim() else input.unsqueeze(-1)
            averages = torch.matmul(_windows(old, new).to(input), lines)
            input = averages.reshape(*input.shape[:axis], new, *input.shape[axis + 1 :])
    return input


def _windows(size: int, count: int) -> Tensor:
    """Returns count x size weights: window i covers floor(i n / m) up to ceil((i + 1) n / m)."""
    weights = torch.zeros(count, size)
    for index in range(count):
        first, last = index * size // count, -(-(index + 1) * size // count)
        weights[index, first:last] = 1 / (last - first)
    return weights


def _distances(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | None:
    """Returns the distances between all rows; None for p other than 1 and 2.

    Many rows are compared by |a|^2 + |b|^2 - 2 a b, as torch does; few by their differences.
    """
    if p not in (1.0, 2.0):
        return None
    count = x1.numel() * x2.shape[-2]
    if p == 2.0 and count > _MOST_DIFFERENCES:
        squares = x1.square().sum(-1, keepdim=True) + x2.square().sum(-1).unsqueeze(-2)
        return (squares - 2 * x1 @ x2.transpose(-1, -2)).clamp(min=0).sqrt()
    differences = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1.0:
        return differences.abs().sum(-1)
    return differences.square().sum(-1).sqrt()


_FORMS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.adaptive_avg_pool1d: partial(_pooled, 1),
    functional.adaptive_avg_pool2d: partial(_pooled, 2),
    functional.adaptive_avg_pool3d: partial(_pooled, 3),
    functional.interpolate: _resized,
    torch.cdist: _distances,
}
