"""Lets torch export attention on tensors that are not B x heads x tokens x channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_TENSORS = ("query", "key", "value", "attn_mask")


class _FourDimensional(TorchFunctionMode):
    """Folds leading axes into the first, or adds some, around each attention of another rank."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(keywords or {})
        if function is not scaled_dot_product_attention:
            return function(*arguments, **named)
        named.update(zip((*_TENSORS, "dropout_p", "is_causal"), arguments))
        query, key, value = (named[name] for name in _TENSORS[:3])
        if query.dim() == 4:
            return function(**named)
        leading = np.broadcast_shapes(*(one.shape[:-2] for one in (query, key, value)))
        for name in _TENSORS:
            if named.get(name) is not None:
                named[name] = _folded(named[name], leading)
        answer = function(**named)
        return answer.reshape(*leading, *answer.shape[-2:])


def _folded(tensor: Tensor, leading: Sequence[int]) -> Tensor:
    """Returns `... x rows x columns` as `all leading axes x 1 x rows x columns`."""
    whole = tensor.expand(*leading, *tensor.shape[-2:])
    return whole.reshape(-1, 1, *tensor.shape[-2:])


def four_dimensional_attention() -> TorchFunctionMode:
    """Returns a context in which scaled_dot_product_attention reaches torch with rank 4 only.

    The exporter takes no other; the answer is the same.
    """
    return _FourDimensional()
