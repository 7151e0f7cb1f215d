"""The splatting renderer: tiles against all pairs, gradients, order, and what leaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from edgeport_recipes.wsr_splatting import model, raster
from edgeport_recipes.wsr_splatting.evaluate import leak
from edgeport_recipes.wsr_splatting.harmonics import C0, basis
from edgeport_recipes.wsr_splatting.splats import LEAST_ALPHA, RULES, Blend, Rule, Splats
from torch import Tensor
from wsr_scene import PARAMETERS, SIZE, blend, camera, random_splats

Renderer = Callable[..., Tensor]
WEIGHTED: tuple[Rule, ...] = ("dir", "exp", "lc")


def psnr_db(found: Tensor, wanted: Tensor) -> float:
    return float(-10 * torch.log10((found - wanted).square().mean().detach().clamp(min=1e-30)))


def slopes(render: Renderer, splats: Splats, shared: Blend) -> list[Tensor | None]:
    """Returns dL/d of every parameter for a loss that weighs all pixels differently."""
    leaves = [getattr(splats, name).clone().requires_grad_() for name in PARAMETERS]
    image = render(Splats(*leaves), shared, *camera())
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(5), dtype=image.dtype)
    numbers = [shared.sigma, shared.beta, shared.background, shared.background_weight]
    return list(torch.autograd.grad((image * weights).sum(), leaves + numbers, allow_unused=True))


@pytest.mark.parametrize("rule", RULES)
def test_tiles_draw_what_all_pairs_draw(rule: Rule) -> None:
    splats, shared = random_splats(), blend(rule)
    image = model.render(splats, shared, *camera())
    assert image.shape == (SIZE[1], SIZE[0], 3)
    assert float(image.detach().std()) > 0.05
    torch.testing.assert_close(
        image, model.render_dense(splats, shared, *camera()), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("rule", RULES)
def test_gradients_in_closed_form_are_those_of_autograd(rule: Rule) -> None:
    splats, shared = random_splats(), blend(rule)
    found = slopes(model.render, splats, shared)
    wanted = slopes(model.render_dense, splats, shared)
    names = (*PARAMETERS, "sigma", "beta", "background", "background_weight")
    unused = {"sorted": 3, "dir": 2, "exp": 0, "lc": 1}[rule]
    assert sum(one is None for one in wanted) == unused
    for name, one, other in zip(names, found, wanted):
        if other is None:
            assert one is None, name
            continue
        assert float(other.abs().max()) > 1e-6, name
        error = float((one - other).abs().max() / other.abs().max())
        assert error < 1e-10, f"{name}: {error:.1e}"


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_differences_of_the_loss(rule: Rule) -> None:
    splats, shared = random_splats(12, seed=3), blend(rule)
    found = slopes(model.render, splats, shared)[0]
    weights = torch.rand(
        (*SIZE[::-1], 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    step = 1e-6

    def loss(row: int, axis: int, by: float) -> float:
        positions = splats.positions.clone()
        positions[row, axis] += by
        image = model.render(replace(splats, positions=positions), shared, *camera())
        return float((image * weights).sum().detach())

    checked = 0
    for row in range(4):
        for axis in range(3):
            wanted = (loss(row, axis, step) - loss(row, axis, -step)) / (2 * step)
            # A pixel that crosses the cut at 1/255 makes the loss jump; those say nothing.
            if abs(wanted) < 100:
                assert float(found[row, axis]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("rule", RULES)
def test_single_precision_and_many_splats_stay_within_90_db(rule: Rule) -> None:
    """More splats than a chunk, so that the sorted renderer's early stop takes part."""
    splats = random_splats(3000, 1, dtype=torch.float32).map(lambda values: values.clone())
    splats = replace(splats, opacity_logits=splats.opacity_logits + 2)
    shared = blend(rule, torch.float32)
    found = model.render(splats, shared, *camera(torch.float32))
    wanted = model.render_dense(splats.map(Tensor.double), shared, *camera())
    assert psnr_db(found.double(), wanted) > 90


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_the_same_where_alphas_are_made_again(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    splats, shared = random_splats(), blend(rule)
    kept = slopes(model.render, splats, shared)
    monkeypatch.setattr(raster, "MOST_KEPT", 0)
    monkeypatch.setattr(raster, "CHUNK", 7)
    for one, other in zip(kept, slopes(model.render, splats, shared)):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tile", [(16, 16), (16, 32), (5, 3)])
@pytest.mark.parametrize("rule", ["sorted", "lc"])
def test_the_tiles_size_does_not_show(
    rule: Rule, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    splats, shared = random_splats(), blend(rule)
    wanted = model.render(splats, shared, *camera())
    monkeypatch.setattr(raster, "TILE", tile)
    torch.testing.assert_close(model.render(splats, shared, *camera()), wanted, atol=1e-12, rtol=0)


def one_splat(**changes: Tensor) -> Splats:
    kept = {
        "positions": torch.tensor([[0, 0, 2.0]]),
        "log_scales": torch.full((1, 3), math.log(0.1)),
        "rotations": torch.tensor([[1.0, 0, 0, 0]]),
        "opacity_logits": torch.tensor([0.0]),
        "sh": torch.tensor([[[0.5, 0, -0.5]]]) / C0,
    }
    return Splats(**{**kept, **changes})


def test_one_splat_is_the_gaussian_of_the_paper() -> None:
    """f sigma / d = 40 x 0.1 / 2 = 2 pixels, and the low-pass adds 0.3 to its square."""
    intrinsics = torch.tensor([40.0, 40, 20.5, 16.5])
    shared = Blend("sorted", background=(0.0, 0.0, 0.0))
    image = model.render(one_splat(), shared, torch.eye(4), intrinsics, SIZE)
    for column, row in ((20, 16), (22, 16), (20, 13), (23, 18)):
        square = (column - 20) ** 2 + (row - 16) ** 2
        alpha = 0.5 * math.exp(-0.5 * square / 4.3)
        wanted = torch.tensor([1.0, 0.5, 0.0]) * alpha
        torch.testing.assert_close(image[row, column], wanted, atol=1e-5, rtol=0)
    reach = math.sqrt(2 * math.log(255 * 0.5) * 4.3)  # where alpha is 1/255
    assert image[16, 20 + int(reach), 0] >= LEAST_ALPHA * 0.9
    assert image[16, 20 + int(reach) + 1, 0] == 0


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"positions": torch.tensor([[0, 0, 0.19]])}, "dir"),
        ({"positions": torch.tensor([[0, 0, -2.0]])}, "sorted"),
        ({"opacity_logits": torch.tensor([-6.0])}, "dir"),
        ({"opacity_sh": torch.tensor([[-1.0]])}, "lc"),
        ({"positions": torch.tensor([[0, 0, 10.5]])}, "lc"),
    ],
    ids=["nearer than 0.2", "behind", "below 1/255", "u below 0", "behind sigma"],
)
def test_what_is_culled_leaves_the_background(changes: dict[str, Tensor], rule: Rule) -> None:
    splats, shared = one_splat(**changes), Blend(rule, sigma=10.0, background=(0.2, 0.4, 0.6))
    intrinsics = torch.tensor([40.0, 40, 20.5, 16.5])
    image = model.render(splats, shared, torch.eye(4), intrinsics, SIZE)
    torch.testing.assert_close(image, torch.tensor([0.2, 0.4, 0.6]).expand_as(image))


def test_the_weights_are_those_of_the_rules() -> None:
    depths = torch.tensor([0.5, 2.0, 9.0])
    wanted = {
        "dir": torch.ones(3),
        "exp": torch.exp(-0.4 * depths**1.5),
        "lc": torch.tensor([1 - 0.5 / 4, 0.5, 0.0]),
        "sorted": torch.ones(3),
    }
    for rule, weights in wanted.items():
        shared = Blend(rule, sigma=4.0 if rule == "lc" else 0.4, beta=1.5)
        torch.testing.assert_close(model.depth_weights(depths, shared), weights)


def test_harmonics_are_orthonormal_and_have_the_usual_signs() -> None:
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(200_000, 3, generator=rng, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=1)
    values = basis(directions, 3)
    products = values.T @ values * (4 * math.pi / len(values))
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), atol=0.02, rtol=0)
    x, y, z = basis(torch.eye(3), 3)
    assert x[3] < 0 and y[1] < 0 and z[2] > 0
    assert z[6] > 0 and x[8] > 0 and z[12] > 0
    assert abs(float(C0) - 0.28209479) < 1e-7


# Order


@pytest.mark.parametrize("rule", WEIGHTED)
def test_the_weighted_sum_does_not_depend_on_the_order(rule: Rule) -> None:
    splats, shared = random_splats(400, dtype=torch.float32), blend(rule, torch.float32)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    found = model.render(splats.map(lambda one: one[shuffled]), shared, *camera(torch.float32))
    wanted = model.render(splats, shared, *camera(torch.float32))
    assert float((found - wanted).detach().abs().max()) <= 1e-6


def test_alpha_blending_depends_on_the_order_of_depths() -> None:
    """The same splats with their depths exchanged, which a sum with weight 1 cannot tell."""
    near, far = torch.tensor([[0, 0, 2.0]]), torch.tensor([[0, 0, 2.0001]])
    colours = torch.tensor([[[3.0, 0, 0]], [[0, 3.0, 0]]])
    change = {}
    for rule in ("sorted", "dir"):
        images = []
        for positions in (torch.cat([near, far]), torch.cat([far, near])):
            splats = one_splat().map(lambda one: one.repeat(2, *[1] * (one.ndim - 1)))
            splats = replace(splats, positions=positions, sh=colours)
            intrinsics = torch.tensor([40.0, 40, 20.5, 16.5])
            images.append(model.render(splats, Blend(rule), torch.eye(4), intrinsics, SIZE))
        change[rule] = float((images[0] - images[1]).abs().max())
    assert change["sorted"] > 0.2
    assert change["dir"] < 1e-3


def test_equal_depths_are_blended_in_the_order_given() -> None:
    splats = one_splat().map(lambda one: one.repeat(2, *[1] * (one.ndim - 1)))
    splats = replace(splats, sh=torch.tensor([[[3.0, 0, 0]], [[0, 3.0, 0]]]))
    image = model.render(splats, Blend(), torch.eye(4), torch.tensor([40.0, 40, 20.5, 16.5]), SIZE)
    first, second = 3 * C0 + 0.5, 0.5
    wanted = torch.tensor([0.5 * first + 0.25 * second, 0.5 * second + 0.25 * first])
    torch.testing.assert_close(image[16, 20, :2], wanted, atol=1e-5, rtol=0)


# A dark disc before a bright wall


def disc_and_wall() -> tuple[Splats, Tensor]:
    """Returns a dark disc at depth 2 before a white wall at depth 6, both of many splats."""
    steps = torch.linspace(-1, 1, 21)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2)
    disc = grid[grid.norm(dim=1) <= 0.9] * 0.5
    wall = grid * 3.6
    positions = torch.cat(
        [
            torch.cat([disc, torch.full((len(disc), 1), 2.0)], 1),
            torch.cat([wall, torch.full((len(wall), 1), 6.0)], 1),
        ]
    )
    dark = torch.arange(len(positions)) < len(disc)
    count = len(positions)
    splats = Splats(
        positions=positions,
        log_scales=torch.where(dark, math.log(0.04), math.log(0.3))[:, None].repeat(1, 3),
        rotations=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        opacity_logits=torch.full((count,), 2.0),
        sh=(torch.where(dark, 0.05, 0.95)[:, None, None] - 0.5).repeat(1, 1, 3) / C0,
        opacity_sh=torch.full((count, 1), 1 / C0),
    )
    x = torch.arange(SIZE[0]) + 0.5 - 20.5
    y = torch.arange(SIZE[1])[:, None] + 0.5 - 16.5
    return splats, (x**2 + y**2).sqrt() < 40 * 0.45 / 2 - 2.5


def test_the_dark_disc_leaks_and_training_mends_it() -> None:
    splats, mask = disc_and_wall()
    intrinsics = torch.tensor([40.0, 40, 20.5, 16.5])
    colour = torch.full((3,), 0.05)

    def show(some: Splats, rule: Rule) -> Tensor:
        shared = Blend(rule, sigma=8.0, background_weight=0.02)
        return model.render(some, shared, torch.eye(4), intrinsics, SIZE)

    wanted = show(splats, "sorted")
    assert abs(leak(wanted, mask, colour)) < 0.02
    before = leak(show(splats, "lc"), mask, colour)
    assert before > 0.1  # the wall shines through
    opacity_sh = splats.opacity_sh.clone().requires_grad_()
    optimizer = torch.optim.Adam([opacity_sh], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (show(replace(splats, opacity_sh=opacity_sh), "lc") - wanted).abs().mean().backward()
        optimizer.step()
    after = leak(show(replace(splats, opacity_sh=opacity_sh.detach()), "lc"), mask, colour)
    assert abs(after) < 0.3 * before
