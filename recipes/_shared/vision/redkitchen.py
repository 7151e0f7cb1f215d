"""Monocular depth of one real room: 120 RGB-D frames of RedKitchen (7-Scenes), in EDGEPORT_DATA.

The test part is the end of the sequence: the same room, from 0.1 to 0.4 m and 7 to 17 degrees away
from any training frame. So a score says how well this room is known, not rooms. The licence is for
research only: weights trained on it are not redistributed.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes._shared.files import find_data
from edgeport_recipes._shared.vision import depth
from edgeport_recipes._shared.vision.tasks import Part, Split, Task
from numpy.typing import NDArray

from edgeport.errors import InputError

FOLDER = "depth/redkitchen_7scenes"
TRAINING, TEST = 80, 28
"""Frames from the start and from the end; those between are left out, as near both."""
FAR_MM = 20_000
"""Beyond this a Kinect's depth is no measurement: the original set marks holes with 65535."""


@functools.cache
def data(part: Part, _seed: int = 0) -> Split:
    """Returns images and `depth` in metres, `n x 32 x 32`, 0 where there is none.

    The seed changes nothing. Raises InputError without EDGEPORT_DATA and for too few frames.
    """
    frames = sorted(find_data(FOLDER).glob("frame-*.color.jpg"))
    if len(frames) <= TRAINING + TEST:
        raise InputError(
            f"{FOLDER}: {len(frames)} frames, not more than {TRAINING + TEST}; check EDGEPORT_DATA"
        )
    chosen = frames[:TRAINING] if part == "train" else frames[-TEST:]
    images, depths = zip(*(read_frame(frame) for frame in chosen))
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pictures, {"depth": torch.from_numpy(np.stack(depths))})


def read_frame(color: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns the middle square of a frame at 32 x 32: colours, and depth in metres.

    Colours are averaged; depth is that of the pixel in the middle of each cell, as an average over
    an edge is the depth of nothing. Raises InputError where a file is missing or broken.
    """
    from PIL import Image

    try:
        with Image.open(color) as file:
            picture = file.convert("RGB")
        with Image.open(color.with_name(color.name.replace("color.jpg", "depth.png"))) as file:
            millimetres = np.asarray(file).astype(np.float32)
    except OSError as error:
        raise InputError(f"{color}: {error}; check EDGEPORT_DATA") from error
    width, height = picture.size
    side, left, top = min(width, height), (width - height) // 2, 0
    if left < 0:
        left, top = 0, (height - width) // 2
    box = (left, top, left + side, top + side)
    small = picture.resize((depth.SIDE, depth.SIDE), Image.Resampling.BOX, box=box)
    middles = ((np.arange(depth.SIDE) + 0.5) * side / depth.SIDE).astype(int)
    metres = millimetres[np.ix_(top + middles, left + middles)] / 1000
    return np.asarray(small), np.where(metres < FAR_MM / 1000, metres, 0).astype(np.float32)


TASK = Task(
    name="redkitchen",
    side=depth.SIDE,
    outputs=depth.OUTPUTS,
    dense=True,
    data=data,
    loss=depth.loss,
    score=depth.score,
    metric="absrel",
    better="less",
    restricted=True,
)
