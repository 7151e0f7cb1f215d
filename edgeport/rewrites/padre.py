"""PADRe (arXiv 2407.11306): a polynomial of the input in place of softmax attention.

The rewrite that puts the layer where attention stood. It changes the method, so the result has to
be trained: it is not an exact graph pass.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeport.rewrites.padre_layer import (
    Mix,
    PADRe,
    PADReMultihead,
    PADReTokens,
    Prefix,
    given,
    grid_mismatch,
    init_fan_in,
)

__all__ = [
    "Mix",
    "PADRe",
    "PADReMultihead",
    "PADReTokens",
    "Prefix",
    "Replacement",
    "init_fan_in",
    "replace_attention",
]


@dataclass(frozen=True)
class Replacement:
    """A rewritten copy of a model, the paths replaced, and a sentence for each one refused."""

    model: nn.Module
    replaced: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What every replacement shares."""

    degree: int
    kernel: int
    grid: tuple[int, int]
    prefix_tokens: int
    prefix: Prefix


_Call = tuple[tuple[Any, ...], dict[str, Any]]
_BIASES = ("relative_position_bias_table", "relative_position_bias", "rel_pos_h")
_MASKS = ("attn_mask", "mask", "causal_mask", "causal", "is_causal")


def replace_attention(
    model: nn.Module,
    *,
    degree: int,
    kernel: int = 11,
    grid: tuple[int, int],
    prefix_tokens: int = 0,
    prefix: Prefix = "identity",
    example_inputs: Sequence[Any] | None = None,
    seed: int = 0,
) -> Replacement:
    """Replaces every self-attention in a copy of `model` with an untrained PADRe of its width.

    Known forms: `nn.MultiheadAttention`; modules with linear `qkv` and `proj` (as in timm); and
    modules with pointwise convolutions `query`, `key`, `value` and `proj` on `B x D x H x W`.
    Other modules named like attention are refused, as is what PADRe cannot stand for. `prefix`
    says how tokens before the grid, such as CLS, are carried; see `PADReTokens`. Masks,
    cross attention and token counts show only in a call: give `example_inputs` to have them
    refused here; without, the new layer raises InputError when it is called so.
    """
    plan = _Plan(degree, kernel, grid, prefix_tokens, prefix)
    result = copy.deepcopy(model)
    calls = {} if example_inputs is None else _observe(result, example_inputs)
    replaced: list[str] = []
    refused: list[str] = []
    made: dict[nn.Module, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, parent, module in _find_attention(result):
            if reason := _why_not(module, parent, path, plan, calls.get(module, [])):
                refused.append(f"{path or 'the model itself'}: {reason}.")
                continue
            new = made[module] = made.get(module) or _build(module, plan)
            if parent is None:
                result = new
            else:
                setattr(parent, path.rpartition(".")[2], new)
            replaced.append(path)
    _keep_off_fused_path(result)
    return Replacement(result, tuple(replaced), tuple(refused))


def _keep_off_fused_path(model: nn.Module) -> None:
    """Stops `nn.TransformerEncoder` from reading the weights of a replaced layer's attention."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(part, PADReMultihead) for part in module.modules()
        ):
            module.use_nested_tensor = False


def _find_attention(
    module: nn.Module, path: str = "", parent: nn.Module | None = None
) -> list[tuple[str, nn.Module | None, nn.Module]]:
    """Returns (path, parent, module) of each attention, one entry a path even where one is shared.

    A module that is only named like attention counts where nothing within it is one.
    """
    here = [(path, parent, module)]
    if _width(module) is not None:
        return here
    inside = [
        found
        for name, child in module._modules.items()
        if child is not None
        for found in _find_attention(child, f"{path}.{name}" if path else name, module)
    ]
    named = re.search(r"attention|attn", type(module).__name__, re.IGNORECASE)
    return inside or (here if named and any(True for _ in module.parameters()) else [])


def _is_mixer(module: nn.Module) -> bool:
    """Says whether `module` has the pointwise convolutions of attention on `B x D x H x W`."""
    parts = [getattr(module, name, None) for name in ("query", "key", "value", "proj")]
    return all(isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) for part in parts)


def _width(module: nn.Module) -> int | None:
    """Returns the input channels of an attention of a known form; None for other modules."""
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
    if isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear):
        return int(qkv.in_features)
    if _is_mixer(module):
        query = module.query
        assert isinstance(query, nn.Conv2d)
        return query.in_channels
    return None


def _why_not(
    module: nn.Module, parent: nn.Module | None, path: str, plan: _Plan, calls: list[_Call]
) -> str:
    """Returns why `module` must stay as it is; empty where it can be replaced."""
    if _width(module) is None:
        return (
            f"{type(module).__name__} is named like attention but is of no form that this rewrite "
            "knows (nn.MultiheadAttention, qkv and proj, or query, key, value and proj)"
        )
    for name in _BIASES:
        if getattr(module, name, None) is not None:
            return f"{name} is added to attention scores (windows), and PADRe has no scores"
    for name in _MASKS:
        value = getattr(module, name, None)
        if isinstance(value, Tensor) or value is True:
            return f"its {name} hides tokens from each other, which a convolution cannot"
    if isinstance(module, nn.MultiheadAttention):
        reason = _why_not_multihead(module, parent, path)
    else:
        reason = _why_not_projections(module)
    seen = (_why_not_call(module, args, kwargs, plan) for args, kwargs in calls)
    return reason or next(filter(None, seen), "")


def _why_not_multihead(module: nn.MultiheadAttention, parent: nn.Module | None, path: str) -> str:
    width, name = module.embed_dim, path.rpartition(".")[2]
    if module.kdim != width or module.vdim != width:
        return (
            f"cross attention (keys of width {module.kdim} and values of width {module.vdim} for "
            f"queries of width {width}), and PADRe has one input"
        )
    if isinstance(parent, nn.TransformerDecoderLayer):
        return (
            "cross attention of a decoder layer, and PADRe has one input"
            if name == "multihead_attn"
            else "a decoder layer's self-attention is causal, and PADRe looks at all neighbours"
        )
    if module.bias_k is not None or module.add_zero_attn:
        return "it attends to an added key (add_bias_kv, add_zero_attn) that is not on the grid"
    return ""


def _why_not_projections(module: nn.Module) -> str:
    width = _width(module)
    shapes = {
        name: tuple(part.weight.shape[:2])
        for name in ("qkv", "query", "key", "value", "proj")
        if isinstance(part := getattr(module, name, None), (nn.Linear, nn.Conv2d))
    }
    for name, shape in shapes.items():
        wanted = (3 * width if name == "qkv" else width, width) if width else shape
        if shape != wanted:
            return (
                f"width mismatch: {name} maps {shape[1]} to {shape[0]} channels where PADRe of "
                f"width {width} would stand for {wanted[1]} to {wanted[0]}"
            )
    needed = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(needed) > 1:
        return f"it takes {len(needed)} inputs ({', '.join(needed)}), and PADRe has one"
    return ""


def _why_not_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], plan: _Plan
) -> str:
    """Returns what in an observed call PADRe cannot stand for; empty where there is nothing."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if isinstance(module, nn.MultiheadAttention):
        query, key, value = (bound.pop(name) for name in ("query", "key", "value"))
        bound.pop("need_weights", None)
        bound.pop("average_attn_weights", None)
        if key is not query or value is not query:
            return "it was called as cross attention (key or value is not the query)"
    else:
        query = bound.pop(next(iter(bound)))
    if extra := given(bound):
        return f"it was called with {extra}, which PADRe has no place for"
    if _is_mixer(module):
        return ""
    swap = not getattr(module, "batch_first", True) and query.dim() == 3
    shape = tuple((query.transpose(0, 1) if swap else query).shape)
    return grid_mismatch(shape, plan.grid, plan.prefix_tokens)


def _observe(model: nn.Module, example_inputs: Sequence[Any]) -> dict[nn.Module, list[_Call]]:
    """Runs `model` once and returns how each attention in it was called."""
    calls: dict[nn.Module, list[_Call]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, []).append((args, kwargs))

    modules = {module for _, _, module in _find_attention(model) if _width(module) is not None}
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would bypass the hooks
    try:
        with torch.no_grad():
            model.eval()(*example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _build(module: nn.Module, plan: _Plan) -> nn.Module:
    """Makes the PADRe that stands for `module`: its width, element type, device and mode."""
    width = _width(module)
    assert width is not None
    shape = plan.degree, plan.kernel, plan.grid, plan.prefix_tokens
    new: nn.Module
    if isinstance(module, nn.MultiheadAttention):
        new = PADReMultihead(width, *shape, module.batch_first, prefix=plan.prefix)
    elif _is_mixer(module):
        new = PADRe(width, plan.degree, plan.kernel)
    else:
        new = PADReTokens(width, *shape, prefix=plan.prefix)
    weight = next(module.parameters())
    return new.to(device=weight.device, dtype=weight.dtype).train(module.training)
