"""Bounded warps and splats against grid_sample and an explicit scatter, and on the NPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import needs_compiler
from torch import Tensor

import edgeport
from edgeport.errors import InputError
from edgeport.rewrites.warp import bounded_splat, bounded_warp
from edgeport.runtimes.qnn_context_binary import NAME as NPU

FACTORY = """from torch import Tensor, nn

from edgeport.rewrites.warp import bounded_splat, bounded_warp


class Net(nn.Module):
    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        flow = 2 * flow.tanh()
        return bounded_{kind}(image, flow, 2)
"""


def scene(seed: int, radius: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, 7, 9, generator=generator, dtype=torch.float64)
    flow = torch.rand(batch, 2, 7, 9, generator=generator, dtype=torch.float64) * 2 - 1
    return image, flow * radius


def sampled(image: Tensor, flow: Tensor) -> Tensor:
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack(
        [2 * (x + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1], -1
    )
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=True)


def scattered(values: Tensor, flow: Tensor) -> Tensor:
    """Adds each pixel to its four neighbours, one pixel after the other."""
    total = torch.zeros_like(values)
    batch, _, height, width = values.shape
    for b, y, x in np.ndindex(batch, height, width):
        to_x, to_y = x + float(flow[b, 0, y, x]), y + float(flow[b, 1, y, x])
        for j in (int(np.floor(to_y)), int(np.floor(to_y)) + 1):
            for i in (int(np.floor(to_x)), int(np.floor(to_x)) + 1):
                if 0 <= i < width and 0 <= j < height:
                    weight = (1 - abs(to_x - i)) * (1 - abs(to_y - j))
                    total[b, :, j, i] += weight * values[b, :, y, x]
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_a_warp_is_grid_sample(seed: int, radius: int) -> None:
    image, flow = scene(seed, radius)
    torch.testing.assert_close(bounded_warp(image, flow, radius), sampled(image, flow))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_a_splat_is_the_scatter(seed: int, radius: int) -> None:
    values, flow = scene(seed, radius, batch=1)
    torch.testing.assert_close(bounded_splat(values, flow, radius), scattered(values, flow))


def test_a_flow_at_the_bound_and_of_whole_pixels() -> None:
    image, flow = scene(0, 2)
    for whole in (flow.round(), torch.full_like(flow, 2.0), torch.full_like(flow, -2.0)):
        torch.testing.assert_close(bounded_warp(image, whole, 2), sampled(image, whole))
        torch.testing.assert_close(bounded_splat(image, whole, 2), scattered(image, whole))


def test_a_splat_is_the_transpose_of_the_warp() -> None:
    image, flow = scene(3, 2)
    other, _ = scene(4, 2)
    left = (bounded_warp(image, flow, 2) * other).sum()
    torch.testing.assert_close(left, (image * bounded_splat(other, flow, 2)).sum())


def test_gradients_reach_values_and_flow() -> None:
    image, flow = scene(5, 1, batch=1)
    arguments = image.requires_grad_(), (flow * 0.9).detach().requires_grad_(), 1
    assert torch.autograd.gradcheck(bounded_warp, arguments)
    assert torch.autograd.gradcheck(bounded_splat, arguments)


def test_shapes_that_do_not_fit_are_told() -> None:
    image, flow = scene(0, 1)
    with pytest.raises(InputError, match="radius must be 1 or more"):
        bounded_warp(image, flow, 0)
    with pytest.raises(InputError, match=r"\(2, 3, 7, 9\) and flow \(2, 2, 7, 8\) do not fit"):
        bounded_splat(image, flow[..., :-1], 1)


@needs_compiler
@pytest.mark.parametrize("kind", ["warp", "splat"])
@pytest.mark.parametrize(("precision", "least_db"), [("float", 50.0), ("w8a16", 40.0)])
def test_all_of_it_runs_on_the_npu(
    kind: str, precision: str, least_db: float, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(FACTORY.format(kind=kind))
    exported = edgeport.export(
        f"{tmp_path}/net.py:Net",
        output_dir=tmp_path / "out",
        cache_dir=tmp_path / "cache",
        inputs=["image:float32[1,3,16,16]", "flow:float32[1,2,16,16]"],
        device="s24",
        precision=precision,
        target_runtimes=[NPU],
        calib_samples=32,  # where many pixels meet, sums are larger than a few samples show
    )
    assert exported.manifest["placement"][NPU]["cpu"] == 0
    assert exported.artifact("run", NPU).parity[0].value > least_db
