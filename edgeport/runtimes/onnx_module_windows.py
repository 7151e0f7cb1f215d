"""ONNX operators over pictures, in torch: convolutions, pools, resizes, samplers.

Each function takes a Node and returns its Operation (`edgeport.runtimes.onnx_module`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeport.runtimes.onnx_module import Node, Operation, same_pads

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


@dataclass(frozen=True)
class _Window:
    """How a kernel moves over a picture."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto_pad: str

    def pads_of(self, x: Tensor) -> list[int]:
        """Returns ONNX's pads: all begins, then all ends."""
        if self.auto_pad == "VALID":
            return [0] * (2 * len(self.kernel))
        if self.auto_pad == "NOTSET":
            return self.pads
        return same_pads(self.auto_pad, x.shape[2:], self.kernel, self.strides, self.dilations)


def _window(node: Node, kernel: Sequence[int]) -> _Window:
    ones = [1] * len(kernel)
    return _Window(
        list(kernel),
        node.attribute("strides") or ones,
        node.attribute("dilations") or ones,
        node.attribute("pads") or [0] * (2 * len(kernel)),
        node.attribute("auto_pad"),
    )


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Returns x with ONNX's pads around its spatial axes."""
    half = len(pads) // 2
    pairs = [one for i in reversed(range(half)) for one in (pads[i], pads[half + i])]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _even(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


# Convolutions


def _conv(node: Node) -> Operation:
    kernel, groups = node.attribute("kernel_shape") or _kernel(node), node.attribute("group")
    window = _window(node, kernel)
    function = _by_rank(node, kernel, _CONVOLUTIONS)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pads = window.pads_of(x)
        inner = pads[: len(kernel)] if _even(pads) else [0] * len(kernel)
        x = x if _even(pads) else _padded(x, pads)
        return function(x, weight, bias, window.strides, inner, window.dilations, groups)

    return convolve


def _conv_transpose(node: Node) -> Operation:
    kernel, groups = node.attribute("kernel_shape") or _kernel(node), node.attribute("group")
    window, rank = _window(node, kernel), len(kernel)
    node.only(auto_pad="NOTSET", output_shape=None)
    extra = node.attribute("output_padding") or [0] * rank
    function = _by_rank(node, kernel, _TRANSPOSED)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pads = window.pads
        even = _even(pads) and min(pads) >= 0
        inner = pads[:rank] if even else [0] * rank
        y = function(x, weight, bias, window.strides, inner, extra, groups, window.dilations)
        return y if even else _padded(y, [-one for one in pads])

    return convolve


def _kernel(node: Node) -> list[int]:
    shape = node.shape(1)
    if shape is None:
        raise node.refusal("its weight is computed, and it states no kernel_shape")
    return list(shape[2:])


def _by_rank(
    node: Node, kernel: Sequence[int], functions: Mapping[int, Callable[..., Tensor]]
) -> Callable[..., Tensor]:
    if len(kernel) not in functions:
        raise node.refusal(f"over {len(kernel)} axes, torch has none")
    return functions[len(kernel)]


# Pools


def _max_pool(node: Node) -> Operation:
    kernel = node.attribute("kernel_shape")
    window, ceil = _window(node, kernel), bool(node.attribute("ceil_mode"))
    node.attribute("storage_order")  # of the indices
    if node.outputs > 1:
        raise node.refusal("its indices are not translated as an output")
    function = _by_rank(node, kernel, _MAX_POOLS)

    def pool(x: Tensor) -> Tensor:
        pads = window.pads_of(x)
        inner = pads[: len(kernel)]
        if not _even(pads) or any(2 * pad > size for pad, size in zip(inner, kernel)):
            lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
            x, inner = _padded(x, pads, lowest), [0] * len(kernel)
        return function(x, kernel, window.strides, inner, window.dilations, ceil)

    return pool


def _average_pool(node: Node) -> Operation:
    kernel = node.attribute("kernel_shape")
    window, ceil = _window(node, kernel), bool(node.attribute("ceil_mode"))
    counted = bool(node.attribute("count_include_pad"))
    node.only(dilations=[1] * len(kernel))
    function = _by_rank(node, kernel, _AVERAGE_POOLS)

    def pool(x: Tensor) -> Tensor:
        pads = window.pads_of(x)
        inner = pads[: len(kernel)]
        if _even(pads) and not any(2 * pad > size for pad, size in zip(inner, kernel)):
            return function(x, kernel, window.strides, inner, ceil, counted)
        around = _padded(x, pads)
        means = function(around, kernel, window.strides, [0] * len(kernel), ceil, False)
        if counted:
            return means
        inside = _padded(torch.ones_like(x[:1, :1]), pads)
        return means / function(inside, kernel, window.strides, [0] * len(kernel), ceil, False)

    return pool


def _global(function: Callable[..., Tensor]) -> Callable[[Node], Operation]:
    return lambda node: lambda x: function(x, list(range(2, x.ndim)), True)


def _global_norm(node: Node) -> Operation:
    order = node.attribute("p")
    return lambda x: torch.linalg.vector_norm(x, order, tuple(range(2, x.ndim)), keepdim=True)


# Sizes


def _resize(node: Node) -> Operation:
    mode, placing = node.attribute("mode"), node.attribute("coordinate_transformation_mode")
    node.only(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")
    node.attribute("extrapolation_value")  # of tf_crop_and_resize, which is refused
    node.constant(1)  # its region: the same
    scales, sizes, axes = node.constant(2), node.integers(3), node.attribute("axes")
    rounding, coefficient = node.attribute("nearest_mode"), node.attribute("cubic_coeff_a")
    factors = None if scales is None or not scales.size else [float(one) for one in scales]
    if mode != "nearest":
        _check_smooth(node, mode, placing, coefficient)
    elif placing not in _PLACES:
        raise node.refusal(f"coordinate_transformation_mode {placing} is not translated")

    def resize(x: Tensor, *_: None) -> Tensor:
        every, scaled = _sizes(x, factors, sizes, axes)
        if mode == "nearest":
            return _nearest(x, every, scaled, placing, rounding)
        if placing == "pytorch_half_pixel" and 1 in every[2:]:
            raise node.refusal(f"{placing} to a single element is not torch's own")
        return _smooth(x, every, scaled, mode, placing == "align_corners", node)

    return resize


def _check_smooth(node: Node, mode: str, placing: str, coefficient: float) -> None:
    if placing not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise node.refusal(f"coordinate_transformation_mode {placing} with {mode}")
    if mode == "cubic" and coefficient != -0.75:
        raise node.refusal(f"cubic_coeff_a {coefficient} is not torch's, -0.75")


def _sizes(
    x: Tensor, factors: list[float] | None, sizes: list[int] | None, axes: list[int] | None
) -> tuple[list[int], list[float]]:
    """Returns the new size of every axis, and its scale."""
    every, scaled = list(x.shape), [1.0] * x.ndim
    for i, axis in enumerate(axes or range(x.ndim)):
        size = x.shape[axis]
        every[axis] = sizes[i] if sizes else math.floor(size * (factors or [])[i])
        scaled[axis] = factors[i] if factors else every[axis] / size
    return every, scaled


def _smooth(
    x: Tensor, every: list[int], scaled: list[float], mode: str, corners: bool, node: Node
) -> Tensor:
    form = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear"}
    form[("cubic", 4)] = "bicubic"
    if every[:2] != list(x.shape[:2]) or (mode, x.ndim) not in form:
        raise node.refusal(f"{mode} from {list(x.shape)} to {every} is not over a picture's axes")
    # A scale that gives no whole size also moves the places that are read.
    whole = all(abs(n * s - m) < 1e-4 for n, s, m in zip(x.shape, scaled, every))
    how: dict[str, Any] = {"size": every[2:]} if whole else {"scale_factor": scaled[2:]}
    return F.interpolate(x, **how, mode=form[mode, x.ndim], align_corners=corners)


_PLACES: Mapping[str, Callable[[NDArray[Any], float, int, int], NDArray[Any]]] = {
    "half_pixel": lambda i, scale, old, new: (i + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda i, scale, old, new: (
        old / 2 * (1 - new / (scale * old)) + (i + 0.5) / scale - 0.5
    ),
    "pytorch_half_pixel": lambda i, scale, old, new: (
        (i + 0.5) / scale - 0.5 if new > 1 else np.zeros_like(i)
    ),
    "align_corners": lambda i, scale, old, new: i * ((old - 1) / max(1, new - 1)),
    "asymmetric": lambda i, scale, old, new: i / scale,
}
_ROUNDINGS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(
    x: Tensor, every: list[int], scaled: list[float], placing: str, rounding: str
) -> Tensor:
    """Returns x with each axis read at the places that ONNX computes."""
    wanted = []
    for old, new, scale in zip(x.shape, every, scaled, strict=True):
        places = _PLACES[placing](np.arange(new, dtype=np.float64), scale, old, new)
        wanted.append(_ROUNDINGS[rounding](places).clip(0, old - 1).astype(np.int64))
    pictures = 3 <= x.ndim <= 5 and every[:2] == list(x.shape[:2])
    if pictures and all(map(_is_settled, x.shape, every, wanted)):
        return F.interpolate(x, size=every[2:], mode="nearest")
    for axis, places in enumerate(wanted):
        if list(places) != list(range(x.shape[axis])):
            x = x.index_select(axis, torch.from_numpy(places))
    return x


def _is_settled(old: int, new: int, places: NDArray[Any]) -> bool:
    """Returns whether torch's "nearest" reads these places, and at half pixels would too.

    litert-torch 0.10 writes it as LiteRT's resize at half pixels, which for 3 -> 7 or 8 -> 4
    elements reads others.
    """
    steps = np.arange(new)
    torchs, halves = steps * old // new, (2 * steps + 1) * old // (2 * new)
    return bool(np.array_equal(places, torchs) and np.array_equal(places, halves))


# Rearrangements and sampling


def _depth_to_space(node: Node) -> Operation:
    block, mode = node.attribute("blocksize"), node.attribute("mode")

    def rearrange(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            return F.pixel_shuffle(x, block)
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return rearrange


def _space_to_depth(node: Node) -> Operation:
    block = node.attribute("blocksize")

    def rearrange(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return rearrange


def _grid_sample(node: Node) -> Operation:
    modes = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    mode, padding = node.attribute("mode"), node.attribute("padding_mode")
    corners = bool(node.attribute("align_corners"))
    known = modes.get(mode, mode)
    return lambda x, grid: F.grid_sample(x, grid, known, padding, corners)


WINDOWS: Mapping[str, Callable[[Node], Operation]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalLpPool": _global_norm,
    "GlobalMaxPool": _global(torch.amax),
    "GridSample": _grid_sample,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
