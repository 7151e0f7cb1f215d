"""Makes random weights worth comparing: no branch is zero, BatchNorm has seen inputs.

Libraries start some weights at zero or nearly so (heads, LayerScale, the last BatchNorm of a
residual block), and every BatchNorm at mean 0 and variance 1. A network so started is partly a
constant, or its activations vanish layer by layer: its SQNR says nothing about the trained one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from edgeport.errors import InputError
from edgeport.feeds import random_feed
from edgeport.sources import Built

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCHES, BATCH_SIZE = 4, 8
_SEED = 2_000_003  # far from the seeds of calibration and parity
_TINY = 1e-2  # a constant scale below this is a library's start: LayerScale begins at 1e-4 or less
_SCALES = (0.25, 0.75)  # where it is drawn from: residual branches neither vanish nor dominate


def make_comparable(built: Built, seed: int) -> tuple[str, ...]:
    """Replaces zero weights and tiny scales by seeded values, then computes BatchNorm statistics.

    Returns a sentence for each of the two that did something. The module is changed in place.
    """
    filled = fill_zero_weights(built.module, seed)
    count = calibrate_batch_norm(built, seed)
    notes = []
    if filled:
        notes.append(f"random weights: {filled} that start at zero or nearly so got seeded values")
    if count:
        notes.append(
            f"random weights: running statistics of {count} BatchNorm layers computed on"
            f" {BATCHES * BATCH_SIZE} seeded inputs"
        )
    return tuple(notes)


def fill_zero_weights(module: nn.Module, seed: int) -> int:
    """Replaces weights that are all zero, and constant scales below 1e-2, and returns how many.

    Matrices and kernels are drawn with the deviation 1/sqrt(inputs), which keeps the variance;
    scales uniformly from 0.25 to 0.75. Biases may be zero and stay.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    filled = 0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if _is_scale(parameter):
                if name.endswith("bias") or not _is_tiny_constant(parameter):
                    continue
                parameter.uniform_(*_SCALES, generator=generator)
            elif not parameter.any():
                inputs = parameter[0].numel() if len(parameter) > 1 else parameter.shape[-1]
                parameter.normal_(0, 1 / math.sqrt(inputs), generator=generator)
            else:
                continue
            filled += 1
    return filled


def _is_scale(parameter: torch.Tensor) -> bool:
    """Returns whether a parameter is one number per channel: C, 1 x C x 1 x 1, or a scalar."""
    return sum(size > 1 for size in parameter.shape) <= 1


def _is_tiny_constant(parameter: torch.Tensor) -> bool:
    return (
        bool((parameter == parameter.flatten()[0]).all())
        and abs(float(parameter.flatten()[0])) <= _TINY
    )


def calibrate_batch_norm(built: Built, seed: int) -> int:
    """Sets each BatchNorm's running statistics to their average over seeded inputs.

    Returns the number of layers. Raises InputError where the module does not take its inputs.
    """
    import torch

    layers = batch_norms(built.module)
    if not layers:
        return 0
    generator = np.random.default_rng(seed + _SEED)
    with _averaging(layers), torch.no_grad():
        for _ in range(BATCHES):
            feeds = [
                random_feed(built.inputs, built.integer_ranges, generator)
                for _ in range(BATCH_SIZE)
            ]
            batch = [
                torch.from_numpy(np.concatenate([feed[spec.name] for feed in feeds]))
                for spec in built.inputs
            ]
            _run(built, batch)
    return len(layers)


def _run(built: Built, batch: list[torch.Tensor]) -> None:
    try:
        built.module(*batch)
    except Exception as error:  # the library's forward may raise anything
        shapes = ", ".join(map(str, built.inputs))
        line = next(iter(str(error).splitlines()), "")
        raise InputError(f"the model fails on {shapes}: {type(error).__name__}: {line}") from error


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Returns the BatchNorm layers that keep running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]


@contextmanager
def _averaging(layers: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Lets the layers alone gather the plain average over batches; no dropout runs."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the cumulative average
        layer.train()
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
            layer.eval()
