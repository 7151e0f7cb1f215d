"""Draws an export on this machine's GPU: python -m edgeport_recipes.wsr_splatting.picture DIR.

Left the sorted program, right the sort-free one. Below each, what changes when the camera turns by
0.2 degrees, eight times as strong: where splats swap places in the order, the sorted image jumps.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeport_recipes.wsr_splatting.cameras import Camera, nearest_point, orbit
from edgeport_recipes.wsr_splatting.evaluate import POPPING_DEGREES
from edgeport_recipes.wsr_splatting.frames import camera_feed
from edgeport_recipes.wsr_splatting.photos import save_photo
from numpy.typing import NDArray

from edgeport.errors import EdgeportError, InputError
from edgeport.runtimes.webgpu import Session, load

ORDER = ("sorted", "sort_free")
STRENGTH = 8.0
_GAP = 4  # white pixels between the panels


def draw(directory: Path, view: int, width: int) -> NDArray[np.float32]:
    """Returns the four panels as one image in 0..1; raises InputError for no such view."""
    program = json.loads((directory / "program.json").read_text(encoding="utf-8"))
    cameras = [Camera.from_dict(one) for one in program["cameras"]]
    if not 0 <= view < len(cameras):
        raise InputError(f"--view {view}: {directory} has views 0 to {len(cameras) - 1}")
    camera = cameras[view]
    size = (width, round(width * camera.size[1] / camera.size[0]))
    session = load(directory, {}, size)
    turned = orbit(camera, nearest_point(cameras), POPPING_DEGREES)
    columns = []
    for name in ORDER:
        before, after = (_image(session, name, one) for one in (camera, turned))
        changes = (STRENGTH * np.abs(after - before)).clip(0, 1)
        columns.append(np.concatenate([before, _white(_GAP, size[0]), changes]))
    middle = _white(columns[0].shape[0], _GAP)
    return np.concatenate([columns[0], middle, columns[1]], axis=1)


def _image(session: Session, name: str, camera: Camera) -> NDArray[np.float32]:
    feed = camera_feed(camera.to_dict(), session.document.frame)
    return session.image(name, feed).clip(0, 1)


def _white(height: int, width: int) -> NDArray[np.float32]:
    return np.ones((height, width, 3), np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeport_recipes.wsr_splatting.picture", description=__doc__
    )
    parser.add_argument("directory", type=Path, help="what `edgeport export wsr_splatting` wrote")
    parser.add_argument("--view", type=int, default=0, help="which of the scene's cameras")
    parser.add_argument("--width", type=int, default=480, help="pixels of one panel")
    parser.add_argument("-o", "--output", type=Path, default=Path("picture.png"))
    given: Any = parser.parse_args(arguments)
    try:
        image = draw(given.directory, given.view, given.width)
    except EdgeportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    save_photo(given.output, torch.from_numpy(image))
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
