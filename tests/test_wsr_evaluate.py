"""Scores of trained scenes: the command, and LPIPS on weights that the user gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from edgeport_recipes.wsr_splatting import evaluate, generated, lpips, scenes, transforms
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.train import train
from torch import Tensor

from edgeport.errors import InputError

pytest.importorskip("PIL", reason="needs pillow: pip install pillow")


@pytest.fixture(scope="module")
def room() -> Scene:
    return generated.make(views=10, size=(48, 36), points=300)


def test_the_command_scores_what_was_trained(room: Scene, tmp_path: Path) -> None:
    transforms.write(room, tmp_path / "scene")
    trained = train(scenes.load(tmp_path / "scene"), Settings("dir", 3), tmp_path)
    place = ["--scene", str(tmp_path / "scene")]
    done = CliRunner().invoke(evaluate.main, [str(tmp_path / "dir"), *place])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.output)
    assert found["psnr_db"] == pytest.approx(trained["psnr_db"], abs=1e-4)
    assert 0 < found["popping"]["mean_change"] < found["popping"]["largest_change"] <= 1
    refused = CliRunner().invoke(evaluate.main, [str(tmp_path / "none"), *place])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_photos_become_small_by_themselves(room: Scene, tmp_path: Path) -> None:
    large = generated.make(views=2, size=(300, 225), points=300)
    transforms.write(large, tmp_path / "scene")
    assert scenes.load(tmp_path / "scene", None).cameras[0].size == (150, 112)
    assert scenes.load(tmp_path / "scene", 3).cameras[0].size == (100, 75)


# LPIPS


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Writes random weights under the names of torchvision's AlexNet and of LPIPS's heads."""
    torch.manual_seed(0)
    net = lpips.Lpips()
    backbone = {name: one for name, one in net.state_dict().items() if name[0] == "f"}
    backbone["classifier.1.weight"] = torch.zeros(2, 2)
    heads = {f"lin{at}.model.1.weight": torch.rand(head.shape) for at, head in enumerate(net.heads)}
    torch.save(backbone, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth"


def picture(seed: int, noise: float) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    base = torch.rand(72, 64, 3, generator=torch.Generator().manual_seed(0))
    return (base + noise * torch.randn(72, 64, 3, generator=rng)).clamp(0, 1)


def test_lpips_is_the_weighted_distance_of_unit_features(tmp_path: Path) -> None:
    """Against the definition, written out with the layers' functions."""
    backbone, heads = write_weights(tmp_path)
    distance = lpips.load(backbone, heads)
    weights, lines = torch.load(backbone), torch.load(heads)
    one, other = picture(1, 0.1), picture(2, 0.1)

    def features(image: Tensor) -> list[Tensor]:
        mean = torch.tensor([-0.030, -0.088, -0.188])
        deviation = torch.tensor([0.458, 0.448, 0.450])
        x = ((2 * image - 1 - mean) / deviation).permute(2, 0, 1)[None]
        found = []
        for at, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if at in (3, 6):
                x = torch.nn.functional.max_pool2d(x, 3, 2)
            kernel, bias = weights[f"features.{at}.weight"], weights[f"features.{at}.bias"]
            x = torch.nn.functional.conv2d(x, kernel, bias, stride, padding).relu()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    wanted = sum(
        ((a - b) ** 2 * lines[f"lin{at}.model.1.weight"]).sum(1).mean()
        for at, (a, b) in enumerate(zip(features(one), features(other)))
    )
    assert float(distance(one, other)) == pytest.approx(float(wanted), rel=1e-4)
    assert float(distance(one, one)) == 0


def test_lpips_is_scored_where_weights_are_given(room: Scene, tmp_path: Path) -> None:
    distance = lpips.load(*write_weights(tmp_path))
    scores = train(room, Settings("dir", 1), tmp_path / "out", distance=distance)
    values = [view["lpips"] for view in scores["held_out"]]
    assert min(values) > 0
    assert scores["lpips"] == pytest.approx(sum(values) / 2)
    assert "lpips" not in train(room, Settings("lc", 1), tmp_path / "out")


def test_the_published_heads_fit(tmp_path: Path) -> None:
    data = os.environ.get("EDGEPORT_DATA")
    if not data:
        pytest.skip("needs EDGEPORT_DATA: the folder of evaluation data")
    backbone, _ = write_weights(tmp_path)
    distance = lpips.load(backbone, Path(data) / "weights" / "lpips_heads" / "alex.pth")
    near, far = (float(distance(picture(0, 0), picture(1, noise))) for noise in (0.02, 0.3))
    assert 0 < near < far


def test_other_weights_are_refused(tmp_path: Path) -> None:
    backbone, heads = write_weights(tmp_path)
    with pytest.raises(InputError, match=r"no AlexNet of torchvision and heads of LPIPS"):
        lpips.load(heads, backbone)
    backbone.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"alexnet\.pth: no weights of PyTorch"):
        lpips.load(backbone, heads)
    with pytest.raises(InputError, match=r"none\.pth: no weights of PyTorch"):
        lpips.load(tmp_path / "none.pth", heads)
