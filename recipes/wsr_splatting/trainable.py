"""A scene under training: its parameters, their Adam moments, and what densification needs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.settings import Settings
from edgeport_recipes.wsr_splatting.splats import Blend, Splats
from torch import Tensor

SHARED = ("sigma", "beta", "background", "background_weight")  # one value for all splats
_BETAS, _EPSILON = (0.9, 0.999), 1e-15

Tensors = dict[str, Tensor]


class Trainable:
    """Parameters by name, each with its Adam moments; rows are splats, but for SHARED.

    The harmonics are kept as degree 0 and the rest, which learn at other rates.
    """

    def __init__(self, settings: Settings, values: Tensors, moments: Tensors | None = None) -> None:
        self.settings = settings
        self.values = {name: value.requires_grad_() for name, value in values.items()}
        kinds = ("first", "second")
        self.moments = moments or {
            f"{kind}.{name}": torch.zeros_like(value, requires_grad=False)
            for name, value in values.items()
            for kind in kinds
        }

    @property
    def count(self) -> int:
        return len(self.values["positions"])

    def splats(self, degree: int) -> Splats:
        """Returns the splats with harmonics up to `degree`."""
        v, rest = self.values, (degree + 1) ** 2 - 1
        opacity_sh = None
        if "opacity_sh" in v:
            opacity_sh = torch.cat([v["opacity_sh"], v["opacity_sh_rest"][:, :rest]], 1)
        return Splats(
            positions=v["positions"],
            log_scales=v["log_scales"],
            rotations=v["rotations"],
            opacity_logits=v["opacity_logits"],
            sh=torch.cat([v["sh"], v["sh_rest"][:, :rest]], 1),
            opacity_sh=opacity_sh,
        )

    def blend(self) -> Blend:
        v = self.values
        return Blend(
            self.settings.method,
            sigma=v["sigma"].exp(),
            beta=v["beta"],
            background=v["background"],
            background_weight=v["background_weight"].exp(),
        )

    def final(self) -> tuple[Splats, Blend]:
        """Returns what is saved: tensors without gradients, and plain numbers."""
        blend = self.blend()
        red, green, blue = blend.background.tolist()
        return self.splats(self.settings.degree).map(Tensor.detach), Blend(
            blend.rule,
            sigma=float(blend.sigma.detach()),
            beta=float(blend.beta.detach()),
            background=(red, green, blue),
            background_weight=float(blend.background_weight.detach()),
        )

    @torch.no_grad()
    def step(self, step: int, extent: float) -> None:
        """Takes one step of Adam (arXiv 1412.6980) and forgets the gradients.

        The background's weight does not fall below its first value: where splats are few, one that
        passes the cut at 1/255 would else change a pixel's colour at once, which is popping too.
        """
        rates = learning_rates(self.settings, step, extent)
        corrections = [1 - beta ** (step + 1) for beta in _BETAS]
        for name, value in self.values.items():
            if value.grad is None:
                continue
            first, second = self.moments[f"first.{name}"], self.moments[f"second.{name}"]
            first.lerp_(value.grad, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(value.grad, value.grad, value=1 - _BETAS[1])
            scale = second.sqrt().div_(math.sqrt(corrections[1])).add_(_EPSILON)
            value.addcdiv_(first, scale, value=-rates[name] / corrections[0])
            value.grad = None
        weight = self.values["background_weight"]
        weight.clamp_(min=math.log(self.settings.background_weight))

    def change_rows(self, change: Callable[[str, Tensor], Tensor], moved: Tensor) -> None:
        """Replaces every parameter of the splats by `change(name, values)`.

        `moved` [new N] is the old row whose moments each new row takes, or -1 for none.
        """
        for name in [name for name in self.values if name not in SHARED]:
            value = change(name, self.values[name].detach())
            self.values[name] = value.contiguous().requires_grad_()
            for kind in ("first", "second"):
                old = self.moments[f"{kind}.{name}"]
                fresh = old[moved.clamp(min=0)]
                fresh[moved < 0] = 0
                self.moments[f"{kind}.{name}"] = fresh


def learning_rates(settings: Settings, step: int, extent: float) -> dict[str, float]:
    """Returns the rate of every parameter at a step."""
    done = step / settings.iterations

    def falling(ends: tuple[float, float]) -> float:
        return math.exp((1 - done) * math.log(ends[0]) + done * math.log(ends[1]))

    return {
        "positions": falling(settings.position_rates) * extent,
        "log_scales": settings.scale_rate,
        "rotations": settings.rotation_rate,
        "opacity_logits": settings.opacity_rate,
        "sh": settings.sh_rate,
        "sh_rest": settings.sh_rest_rate,
        "opacity_sh": settings.opacity_sh_rate,
        "opacity_sh_rest": settings.opacity_sh_rest_rate,
        "sigma": falling(settings.sigma_rates),  # of its logarithm: no unit
        "beta": falling(settings.sigma_rates),
        "background": settings.background_rate,
        "background_weight": settings.background_rate,
    }


def start(scene: Scene, settings: Settings, rng: torch.Generator) -> Trainable:
    """Returns round splats on the scene's points, as wide as their neighbours are far.

    No more than the limit; which points stay is drawn from `rng`. u starts at 1.
    """
    chosen = torch.randperm(len(scene.points), generator=rng)[: settings.max_splats]
    points, colours = scene.points[chosen], scene.colours[chosen]
    count, rest = len(points), (settings.degree + 1) ** 2 - 1
    distances = neighbour_distances(points)
    images = torch.stack([image.float().mean((0, 1)) for image in scene.images])
    values = {
        "positions": points.clone(),
        "log_scales": distances.log()[:, None].repeat(1, 3),
        "rotations": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "opacity_logits": torch.full((count,), settings.first_opacity).logit(),
        "sh": ((colours - 0.5) / C0)[:, None],
        "sh_rest": torch.zeros(count, rest, 3),
        "sigma": torch.tensor(first_sigma(scene, settings)).log(),
        "beta": torch.tensor(1.0),
        "background": images.mean(0) / 255,
        "background_weight": torch.tensor(settings.background_weight).log(),
    }
    if settings.view_opacity and settings.method != "sorted":
        values["opacity_sh"] = torch.full((count, 1), 1 / C0)
        values["opacity_sh_rest"] = torch.zeros(count, rest)
    return Trainable(settings, values)


def first_sigma(scene: Scene, settings: Settings) -> float:
    """Returns sigma in the scene's units.

    LC: the depth that one point in a hundred lies behind, and a part more, so that the weights are
    above 0; EXP: such that the weight falls by e over the median depth.
    """
    views = torch.stack([scene.cameras[one].view[2] for one in scene.training])
    depths = (scene.points @ views[:, :3].T + views[:, 3]).flatten()
    depths = depths[depths > 0]
    if not len(depths):
        return 1.0  # nothing is seen, which training tells
    depths = depths[:: len(depths) // 1_000_000 + 1]
    if settings.method == "exp":
        return 1 / float(depths.median())
    return settings.sigma_reach * float(depths.quantile(0.99))


def neighbour_distances(points: Tensor) -> Tensor:
    """Returns the root mean squared distance [N] of each point to its three nearest others."""
    found = []
    for some in points.split(1024):
        nearest = torch.cdist(some, points).topk(min(4, len(points)), largest=False).values
        found.append(nearest[:, 1:].square().mean(1) if len(points) > 1 else nearest[:, 0] + 1)
    return torch.cat(found).clamp(min=1e-8).sqrt()
