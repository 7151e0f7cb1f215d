"""Photographs: decoded, freed of lens distortion, made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgeport.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Lens:
    """A camera of OpenCV's model: fx, fy, cx, cy in pixels and the distortion k1, k2, p1, p2, k3.

    With x, y on the plane z = 1 and r^2 = x^2 + y^2 the distorted x is
    x (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2), and y alike.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0

    @property
    def distorts(self) -> bool:
        return any((self.k1, self.k2, self.p1, self.p2, self.k3))

    def distort(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        square = x * x + y * y
        radial = 1 + square * (self.k1 + square * (self.k2 + square * self.k3))
        return (
            x * radial + 2 * self.p1 * x * y + self.p2 * (square + 2 * x * x),
            y * radial + 2 * self.p2 * x * y + self.p1 * (square + 2 * y * y),
        )

    def smaller(self, factor: int) -> Tensor:
        """Returns fx, fy, cx, cy [4] of the pinhole that takes the undistorted picture."""
        return torch.tensor([self.fx, self.fy, self.cx, self.cy], dtype=torch.float32) / factor


def load_photo(path: Path) -> Tensor:
    """Returns the picture [h, w, 3] of uint8; transparent pixels lie on black.

    Raises InputError where it is missing or cannot be decoded.
    """
    try:
        with open_photo(path) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                colours = torch.from_numpy(np.asarray(image).copy())
                return (colours[..., :3].float() * colours[..., 3:] / 255).round().byte()
            return torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found, and the camera file names it; add it.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); replace it.") from error


def open_photo(path: Path) -> Image.Image:
    """Returns Pillow's picture, not yet decoded; raises InputError where Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError('photos need Pillow: pip install "edgeport[images]".') from error
    return Image.open(path)


def save_photo(path: Path, image: Tensor) -> None:
    """Writes [h, w, 3], uint8 or floats in 0..1, as a PNG."""
    from PIL import Image

    Image.fromarray(as_bytes(image).numpy()).save(path)


def as_bytes(image: Tensor) -> Tensor:
    """Returns the picture as uint8."""
    if image.dtype == torch.uint8:
        return image
    return (image.detach().clamp(0, 1) * 255).round().byte()


def undistort(image: Tensor, lens: Lens) -> Tensor:
    """Returns the picture [h, w, 3] that a pinhole with the lens's fx, fy, cx, cy would have taken.

    It is read bilinearly from `image`; where the lens saw nothing, the nearest pixel stands.
    """
    if not lens.distorts:
        return image
    height, width = image.shape[:2]
    x = ((torch.arange(width) + 0.5 - lens.cx) / lens.fx).expand(height, width)
    y = ((torch.arange(height) + 0.5 - lens.cy) / lens.fy)[:, None].expand(height, width)
    x, y = lens.distort(x, y)
    u, v = lens.fx * x + lens.cx, lens.fy * y + lens.cy
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], -1)[None]
    source = image.permute(2, 0, 1)[None].float()
    read = torch.nn.functional.grid_sample(
        source, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return read[0].permute(1, 2, 0).round().clamp(0, 255).to(image.dtype)


def shrink(image: Tensor, factor: int) -> Tensor:
    """Returns the means of factor x factor pixels; what is left at the right and below is cut."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].float()
    means = blocks.view(height, factor, width, factor, 3).mean((1, 3))
    return means.round().to(image.dtype)
