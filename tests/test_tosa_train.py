"""Training ToSA: its stages, the script, trained weights in the recipe, and what check reads."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgeport_recipes._shared.vision.tasks import find_task
from edgeport_recipes._shared.vision.weights import save_weights, users_files
from edgeport_recipes.tosa import cost, evaluate, model, recipe, selection, train, trained
from edgeport_recipes.tosa.configs import ARMS, Config, Shape, config_of, open_config

from edgeport.errors import InputError
from edgeport.types import TensorSpec

WEIGHTS = "weights.safetensors"


def smoke(folder: Path, *words: str, code: int = 0) -> str:
    arguments = ["--smoke", "--threads", "1", "--task", "shapes", "-o", str(folder), *words]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of arms that were trained for moments, for generated outlines."""
    output = tmp_path_factory.mktemp("tosa")
    smoke(output, "--arm", "tosa")
    smoke(output, "--arm", "full_longer")
    return output / "shapes"


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def state_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


# Stages


def test_the_first_stage_trains_the_selectors_alone_and_they_predict_better() -> None:
    net = trained.new_net(Config("shapes", "tosa", 0, Shape(4, 16, 2, 2, 2, 8, 0.5, 10)))
    assert isinstance(net, model.SelectiveTransformer)
    images, before = torch.rand(32, 3, 32, 32), state_of(net)
    optimizer = torch.optim.AdamW(net.scorers.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = selection.selector_loss(net, images, {})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(one.grad is None for one in net.layers.parameters())
    after = net.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"scorers"}


def test_fine_tuning_moves_the_network_by_the_task_and_selectors_by_the_divergence() -> None:
    net = trained.new_net(Config("shapes", "tosa", 0, Shape(4, 16, 2, 2, 2, 8, 0.5, 10)))
    images, targets = torch.rand(8, 3, 32, 32), {"label": torch.arange(8)}
    task = find_task("shapes")
    assert isinstance(net, model.SelectiveTransformer)
    selection.tuning_loss(net, task, images, targets).backward()
    found = {name: one.grad for name, one in net.named_parameters()}
    net.zero_grad()
    task.loss(net(images), targets).backward()
    wanted = {name: one.grad for name, one in net.named_parameters()}
    for name, gradient in found.items():
        if name.startswith("scorers"):
            assert wanted[name] is None  # no gradient goes through the choice of tokens
            assert gradient is None if name.endswith("conv2.bias") else gradient is not None
        else:
            torch.testing.assert_close(gradient, wanted[name])


def test_an_arm_takes_the_full_networks_weights() -> None:
    shape = Shape(4, 16, 2, 2, 2, 8, 1.0, 10)
    full = trained.new_net(Config("shapes", "full", 1, shape))
    for arm in ARMS:
        net = trained.new_net(Config("shapes", arm, 0, shape)).eval()
        train.take_weights(net, full)
        if arm in ("full_longer", "tosa", "copy", "random"):  # all tokens kept
            image = torch.rand(2, 3, 32, 32)
            torch.testing.assert_close(net(image), full.eval()(image))


# The script


def test_the_script_writes_metrics_weights_and_what_selectors_find(folder: Path) -> None:
    found = metrics_of(folder / "tosa-seed0")
    assert found["mean"]["top1"] == pytest.approx(np.mean(found["scores"]["top1"]), abs=1e-4)
    for stage in ("selector", "tune"):
        overlap = found["overlap"][stage]
        assert set(overlap["mean"]) == {"selector", "copy", "random"}
        assert all(len(each) == overlap["images"] == 64 for each in overlap["by_image"].values())
    shape = open_config(folder / "tosa-seed0" / WEIGHTS).shape
    assert found["macs"] == cost.count_macs("topk", shape) < found["macs_full"]
    assert list(found["seconds"]) == list(found["budgets"]) == ["selector", "tune"]
    assert {one.name for one in folder.iterdir()} >= {"full-seed0", "tosa-seed0"}


def test_the_smallest_training_is_that_of_the_other_arms_too(folder: Path) -> None:
    tuned = {arm: metrics_of(folder / f"{arm}-seed0") for arm in ("tosa", "full_longer")}
    assert tuned["tosa"]["budgets"]["tune"] == tuned["full_longer"]["budgets"]["tune"]
    assert tuned["full_longer"]["macs_saving"] == 0.0
    first, last = (metrics_of(folder / f"{arm}-seed0") for arm in ("full", "full_longer"))
    assert first["losses"]["full"] != last["losses"]["tune"]


def test_a_folder_that_holds_a_run_is_refused_and_goes_on_with_resume(folder: Path) -> None:
    before = (folder / "tosa-seed0" / WEIGHTS).read_bytes()
    said = smoke(folder.parent, "--arm", "tosa", code=2)
    assert "holds a run; go on with --resume" in said and len(said.splitlines()) == 1
    assert "fewer MACs" in smoke(folder.parent, "--arm", "tosa", "--resume")
    assert (folder / "tosa-seed0" / WEIGHTS).read_bytes() == before


def test_a_full_network_of_another_budget_is_not_built_upon(folder: Path) -> None:
    said = smoke(folder.parent, "--arm", "copy", "--epochs", "2", code=2)
    assert "is of a run with another budget" in said and len(said.splitlines()) == 1


def test_arms_that_keep_more_tokens_share_the_full_network(folder: Path) -> None:
    before = (folder / "full-seed0" / WEIGHTS).read_bytes()
    smoke(folder.parent, "--arm", "random", "--keep", "0.75")
    assert metrics_of(folder / "random-seed0")["tokens"]["kept"] == 48
    assert (folder / "full-seed0" / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("arm", ["drop", "merge"])
def test_the_rivals_train_on_a_dense_task(arm: str, tmp_path: Path) -> None:
    task = replace(find_task("shapes"), outputs=10, dense=True, loss=_mean_loss, score=_no_score)
    settings = replace(train.SMOKE, images=32, tested=32)
    found = train.train(train.Run(task, arm, 0, settings, tmp_path))
    assert found["mean"] == {"top1": 0.0} and found["shape"]["head"] == "dense"


def _mean_loss(outputs: torch.Tensor, _targets: object) -> torch.Tensor:
    assert outputs.shape[1:] == (10, 8, 8)
    return outputs.square().mean()


def _no_score(outputs: torch.Tensor, _targets: object) -> dict[str, torch.Tensor]:
    return {"top1": torch.zeros(len(outputs))}


# Trained weights in the recipe


def test_trained_weights_are_those_of_both_forms(folder: Path) -> None:
    file = str(folder / "tosa-seed0" / WEIGHTS)
    (spec,) = recipe.inputs(trained=file)
    image = torch.rand(spec.shape)
    with torch.no_grad():
        topk, onehot = (build(0, trained=file)(image) for build in (model.topk, model.onehot))
    assert torch.equal(topk, onehot) and topk.shape == (1, 10)
    fresh = trained.new_net(config_of(file)).eval()
    assert not torch.allclose(fresh(image), topk)


def test_weights_of_another_variant_or_program_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights of topk; give --variant topk"):
        model.full(0, trained=str(folder / "tosa-seed0" / WEIGHTS))
    with pytest.raises(InputError, match=r"no weights nothing of tosa; give a file of train\.py"):
        recipe.inputs(trained="nothing")
    other = tmp_path / "other.safetensors"
    save_weights(other, torch.nn.Linear(2, 2), {"task": "shapes"})
    with pytest.raises(InputError, match=r"no weights of tosa \('shape'\); train them"):
        model.topk(0, trained=str(other))
    config = Config("shapes", "best", 0, Shape())
    save_weights(other, torch.nn.Linear(2, 2), config.to_dict())
    with pytest.raises(InputError, match="weights of an unknown arm 'best'"):
        open_config(other)


def test_calibration_takes_images_of_the_task_and_made_up_ones_are_as_bright(folder: Path) -> None:
    file = str(folder / "tosa-seed0" / WEIGHTS)
    feeds = trained.feeds(recipe.inputs(trained=file), 2, 0, trained=file)
    images = find_task("shapes").data("train", 0).images
    for feed in feeds:
        image = torch.from_numpy(feed["image"][0] * 255).round().to(torch.uint8)
        assert bool((images == image).all((1, 2, 3)).any())
    made_up = trained.feeds([TensorSpec("image", "float32", (1, 3, 32, 32))], 1, 0)[0]["image"]
    assert made_up.mean() == pytest.approx(0.5, abs=1e-3)
    assert made_up.std() == pytest.approx(0.25, abs=1e-2) and made_up.dtype == np.float32


# What check reads


def test_weights_of_the_users_own_are_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEPORT_TRAINED", raising=False)
    assert users_files("shapes", "tosa") == []
    monkeypatch.setenv("EDGEPORT_TRAINED", str(folder.parent))
    arms = {arm: users_files("shapes", arm) for arm in ("full_longer", "tosa")}
    assert [len(files) for files in arms.values()] == [1, 1]
    found = {one.metric: one for one in evaluate.of_task("shapes", arms, 200)}
    scores = [found[f"top1:shapes, {arm}"].value for arm in arms]
    assert found["top1_loss:shapes"].value == pytest.approx(100 * (scores[0] - scores[1]), abs=1e-6)
    shape = open_config(arms["tosa"][0]).shape
    for metric, form in (("macs_saving", "topk"), ("macs_saving_onehot", "onehot")):
        saved = found[f"{metric}:shapes"]
        assert saved.value == 100 * cost.saving(form, shape) and saved.provenance == "host"
    net = trained.load_file(arms["tosa"][0])
    assert isinstance(net, model.SelectiveTransformer)
    gain = found["selector_overlap_gain:shapes"]
    assert gain.interval is not None and gain.interval[0] <= gain.value <= gain.interval[1]
    assert gain.environment["images"] == "200"


def test_without_weights_or_restricted_data_nothing_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(evaluate.of_task("shapes", {"full_longer": [], "tosa": []})) == []
    monkeypatch.delenv("EDGEPORT_DATA", raising=False)
    file = folder / "tosa-seed0" / WEIGHTS
    assert list(evaluate.of_task("cifar10", {"full_longer": [file], "tosa": [file]})) == []


def test_a_depth_error_is_compared_in_percent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(find_task("shapes"), better="less")
    monkeypatch.setattr(evaluate, "find_task", lambda name: task)
    arms = {arm: [folder / f"{arm}-seed0" / WEIGHTS] for arm in ("full_longer", "tosa")}
    found = {one.metric: one for one in evaluate.of_task("shapes", arms, 400)}
    scores = [found[f"top1:shapes, {arm}"].value for arm in arms]
    growth = 100 * (scores[1] / scores[0] - 1)
    assert found["top1_growth:shapes"].value == pytest.approx(growth, abs=1e-4)


def test_settings_name_every_stage() -> None:
    settings = train.Settings()
    shared = {stage: asdict(settings.budget(stage)) for stage in ("full", "selector", "tune")}
    assert [one["epochs"] for one in shared.values()] == [6, 2, 4]
    assert train.EPOCHS["cifar10"] == 8
