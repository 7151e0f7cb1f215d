"""Times the two programs of an export against each other on this machine's GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from edgeport_recipes.wsr_splatting.program import PROGRAMS
from numpy.typing import NDArray

from edgeport.measure import Timing, interleave, ratio
from edgeport.runtimes.webgpu import Adapter, load
from edgeport.traces import Ratio
from edgeport.types import Serialisable

_PASS_FRAMES = 5  # of which the median per pass is taken


@dataclass(frozen=True)
class FrameTimes(Serialisable):
    """Frames of one camera, by program: times to completion, the GPU's own per pass, and memory.

    `speedup` is the sorted program's median over the sort-free one's. `timings` also has each
    program "before drawing": its compute passes alone, where it has some. `pass_ms` is empty where
    the adapter has no timestamp queries; software adapters put a compute pass's time on the draw
    that waits for it. `bytes` are those of buffers and textures.
    """

    adapter: Adapter
    frame: tuple[int, int]
    timings: Mapping[str, Timing]
    speedup: Ratio
    pass_ms: Mapping[str, Mapping[str, float]]
    bytes: Mapping[str, int]


def frame_times(
    directory: Path,
    camera: Mapping[str, Any],
    seconds: float,
    frame: tuple[int, int] | None = None,
    rounds: int | None = None,
) -> FrameTimes:
    """Returns the times of interleaved frames, off screen and to completion, for `seconds`.

    `camera` is a `Camera.to_dict()`; for a `frame` (w, h) of another size its intrinsics are scaled
    to show the same width. Raises InputError where the export or this machine's GPU cannot.
    """
    session = load(directory, {}, frame)
    feed = camera_feed(camera, session.document.frame)
    arms = {}
    for name in PROGRAMS:
        arms[name] = partial(session.frame, name, feed)
        if prepared := session.compute_passes(name):
            arms[f"{name} before drawing"] = partial(session.frame, name, feed, prepared)
    timings = interleave(arms, rounds=rounds, seconds=seconds, warmup_seconds=seconds / 4)
    passes: dict[str, dict[str, float]] = {}
    if session.has_timestamps:
        for name in PROGRAMS:
            runs = [session.pass_seconds(name, feed) for _ in range(_PASS_FRAMES)]
            passes[name] = {
                label: 1e3 * float(np.median([run[label] for run in runs])) for label in runs[0]
            }
    return FrameTimes(
        session.adapter,
        session.document.frame,
        timings,
        ratio(timings["sorted"], timings["sort_free"]),
        passes,
        {name: session.bytes_of(name) for name in PROGRAMS},
    )


def camera_feed(
    camera: Mapping[str, Any], frame: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """Returns the inputs for a frame (w, h): the camera's own, scaled to the frame's width."""
    width, height = camera["size"]
    scale = frame[0] / width
    fx, fy, cx, cy = (scale * value for value in camera["intrinsics"])
    cy += (frame[1] - scale * height) / 2
    view = np.array(camera["view"], np.float32).reshape(4, 4)
    return {"view": view, "intrinsics": np.array([fx, fy, cx, cy], np.float32)}
