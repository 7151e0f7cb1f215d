"""Where a picture was taken from, and the views that are held out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HOLD_OUT = 8  # every 8th view is scored and never trained on


@dataclass(frozen=True)
class Camera:
    """A pinhole: `view` [4, 4] takes world to camera (x right, y down, z forward); `intrinsics`
    [4] are fx, fy, cx, cy in pixels of a frame of `size` (w, h)."""

    name: str
    view: Tensor
    intrinsics: Tensor
    size: tuple[int, int]

    @property
    def eye(self) -> Tensor:
        """Returns the camera's centre [3] in the world."""
        return -self.view[:3, :3].T @ self.view[:3, 3]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "view": [float(value) for value in self.view.flatten()],
            "intrinsics": [float(value) for value in self.intrinsics],
            "size": list(self.size),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Camera:
        width, height = value["size"]
        view = torch.tensor(value["view"], dtype=torch.float32).view(4, 4)
        intrinsics = torch.tensor(value["intrinsics"], dtype=torch.float32)
        return cls(str(value["name"]), view, intrinsics, (int(width), int(height)))


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Returns the view [4, 4] of a camera at `eye` that sees `target` in its middle."""
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    view = torch.eye(4, dtype=eye.dtype)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ eye
    return view


def nearest_point(cameras: list[Camera] | tuple[Camera, ...]) -> Tensor:
    """Returns the point [3] that the cameras look at: the nearest, in least squares, to the axes
    of all of them."""
    axes = torch.stack([camera.view[2, :3] for camera in cameras]).double()
    eyes = torch.stack([camera.eye for camera in cameras]).double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    # The small diagonal holds the point among the cameras where all axes are parallel.
    system = across.sum(0) + 1e-6 * torch.eye(3, dtype=torch.float64)
    wanted = (across @ eyes[:, :, None]).sum(0)[:, 0] + 1e-6 * eyes.mean(0)
    return torch.linalg.solve(system, wanted).float()


def orbit(camera: Camera, centre: Tensor, degrees: float) -> Camera:
    """Returns the camera turned around the vertical of its own picture through `centre`."""
    axis = -camera.view[1, :3].double()
    angle = math.radians(degrees)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross
    turn += (1 - math.cos(angle)) * cross @ cross
    middle = centre.double()
    view = camera.view.double().clone()
    view[:3, 3] += view[:3, :3] @ (middle - turn @ middle)
    view[:3, :3] = view[:3, :3] @ turn
    return Camera(f"{camera.name}+{degrees:g}", view.float(), camera.intrinsics, camera.size)


def held_out(count: int) -> tuple[int, ...]:
    """Returns the indices of the views that are scored: every 8th, the first included."""
    return tuple(range(0, count, HOLD_OUT))
