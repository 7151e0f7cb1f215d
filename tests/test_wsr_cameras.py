"""Cameras on an orbit around what they look at."""

from __future__ import annotations

import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, look_at, nearest_point, orbit


def test_an_orbit_keeps_its_centre_and_distance() -> None:
    up = torch.tensor([0, 1.0, 0])
    target = torch.tensor([0.5, 0.2, -1.0])
    eyes = torch.tensor([[3.0, 1, 0], [-2, 2, 1], [0, 1, -4]])
    cameras = [
        Camera(str(at), look_at(eye, target, up), torch.ones(4), (48, 36))
        for at, eye in enumerate(eyes)
    ]
    torch.testing.assert_close(nearest_point(cameras), target, atol=1e-4, rtol=0)
    turned = orbit(cameras[0], target, 30)
    for point in (target, target + torch.tensor([0, 0, 0.0])):
        before = cameras[0].view[:3, :3] @ point + cameras[0].view[:3, 3]
        after = turned.view[:3, :3] @ point + turned.view[:3, 3]
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert float((turned.eye - cameras[0].eye).norm()) > 1
    torch.testing.assert_close((turned.eye - target).norm(), (eyes[0] - target).norm())
