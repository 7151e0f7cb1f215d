"""The training loop of the vision recipes: resume, bad input, weights, and the generated shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edgeport_recipes._shared.tensors import load_tensors
from edgeport_recipes._shared.vision import shapes
from edgeport_recipes._shared.vision.classes import loss, score
from edgeport_recipes._shared.vision.tasks import TASKS, Split, Task, find_task
from edgeport_recipes._shared.vision.training import Budget, Progress, evaluate, fit
from edgeport_recipes._shared.vision.weights import load_weights, read_config, save_weights
from torch import nn

from edgeport.errors import InputError, UnknownName

BUDGET = Budget(epochs=3, batch=16, rate=1e-2)


def colours(part: str, seed: int = 0) -> Split:
    """Returns images whose class is the colour that is brightest."""
    drawn = torch.Generator().manual_seed(seed + (part == "test"))
    images = (torch.rand(96, 3, 4, 4, generator=drawn) * 100).to(torch.uint8)
    labels = torch.arange(96) % 3
    images[torch.arange(96), labels] += 120
    return Split(images, {"label": labels})


TASK = Task("colours", 4, 3, False, colours, loss, score, "top1", "more", False, flips=True)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(0.3), nn.Linear(16, 3))


def train(folder: Path, budget: Budget = BUDGET, **options: object) -> dict[str, torch.Tensor]:
    trained = net()
    fit(trained, TASK, budget, folder, seed=3, origin={"arm": "one"}, **options)
    return dict(trained.state_dict())


def test_a_trained_net_scores_better_and_loses_less(tmp_path: Path) -> None:
    trained = net()
    before = evaluate(trained, TASK)["top1"].mean()
    done = fit(trained, TASK, BUDGET, tmp_path, seed=3, origin={})
    assert before < 0.6 < 0.95 < evaluate(trained, TASK)["top1"].mean()
    assert done.losses[-1] < done.losses[0] and not trained.training


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_result_that_it_would_have_had(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")

    def kill(_name: str, progress: Progress, _seconds: float) -> None:
        if progress.step == 9:  # within the second epoch of six steps
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "killed", report=kill)
    resumed = train(tmp_path / "killed", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = train(tmp_path / "other", replace(BUDGET, rate=2e-2))
    assert not torch.equal(whole["1.weight"], other["1.weight"])


def test_the_same_folder_is_refused_for_another_run_and_without_resume(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(InputError, match="holds a run; go on with --resume"):
        train(tmp_path)
    with pytest.raises(InputError, match="another budget; give the same"):
        train(tmp_path, replace(BUDGET, epochs=9), resume=True)


def test_a_checkpoint_cut_short_is_said_to_be_broken(tmp_path: Path) -> None:
    train(tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="broken"):
        train(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is not finite; lower --rate"):
        train(tmp_path, loss=lambda net, images, targets: net(images).sum() * torch.inf)


def test_only_the_parameters_that_are_given_are_trained(tmp_path: Path) -> None:
    trained = net()
    last = list(trained[3].parameters())
    fit(trained, TASK, BUDGET, tmp_path, seed=0, origin={}, parameters=last)
    assert torch.equal(trained[1].weight, net()[1].weight)
    assert not torch.equal(trained[3].weight, net()[3].weight)


def test_a_limit_takes_samples_of_every_class(tmp_path: Path) -> None:
    ordered = replace(TASK, data=lambda part, seed=0: _sorted(colours(part, seed)))
    asked: list[torch.Tensor] = []
    spied = replace(ordered, score=lambda out, targets: asked.append(targets["label"]) or {})
    assert evaluate(net(), spied, limit=6) == {}
    assert sorted(asked[0].tolist()) == [0, 0, 1, 1, 2, 2]


def _sorted(split: Split) -> Split:
    order = split.targets["label"].argsort()
    return Split(split.images[order], {"label": split.targets["label"][order]})


def test_weights_come_back_with_their_configuration(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, net(1), {"task": "colours", "kernel": 7})
    other = net(2)
    load_weights(file, other)
    assert torch.equal(other[1].weight, net(1)[1].weight)
    assert read_config(file) == {"task": "colours", "kernel": 7}
    assert set(load_tensors(file)) == set(net().state_dict())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "broken, or of another program"),
        (b"\xff" * 64, "broken, or of another program"),
        (len(b"{}").to_bytes(8, "little") + b"{}", "broken, or of another program"),
        (b"\x08" + bytes(7) + json.dumps([1, 2]).encode(), "broken, or of another program"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "w.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_config(file)


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, nn.Linear(2, 2), {})
    with pytest.raises(InputError, match="of another network"):
        load_weights(file, net())


def test_every_task_is_found_and_another_is_not() -> None:
    assert all(find_task(name).name == name for name in TASKS)
    with pytest.raises(UnknownName, match="cifar10"):
        find_task("cifar")


# Shapes


def test_shapes_follow_from_the_seed_and_the_test_part_does_not() -> None:
    first, again = (shapes.draw(50, torch.Generator().manual_seed(0)) for _ in range(2))
    other, _ = shapes.draw(50, torch.Generator().manual_seed(1))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other)
    assert shapes.data("test", 0) is shapes.data("test", 0)
    assert torch.equal(shapes.data("test", 5).images, shapes.data("test", 0).images)


def test_every_class_is_drawn_and_has_an_outline_of_its_own() -> None:
    at = (torch.arange(64) + 0.5) / 32 - 1
    x, y = at.expand(1, 64, 64), at[:, None].expand(1, 64, 64)
    kinds = range(len(shapes.CLASSES))
    inside = torch.cat([shapes._inside(x, y, torch.tensor([kind])) for kind in kinds]) > 0.5
    different = (inside[:, None] != inside[None]).float().mean((2, 3))
    assert different[~torch.eye(len(kinds), dtype=torch.bool)].min() > 0.02
    assert float(inside[0].float().mean()) == pytest.approx(torch.pi / 4, abs=0.02)
    labels = shapes.data("test", 0).targets["label"]
    assert labels.bincount().min() > 300
