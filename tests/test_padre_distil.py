"""PADRe put into a trained net: layer by layer, then whole, and how its CLS token is carried."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from edgeport_recipes._shared.tensors import load_tensors
from edgeport_recipes._shared.vision.classes import loss, score
from edgeport_recipes._shared.vision.tasks import Split, Task
from edgeport_recipes._shared.vision.training import Budget, Progress
from edgeport_recipes.padre import distillation
from edgeport_recipes.padre.attention import Attention
from edgeport_recipes.padre.distil import main, open_net, parse_grid
from edgeport_recipes.padre.distillation import Plan, distil
from edgeport_recipes.padre.warm_start import start_from
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import PADRe, PADReTokens, replace_attention

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """A transformer that reads its answer from CLS; patches of a quarter of the image's side."""

    def __init__(self, side=8, dim=16, layers=2, classes=3):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, side // 4, side // 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 17, dim))
        layer = nn.TransformerEncoderLayer(dim, 2, 32, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, image):
        tokens = self.patches(4 * (image - 0.5)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(image), -1, -1), tokens], 1) + self.position
        return self.head(self.encoder(tokens)[:, 0])


def build():
    torch.manual_seed(0)
    return Net()


def build_for_shapes():
    torch.manual_seed(0)
    return Net(side=32, classes=10)


def text():
    return "no net"
'''
PLAN = Plan(
    2, 3, (4, 4), 1, layers=Budget(4, 16, 1e-2), whole=Budget(3, 16, 3e-3), every=5
)  # fmt: skip


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def teacher(teacher_file: Path) -> nn.Module:
    return open_net(f"{teacher_file}:build", None)


@pytest.fixture
def task(teacher: nn.Module) -> Task:
    """Says what the trained net says, so that this net scores 1."""

    def data(part: str, _seed: int) -> Split:
        drawn = torch.Generator().manual_seed(int(part == "test"))
        images = (torch.rand(96, 3, 8, 8, generator=drawn) * 255).to(torch.uint8)
        images[torch.arange(96), torch.arange(96) % 3] //= 3
        with torch.no_grad():
            labels = teacher(images.float() / 255).argmax(1)
        return Split(images, {"label": labels})

    return Task("echo", 8, 3, False, data, loss, score, "top1", "more", False)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / distillation.WEIGHTS)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_every_layers_error_falls_and_then_the_net_answers_better(
    teacher: nn.Module, task: Task, tmp_path: Path
) -> None:
    found = distil(teacher, task, replace(PLAN, warm=False), tmp_path / "out")
    assert found["teacher"]["top1"] == 1
    points = {(one["stage"], one["step"]): one for one in found["curve"]}
    assert list(points) == [
        ("untrained", 0), ("layers", 24), *(("whole", step) for step in (5, 10, 15, 18))
    ]  # fmt: skip
    before, after = (points[key]["layer_errors"] for key in [("untrained", 0), ("layers", 24)])
    assert len(before) == 2
    assert all(late < 0.5 * early for early, late in zip(before, after))
    first, last = (points[key]["scores"]["top1"] for key in [("untrained", 0), ("whole", 18)])
    assert last > first + 0.1
    assert json.loads((tmp_path / "out" / distillation.METRICS).read_text()) == found
    assert found["parameters"]["student"] != found["parameters"]["teacher"]


def test_the_trained_net_is_left_as_it_was(teacher: nn.Module, task: Task, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distil(teacher, task, replace(PLAN, layers=Budget(1), whole=Budget(1)), tmp_path)
    assert same(before, dict(teacher.state_dict()))
    assert next(teacher.parameters()).requires_grad
    assert any(isinstance(one, nn.Dropout) and one.p == 0.3 for one in teacher.modules())


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stage", "step"), [("layers", 9), ("whole", 13)])
def test_a_killed_run_goes_on_to_the_result_that_it_would_have_had(
    teacher: nn.Module, task: Task, tmp_path: Path, stage: str, step: int
) -> None:
    def kill(name: str, progress: Progress, _seconds: float) -> None:
        if (name, progress.step) == (stage, step):
            raise Killed

    whole = distil(teacher, task, PLAN, tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        distil(teacher, task, PLAN, folder, report=kill)
    with pytest.raises(InputError, match="holds a run; go on with --resume"):
        distil(teacher, task, PLAN, folder)
    with pytest.raises(InputError, match="another plan; give the same"):
        distil(teacher, task, replace(PLAN, kernel=5), folder, resume=True)
    resumed = distil(teacher, task, PLAN, folder, resume=True)
    assert same(weights_of(tmp_path / "whole"), weights_of(folder))
    assert resumed["curve"] == whole["curve"]
    assert distil(teacher, task, PLAN, folder, resume=True) == resumed


def test_on_the_identity_path_cls_hears_nothing_of_the_image_and_pooled_it_does(
    teacher: nn.Module, task: Task
) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = {}
    for prefix in ("identity", "pool"):
        student, _ = distillation.put_in(teacher, task, replace(PLAN, prefix=prefix))
        with torch.no_grad():
            spread[prefix] = float(student.eval()(images).std(0).max())
    assert spread["identity"] == 0
    assert spread["pool"] > 1e-3


def test_layers_are_compared_on_the_trained_nets_own_features(
    teacher: nn.Module, task: Task
) -> None:
    teacher = distillation.without_dropout(teacher)
    student, pairs = distillation.put_in(teacher, task, PLAN)
    assert [pair.path for pair in pairs] == [f"encoder.layers.{at}.self_attn" for at in (0, 1)]
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for pair in pairs:  # whatever the first mixer gives, the second's inputs stay
        nn.init.zeros_(pair.mixer.mixer.branches[-1].tokens.weight)
        nn.init.zeros_(pair.mixer.mixer.branches[-1].tokens.bias)
        nn.init.zeros_(pair.mixer.pooled.weight)
        nn.init.zeros_(pair.mixer.kept.weight)
    with torch.no_grad():
        errors = distillation.layer_errors(teacher, pairs, images, 1)
    torch.testing.assert_close(errors, torch.ones(2))  # a mixer of zeros misses all of it
    assert not any(isinstance(one, nn.MultiheadAttention) for one in student.modules())


def test_cls_weighs_as_much_as_the_grid() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x)

    class Doubled(nn.Module):
        """Exact on the grid; gives a double CLS."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([2 * x[:, :1], x[:, 1:]], dim=1)

    net = Alone()
    pairs = (distillation.Pair("attention", net.attention, Doubled()),)
    x = torch.randn(2, 65, 8, generator=torch.Generator().manual_seed(0))
    assert float(distillation.layer_errors(net, pairs, x, 1)) == pytest.approx(0.5)
    assert float(distillation.layer_errors(net, pairs, x, 0)) < 0.05


def test_the_distance_is_the_divergence_of_softened_answers() -> None:
    found, wanted = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    assert float(distillation.distance(wanted, wanted, False)) == pytest.approx(0, abs=1e-6)
    p, q = F.softmax(wanted / 2, 1), F.softmax(found / 2, 1)
    by_hand = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation.distance(found, wanted, False), by_hand)
    assert float(distillation.distance(2 * wanted, wanted, True)) == pytest.approx(1)


def test_a_net_without_attention_and_one_that_cannot_be_replaced(
    teacher: nn.Module, task: Task, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="Sequential has no self-attention to replace"):
        distil(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), task, PLAN, tmp_path)
    with pytest.raises(InputError, match=r"cannot replace encoder\.layers\.0.*grid does not match"):
        distil(teacher, task, replace(PLAN, grid=(5, 4)), tmp_path)
    assert not list(tmp_path.glob("*.json"))


# Prefix tokens in the layer


def test_a_pooled_prefix_is_linear_in_the_mean_of_the_mixed_grid_and_in_itself() -> None:
    torch.manual_seed(0)
    layer = PADReTokens(6, 2, 3, (2, 3), prefix_tokens=2, prefix="pool")
    x = torch.randn(4, 8, 6)
    mixed = layer(x)
    assert isinstance(layer.mixer, PADRe)
    grid = layer.mixer(x[:, 2:].transpose(1, 2).reshape(4, 6, 2, 3)).flatten(2)
    torch.testing.assert_close(mixed[:, 2:], grid.transpose(1, 2))
    pooled = F.linear(grid.mean(2), layer.pooled.weight, layer.pooled.bias)
    for at in (0, 1):
        wanted = pooled + F.linear(x[:, at], layer.kept.weight)
        torch.testing.assert_close(mixed[:, at], wanted)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prefix": "pool"}, "'pool' needs prefix_tokens of at least 1"),
        (
            {"prefix": "mean", "prefix_tokens": 1},
            "unknown prefix 'mean'; give one of identity, pool",
        ),
    ],
)
def test_a_prefix_that_cannot_be_carried(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PADReTokens(6, 2, 3, (2, 3), **given)


# The start


class Projected(nn.Module):
    """Attention as timm writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, 2)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value))
        return mixed


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("kind", [Projected, Multihead, Attention])
def test_where_all_tokens_are_equal_a_warm_start_gives_what_attention_gives(kind: type) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2) if kind is Attention else kind()
    found = replace_attention(attention, degree=3, kernel=3, grid=(5, 5))
    (path,) = found.replaced
    mixer = found.model.get_submodule(path)
    start_from(mixer, attention.get_submodule(path))
    for module in mixer.modules():
        if isinstance(module, PADRe):
            for factor in list(module.branches)[1:]:
                nn.init.zeros_(factor.tokens.weight)  # exactly 1, not near it
    token = torch.randn(1, 8, 1, 1)
    image = token.expand(1, 8, 5, 5)
    x = image if kind is Attention else image.flatten(2).transpose(1, 2)
    with torch.no_grad():
        wanted, given = attention(x), found.model(x)
    if kind is Attention:
        torch.testing.assert_close(given[..., 1:4, 1:4], wanted[..., 1:4, 1:4])
    else:
        torch.testing.assert_close(given[:, 12], wanted[:, 12])  # the middle of the grid


def test_a_warm_start_is_nearer_to_the_attention_than_drawn_weights(
    teacher: nn.Module, task: Task
) -> None:
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for warm in (True, False):
        student, pairs = distillation.put_in(teacher, task, replace(PLAN, warm=warm))
        with torch.no_grad():
            errors.append(distillation.layer_errors(teacher, pairs, images, 1))
        assert all(one.requires_grad for one in student.parameters())
    assert (errors[0] < 0.5 * errors[1]).all()


# The command


def test_the_command_runs_to_the_end_and_says_the_scores(
    teacher_file: Path, tmp_path: Path
) -> None:
    arguments = [
        "--model", f"{teacher_file}:build_for_shapes", "--task", "shapes", "--grid", "4x4",
        "--prefix-tokens", "1", "--kernel", "3", "--smoke", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    assert "untrained     0 steps: top1" in ran.output
    assert "attention: top1" in ran.output and "on 64 images" in ran.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code != 0
    assert "holds a run; go on with --resume" in again.output


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("build", "give FILE.py:FACTORY or MODULE:FACTORY"),
        ("nothing.py:build", "no such file"),
        ("no_such_module:build", "raised ModuleNotFoundError"),
        ("net.py:absent", "raised AttributeError"),
        ("net.py:text", "gave a str, not a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_had(
    teacher_file: Path, model: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teacher_file.parent)
    with pytest.raises(InputError, match=said):
        open_net(model, None)


def test_weights_of_another_net_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(InputError, match="lack cls, position"):
        open_net(f"{teacher_file}:build", path)


@pytest.mark.parametrize("text", ["8", "8x", "0x8", "8x8x8", "axb"])
def test_a_grid_that_is_none(text: str) -> None:
    assert parse_grid("8x12") == (8, 12)
    with pytest.raises(InputError, match="such as 8x8"):
        parse_grid(text)
