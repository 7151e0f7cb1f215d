"""Which integers a module takes: ids below the size of the table they index, masks of ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeport.feeds import Feed, random_feed
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Ranges = Mapping[str, tuple[int, int]]


def integer_ranges(
    module: nn.Module, inputs: Sequence[TensorSpec], known: Ranges, seed: int
) -> dict[str, tuple[int, int]]:
    """Returns a half-open range per integer input whose values the module limits.

    `known` wins. An input named as a mask is all ones: nothing is padding. For another the module
    runs once on zeros and ones, and each nn.Embedding that gets exactly this input gives its
    number of rows, the smallest if there are several. What is not here is drawn from 0 and 1.
    """
    integers = [spec for spec in inputs if not spec.dtype.startswith("float")]
    ranges = {spec.name: _by_form(spec) for spec in integers}
    found = {name: pair for name, pair in ranges.items() if pair is not None}
    found.update({name: pair for name, pair in known.items() if name in ranges})
    open_names = [spec.name for spec in integers if spec.name not in found]
    if open_names:
        feed = random_feed(inputs, found, np.random.default_rng(seed))
        rows = _embedding_rows(module, feed)
        found.update({name: (0, rows[name]) for name in open_names if name in rows})
    return found


def _by_form(spec: TensorSpec) -> tuple[int, int] | None:
    if spec.name.endswith("mask"):
        return (1, 2)
    if spec.dtype == "uint8" and len(spec.shape) >= 3:
        return (0, 256)  # pixels
    return None


def _embedding_rows(module: nn.Module, feed: Feed) -> dict[str, int]:
    """Returns, per input that goes to an nn.Embedding unchanged, the table's rows."""
    import torch

    rows: dict[str, int] = {}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}
    with _watched(module, tensors, rows), torch.no_grad(), contextlib.suppress(Exception):
        # Whatever it raises it raises again where the reference is computed, and is told there.
        module(*tensors.values())
    return rows


@contextlib.contextmanager
def _watched(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], rows: dict[str, int]
) -> Iterator[None]:
    """Notes in `rows` the smallest table that each tensor is looked up in."""
    from torch import equal, nn

    def note(embedding: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(embedding, nn.Embedding)
        for name, tensor in tensors.items():
            same = arguments and arguments[0].shape == tensor.shape
            if same and equal(arguments[0].to(tensor.dtype), tensor):
                size = embedding.num_embeddings
                rows[name] = min(rows.get(name, size), size)

    embeddings = [one for one in module.modules() if isinstance(one, nn.Embedding)]
    hooks = [embedding.register_forward_pre_hook(note) for embedding in embeddings]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
