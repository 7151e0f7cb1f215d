"""Reads weight files without running code from them, and loads them into a module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a .safetensors or torch file into the module; raises InputError with the first keys."""
    state = read_weights(path)
    expected = module.state_dict()
    # Files from before BatchNorm counted its batches lack the counts; torch fills them in.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    for problem, keys in (("lack", missing), ("have unknown", surplus), ("differ:", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(f"weights {path} {problem} {', '.join(keys[:3])}{more}")
    module.load_state_dict(state)


def read_weights(path: Path) -> dict[str, Any]:
    """Returns the tensors of a .safetensors file, or of a torch file read with weights_only."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each of the two libraries has its own tree of read errors
        line = next(iter(str(error).splitlines()), "")
        if "weights_only" in line:  # torch then advises to load it as code
            line = "it is no file of tensors alone; save module.state_dict() with safetensors"
        raise InputError(f"weights {path} cannot be read: {line}") from error
    for wrapper in ("state_dict", "model"):  # the two usual ways in which trainers wrap it
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(hasattr(v, "shape") for v in state.values()):
        raise InputError(f"weights {path} hold no state_dict of tensors")
    for prefix in ("module.", "_orig_mod."):  # DataParallel and torch.compile put these before all
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def check_finite(module: nn.Module, name: str) -> None:
    """Raises InputError naming the first parameter or buffer that holds NaN or infinity.

    A buffer of zeros and infinities is an attention mask, and passes.
    """
    for key, parameter in module.named_parameters():
        if not _finite(parameter):
            raise InputError(f"{name}: weight {key} holds NaN or infinity; export a sound model")
    for key, buffer in module.named_buffers():
        if not (_finite(buffer) or _is_mask(buffer)):
            raise InputError(f"{name}: buffer {key} holds NaN or infinity; export a sound model")


def _finite(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _is_mask(tensor: torch.Tensor) -> bool:
    return bool((tensor.isinf() | (tensor == 0)).all())
