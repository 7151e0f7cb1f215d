"""Training PADRe: its controls, the script, trained weights in an export, and what check reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes._shared.vision.weights import ship, users_files
from edgeport_recipes.padre import evaluate, model, recipe, trained
from edgeport_recipes.padre.controls import Convolutions, LocalAttention, NoMixing
from edgeport_recipes.padre.train import main
from edgeport_recipes.padre.trained import MIXERS, Config, new_net

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe
from edgeport.types import TensorSpec


def smoke(folder: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["--smoke", "--threads", "1", "-o", str(folder), *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a net that was trained for moments."""
    output = tmp_path_factory.mktemp("padre")
    smoke(output, "--arm", "padre3")
    return output / "shapes" / "padre3-seed0"


# Controls


def test_the_convolutions_without_the_product_are_linear_and_as_large() -> None:
    torch.manual_seed(0)
    layer, ours = Convolutions(8, 3, 5).double(), PADRe(8, 3, 5)
    x, y = torch.randn(2, 1, 8, 6, 6, dtype=torch.float64)
    zero = layer(torch.zeros_like(x))
    torch.testing.assert_close(layer(x + 2 * y) - zero, layer(x) + 2 * layer(y) - 3 * zero)
    counts = [sum(one.numel() for one in each.parameters()) for each in (layer, ours)]
    assert counts[0] == counts[1]
    ours.double().load_state_dict(layer.state_dict())
    assert not torch.allclose(ours(x), layer(x))


def test_local_attention_is_attention_and_a_convolution() -> None:
    torch.manual_seed(0)
    layer, x = LocalAttention(8, 2, 3), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer(x), layer.attention(x) + layer.local(x))


@pytest.mark.parametrize(("mixer", "reach"), [("none", 0), ("padre3_kernel1", 0), ("padre3", 8)])
def test_how_far_a_token_reaches_in_the_first_block(mixer: str, reach: int) -> None:
    net = new_net(Config("shapes", mixer, depth=1), 0)
    x = torch.randn(1, 64, 8, 8, requires_grad=True)
    block = net.net.blocks[0]
    block(x)[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    seen = torch.nonzero(x.grad.abs().sum(1)[0])
    assert int((seen - torch.tensor([4, 4])).abs().max()) == min(reach, 4)
    assert isinstance(NoMixing()(x), torch.Tensor) and float(NoMixing()(x)) == 0.0


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_arm_gives_the_outputs_of_its_task(mixer: str) -> None:
    net = new_net(Config("shapes", mixer, depth=1), 0).eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_dense_task_has_outputs_for_every_patch() -> None:
    net = new_net(Config("boxes", "padre2", depth=1), 0).eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, find_task("boxes").outputs, 8, 8)


def test_an_unknown_mixer_is_refused() -> None:
    with pytest.raises(InputError, match="no mixer 'mean'; give one of attention"):
        new_net(Config("shapes", "mean"), 0)


# The script


def test_the_script_writes_weights_and_metrics(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["arm"] == "padre3" and len(metrics["scores"]["top1"]) == 64
    assert metrics["mean"]["top1"] == pytest.approx(np.mean(metrics["scores"]["top1"]), abs=1e-4)
    config = trained.open_config(folder / "weights.safetensors")
    assert config == Config("shapes", "padre3")


def test_a_folder_that_holds_a_run_is_refused_in_one_line(folder: Path) -> None:
    said = smoke(folder.parents[1], "--arm", "padre3", code=2)
    assert "holds a run; go on with --resume" in said and len(said.splitlines()) == 1
    assert "top1" in smoke(folder.parents[1], "--arm", "padre3", "--resume")


def test_without_its_data_the_real_task_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEPORT_DATA", raising=False)
    assert "set EDGEPORT_DATA" in smoke(tmp_path, "--task", "cifar10", code=2)


# Trained weights in the recipe


def test_trained_weights_give_the_net_that_was_trained(folder: Path) -> None:
    file = folder / "weights.safetensors"
    net = model.padre3(0, trained=str(file))
    (spec,) = recipe.inputs(trained=str(file))
    image = torch.rand(spec.shape)
    other = new_net(Config("shapes", "padre3"), 0).eval()
    assert net(image).shape == (1, 10) and not torch.allclose(net(image), other(image))


@pytest.mark.parametrize(
    ("variant", "options", "words"),
    [
        ("padre2", {}, "weights of padre3; give --variant padre3"),
        ("padre3", {"part": "block"}, "gives a whole net; leave --part out"),
    ],
)
def test_weights_of_another_variant_and_a_part_are_refused(
    folder: Path, variant: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        getattr(model, variant)(0, trained=str(folder / "weights.safetensors"), **options)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights nothing of padre3; give a file of train\.py"):
        model.padre3(0, trained="nothing")


def test_calibration_takes_training_images_of_the_task(folder: Path) -> None:
    (spec,) = recipe.inputs(trained=str(folder / "weights.safetensors"))
    feeds = trained.feeds([spec], 3, 0, trained=str(folder / "weights.safetensors"))
    images = find_task("shapes").data("train", 0).images
    for feed in feeds:
        image = torch.from_numpy(feed["image"][0] * 255).round().to(torch.uint8)
        assert bool((images == image).all((1, 2, 3)).any())
    made_up = trained.feeds([TensorSpec("image", "float32", (1, 3, 32, 32))], 1, 0)
    assert made_up[0]["image"].min() < 0


# What check reads


def test_weights_of_the_users_own_are_measured_for_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        for arm in ("attention", "padre3"):
            smoke(tmp_path, "--arm", arm, "--seed", str(seed))
    monkeypatch.delenv("EDGEPORT_TRAINED", raising=False)
    assert users_files("shapes", "padre3") == []
    monkeypatch.setenv("EDGEPORT_TRAINED", str(tmp_path))
    arms = {arm: users_files("shapes", arm) for arm in ("attention", "padre3")}
    assert [len(files) for files in arms.values()] == [2, 2]
    found = {one.metric: one.value for one in evaluate.of_task("shapes", arms, 200)}
    lost = 100 * (found["top1:shapes, attention"] - found["top1:shapes, padre3"])
    assert found["top1_loss:shapes"] == pytest.approx(lost, abs=1e-6)


def test_weights_ship_as_fp16_unless_their_data_forbids_it(folder: Path, tmp_path: Path) -> None:
    source, target = folder / "weights.safetensors", tmp_path / "shapes-padre3.safetensors"
    ship(source, target)
    assert target.stat().st_size < 0.6 * source.stat().st_size
    image = torch.rand(1, 3, 32, 32)
    whole, half = (model.padre3(0, trained=str(file)) for file in (source, target))
    torch.testing.assert_close(whole(image), half(image), atol=0.02, rtol=0.02)
    forbidden = tmp_path / "cifar.safetensors"
    net = new_net(Config("cifar10", "padre3"), 0)
    trained.save(forbidden, net, Config("cifar10", "padre3"), {})
    with pytest.raises(InputError, match="may not be passed on"):
        ship(forbidden, target)


@pytest.mark.slow
def test_an_export_of_trained_weights_is_not_timed_beside_a_baseline_without_any(
    folder: Path, tmp_path: Path
) -> None:
    """The net is proven all the same; what could not be compared is said."""
    import edgeport

    made = edgeport.export(
        "padre",
        output_dir=tmp_path / "export",
        cache_dir=tmp_path / "cache",
        device="s24",
        target_runtimes=["onnx"],
        options={"trained": str(folder / "weights.safetensors")},
    )
    assert made.artifact("run", "onnx").parity[0].value > 60
    (warning,) = made.manifest["run"]["warnings"]
    assert "the net as exported: not timed beside attention" in warning
    assert "one block" in str(made.manifest["run"])
