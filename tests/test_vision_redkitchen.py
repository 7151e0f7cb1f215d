"""Real RGB-D frames, shrunk: those of EDGEPORT_DATA, and one that is written here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeport_recipes._shared.vision import redkitchen
from edgeport_recipes._shared.vision.tasks import find_task
from support import needs_pillow

from edgeport.errors import InputError

pytestmark = needs_pillow


def write_frame(folder: Path, index: int) -> Path:
    """Writes a 320 x 240 frame whose depth is 1000 + column mm, with a hole and no-measurements."""
    from PIL import Image

    depth = np.broadcast_to(1000 + np.arange(320), (240, 320)).astype(np.uint16).copy()
    depth[:120, :160] = 0
    depth[120:, 200:] = 65535
    color = np.zeros((240, 320, 3), np.uint8)
    color[:, 160:] = 200
    path = folder / f"frame-{index:06d}.color.jpg"
    Image.fromarray(color).save(path, quality=95)
    Image.fromarray(depth).save(folder / f"frame-{index:06d}.depth.png")
    return path


def test_a_frame_is_cut_to_its_middle_square_and_its_holes_are_zero(tmp_path: Path) -> None:
    image, metres = redkitchen.read_frame(write_frame(tmp_path, 0))
    assert image.shape == (32, 32, 3)
    assert metres.shape == (32, 32)
    middles = 40 + np.floor((np.arange(32) + 0.5) * 7.5)
    np.testing.assert_allclose(metres[0, 16:], (1000 + middles[16:]) / 1000, rtol=1e-6)
    assert not metres[:16, :16].any()
    assert not metres[16:, middles >= 200].any()
    assert image[:, :15].max() < 30 and image[:, 17:].min() > 170


def test_a_missing_depth_is_said(tmp_path: Path) -> None:
    path = write_frame(tmp_path, 0)
    path.with_name("frame-000000.depth.png").unlink()
    with pytest.raises(InputError, match="check EDGEPORT_DATA"):
        redkitchen.read_frame(path)


def test_too_few_frames_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / redkitchen.FOLDER
    folder.mkdir(parents=True)
    write_frame(folder, 0)
    monkeypatch.setenv("EDGEPORT_DATA", str(tmp_path))
    redkitchen.data.cache_clear()
    with pytest.raises(InputError, match="1 frames, not more than 108"):
        redkitchen.data("train", 0)
    monkeypatch.delenv("EDGEPORT_DATA")
    with pytest.raises(InputError, match="set EDGEPORT_DATA"):
        redkitchen.data("train", 0)


def test_the_real_frames_have_depth_of_a_room() -> None:
    if not os.environ.get("EDGEPORT_DATA"):
        pytest.skip("needs EDGEPORT_DATA: the folder of evaluation data")
    redkitchen.data.cache_clear()
    task = find_task("redkitchen")
    train, test = task.data("train", 0), task.data("test", 0)
    assert (train.count, test.count) == (redkitchen.TRAINING, redkitchen.TEST)
    assert task.restricted
    assert torch.equal(train.images, task.data("train", 7).images)
    for part in (train, test):
        depth = part.targets["depth"]
        assert 0.01 < float((depth == 0).float().mean()) < 0.2
        assert float(depth[depth > 0].min()) > 0.5 and float(depth.max()) < 10
    guess = torch.full((test.count, task.outputs, 8, 8), float(np.log(2.0)))
    assert 0.1 < float(task.score(guess, test.targets)["absrel"].mean()) < 0.6
