"""Builds the nn.Module that a `catalog.Source` names, with its inputs: one file a kind of source.

Random weights of timm and hf models are made worth comparing; a user's factory, a recipe and
loaded weights are left as they are.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgeport.catalog import Source
from edgeport.errors import InputError
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Built:
    """A module in eval mode, its inputs in the order of its arguments, and what to feed them.

    `integer_ranges` are half-open, per integer input. `random` says that nobody gave the weights.
    `weights` is where a state dict goes when the module only wraps the model. `notes` say in
    sentences what was changed.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    integer_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    random: bool = False
    model: nn.Module | None = None
    notes: tuple[str, ...] = ()


def build_module(source: Source, seed: int) -> nn.Module:
    """Returns the source's nn.Module in eval mode, with its weights loaded; raises InputError."""
    return build(source, seed).module


def build(source: Source, seed: int) -> Built:
    """Returns the source's module with its inputs; any source but an ONNX file has one.

    What the user's code prints goes to stderr. Raises InputError when it fails, when it gives
    something else, when the weights do not match, or hold NaN or infinity.
    """
    from torch import nn, random

    from edgeport.sources.network import guarded
    from edgeport.sources.ranges import integer_ranges
    from edgeport.sources.weights import check_finite, load_weights

    with (
        contextlib.redirect_stdout(sys.stderr),
        guarded(source),
        random.fork_rng(devices=[]),
    ):
        random.manual_seed(seed)
        built = _BUILDERS[source.kind](source, seed)
        if not isinstance(built.module, nn.Module):
            kind = type(built.module).__name__
            raise InputError(f"{source.text} gave a {kind}, not a torch.nn.Module")
        if source.weights is not None:
            load_weights(built.model or built.module, source.weights)
        if source.kind != "exported":  # an exported graph is as it was captured, and has no eval()
            built.module.eval()
        check_finite(built.module, source.text)
        ranges = integer_ranges(built.module, built.inputs, built.integer_ranges, seed)
        built = replace(built, integer_ranges=ranges)
        if built.random and source.weights is None:
            from edgeport.sources.statistics import make_comparable

            built = replace(built, notes=(*built.notes, *make_comparable(built, seed)))
    return built


def _recipe(source: Source, seed: int) -> Built:
    from edgeport.importing import importable, load_function, user_code

    assert source.recipe is not None
    ours = source.folder is None  # a mistake in edgeport's own recipe is no bad input
    with contextlib.nullcontext() if ours else user_code(source.text), importable(source.folder):
        make = load_function(source.recipe.variants[source.variant])
        return Built(make(seed, **source.options), source.inputs)


def _factory(source: Source, seed: int) -> Built:
    from edgeport.sources.factory import call_factory

    return Built(call_factory(source), source.inputs)


def _exported(source: Source, seed: int) -> Built:
    from edgeport.sources.exported import load_exported

    return load_exported(source)


def _timm(source: Source, seed: int) -> Built:
    from edgeport.sources.timm_models import create_timm

    return create_timm(source)


def _hf(source: Source, seed: int) -> Built:
    from edgeport.sources.hf_models import create_hf

    return create_hf(source)


_BUILDERS = {
    "recipe": _recipe,
    "factory": _factory,
    "exported": _exported,
    "timm": _timm,
    "hf": _hf,
}
