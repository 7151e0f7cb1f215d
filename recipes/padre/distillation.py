"""Distils PADRe into a trained net: layer by layer first, then the whole.

Each new mixer learns to give what the attention that it stands for gives on the trained net's own
features; then the whole net learns the trained net's answers and the task.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from edgeport_recipes._shared.files import read_json, write_json
from edgeport_recipes._shared.tensors import check_origin
from edgeport_recipes._shared.vision.tasks import Targets, Task
from edgeport_recipes._shared.vision.training import Budget, Loss, Report, evaluate, fit
from edgeport_recipes._shared.vision.weights import save_weights
from edgeport_recipes.padre.warm_start import start_from
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.rewrites.padre import Prefix, replace_attention

WEIGHTS, METRICS, CURVE = "weights.safetensors", "metrics.json", "curve.json"
LAYER_IMAGES = 256
"""Test images over which the error of each layer is taken."""
TEMPERATURE = 2.0
LAYERS, WHOLE = Budget(epochs=1, rate=8e-3), Budget(epochs=2, rate=5e-4)

Point = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is put in, and how long it learns: `layers` each by itself, then the `whole` net.

    `every` so many steps of the second stage the net is scored.
    """

    degree: int
    kernel: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    prefix: Prefix = "pool"
    warm: bool = True
    seed: int = 0
    layers: Budget = LAYERS
    whole: Budget = WHOLE
    every: int = 50


@dataclass(frozen=True)
class Pair:
    """One attention of the trained net, and the mixer that stands for it in the copy."""

    path: str
    attention: nn.Module
    mixer: nn.Module


def distil(
    teacher: nn.Module,
    task: Task,
    plan: Plan,
    folder: Path,
    *,
    origin: Mapping[str, Any] | None = None,
    resume: bool = False,
    limit: int | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Returns what metrics.json holds: scores over steps, and the error of each layer.

    `origin` tells runs of other trained nets apart; `limit` is how many test images are scored.
    The seconds of the second stage contain those of its scores.
    Raises InputError where an attention cannot be replaced, for a folder that holds another run,
    or this one without `resume`, and where a loss is not finite.
    """
    teacher = without_dropout(teacher).requires_grad_(False)
    student, pairs = put_in(teacher, task, plan)
    facts = {**(origin or {}), "plan": asdict(plan), "task": task.name, "limit": limit}
    curve = _Curve(folder / CURVE, facts, resume)
    measure = _measure_with(student, teacher, pairs, task, plan, limit)
    curve.add("untrained", 0, measure)
    rest = {"seed": plan.seed, "origin": facts, "resume": resume}
    mixing = [one for pair in pairs for one in pair.mixer.parameters()]
    first = fit(
        student, task, plan.layers, folder / "layers", loss=_layer_loss(teacher, pairs, plan),
        parameters=mixing, report=report, **rest,
    )  # fmt: skip
    curve.add("layers", first.step, measure)
    then = fit(
        student, task, plan.whole, folder / "whole", loss=_answer_loss(teacher, task),
        report=_scoring(report, student, curve, measure, plan.every), **rest,
    )  # fmt: skip
    curve.add("whole", then.step, measure)
    seconds = {"layers": first.seconds, "whole": then.seconds}
    return _finish(teacher, student, task, folder, curve, facts, seconds)


def _finish(
    teacher: nn.Module,
    student: nn.Module,
    task: Task,
    folder: Path,
    curve: _Curve,
    facts: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    if (folder / METRICS).exists():
        return read_json(folder / METRICS)
    scores = evaluate(teacher, task, limit=facts["limit"])
    metrics = {
        **facts,
        "metric": task.metric,
        "teacher": {name: float(values.mean()) for name, values in scores.items()},
        "curve": curve.points,
        "images": len(scores[task.metric]),
        "parameters": {"teacher": _size(teacher), "student": _size(student)},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "threads": torch.get_num_threads(),
    }
    save_weights(folder / WEIGHTS, student, facts)
    write_json(folder / METRICS, metrics)
    return read_json(folder / METRICS)  # the same now and when it is asked for again


def _size(net: nn.Module) -> int:
    return sum(one.numel() for one in net.parameters())


def without_dropout(net: nn.Module) -> nn.Module:
    """Returns a copy in eval mode that drops nothing in training either.

    Its answers are the target of a few hundred steps: noise in them would be learned as well.
    """
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return net


def put_in(teacher: nn.Module, task: Task, plan: Plan) -> tuple[nn.Module, tuple[Pair, ...]]:
    """Returns a copy of the net with PADRe for every self-attention, and what stands for what.

    With `plan.warm` each starts from the values that its attention projects; see `start_from`.
    Raises InputError where one attention cannot be replaced, or where there is none.
    """
    image = torch.zeros(1, 3, task.side, task.side)
    found = replace_attention(
        teacher,
        degree=plan.degree,
        kernel=plan.kernel,
        grid=plan.grid,
        prefix_tokens=plan.prefix_tokens,
        prefix=plan.prefix if plan.prefix_tokens else "identity",
        example_inputs=(image,),
        seed=plan.seed,
    )
    if found.refused:
        raise InputError(f"cannot replace {found.refused[0]}")
    if not found.replaced:
        raise InputError(f"{type(teacher).__name__} has no self-attention to replace.")
    pairs = {
        teacher.get_submodule(path): Pair(
            path, teacher.get_submodule(path), found.model.get_submodule(path)
        )
        for path in found.replaced
    }
    if plan.warm:
        for pair in pairs.values():
            start_from(pair.mixer, pair.attention)
    found.model.requires_grad_(True)
    return found.model, tuple(pairs.values())


# Layer by layer


@torch.no_grad()
def watch(teacher: nn.Module, pairs: tuple[Pair, ...], images: Tensor) -> list[Callable[[], Any]]:
    """Runs the trained net and returns for each pair a call of (mixer's output, attention's)."""
    found: dict[nn.Module, Callable[[], Any]] = {}
    mixers = {pair.attention: pair.mixer for pair in pairs}

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found[module] = lambda: (_tokens(mixers[module](*args, **kwargs)), _tokens(output))

    hooks = [one.attention.register_forward_hook(keep, with_kwargs=True) for one in pairs]
    try:
        with _unfused():
            teacher(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[pair.attention] for pair in pairs]


def _tokens(output: Any) -> Tensor:
    """Returns the tokens of what an attention gives: `nn.MultiheadAttention` adds its weights."""
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Keeps torch's encoder off its fused path, which goes around the modules within a layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def layer_errors(
    teacher: nn.Module, pairs: tuple[Pair, ...], images: Tensor, prefix_tokens: int
) -> Tensor:
    """Returns for each layer |mixer - attention|^2 / |attention|^2 on the trained net's features.

    Where there are prefix tokens it is the mean of theirs and the grid's: by count they are too few
    to weigh anything, yet the answer may be read from them alone.
    """
    errors = []
    for call in watch(teacher, pairs, images):
        mixed, wanted = call()
        parts = [(mixed, wanted)]
        if prefix_tokens:
            cuts = (slice(None, prefix_tokens), slice(prefix_tokens, None))
            parts = [(mixed[:, cut], wanted[:, cut]) for cut in cuts]
        errors.append(torch.stack([_relative(*part) for part in parts]).mean())
    return torch.stack(errors)


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def _layer_loss(teacher: nn.Module, pairs: tuple[Pair, ...], plan: Plan) -> Loss:
    """Returns the sum of the layers' errors: none sees another, so one pass trains them all."""

    def loss(_student: nn.Module, images: Tensor, _targets: Targets) -> Tensor:
        return layer_errors(teacher, pairs, images, plan.prefix_tokens).sum()

    return loss


# The whole net


def _answer_loss(teacher: nn.Module, task: Task) -> Loss:
    """Returns the task's loss plus the distance to the trained net's answers."""

    def loss(student: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        found = student(images)
        return task.loss(found, targets) + distance(found, wanted, task.dense)

    return loss


def distance(found: Tensor, wanted: Tensor, dense: bool) -> Tensor:
    """Returns T^2 KL(wanted || found) of logits at temperature T = 2; of dense outputs |.|^2.

    The latter is relative to the wanted outputs. Source of the former: arXiv 1503.02531.
    """
    if dense:
        return _relative(found, wanted)
    logs = [F.log_softmax(one / TEMPERATURE, dim=1) for one in (found, wanted)]
    return TEMPERATURE**2 * F.kl_div(*logs, log_target=True, reduction="batchmean")


# Scores over steps


class _Curve:
    """The scores taken so far, in a file: what a run took before it was killed is not taken again.

    A run that goes on repeats the steps since its checkpoint exactly, so their points still hold.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any], resume: bool) -> None:
        self.path, self.origin = path, dict(origin)
        self.points: list[Point] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{path.parent}: {error.strerror}; choose another --output-dir."
            ) from error
        if path.exists():
            if not resume:
                raise InputError(
                    f"{path.parent}: holds a run; go on with --resume, or give another -o."
                )
            table = read_json(path)
            check_origin(path, self.origin, table["origin"])
            self.points = list(table["points"])

    def add(self, stage: str, step: int, measure: Callable[[], Point]) -> None:
        if not any(one["stage"] == stage and one["step"] == step for one in self.points):
            self.points.append({"stage": stage, "step": step, **measure()})
            write_json(self.path, {"origin": self.origin, "points": self.points})


def _measure_with(
    student: nn.Module,
    teacher: nn.Module,
    pairs: tuple[Pair, ...],
    task: Task,
    plan: Plan,
    limit: int | None,
) -> Callable[[], Point]:
    """Returns what measures the student: its scores, and the layers' errors on test images."""

    @torch.no_grad()
    def measure() -> Point:
        mode = student.training
        scores = evaluate(student, task, limit=limit)
        test = task.data("test", 0).images
        chosen = torch.linspace(0, len(test) - 1, min(LAYER_IMAGES, limit or LAYER_IMAGES)).long()
        errors = layer_errors(teacher, pairs, test[chosen].float() / 255, plan.prefix_tokens)
        student.train(mode)
        return {
            "scores": {name: float(values.mean()) for name, values in scores.items()},
            "layer_errors": [round(float(one), 4) for one in errors],
        }

    return measure


def _scoring(
    report: Report | None,
    student: nn.Module,
    curve: _Curve,
    measure: Callable[[], Point],
    every: int,
) -> Report:
    """Returns a report that also scores the student every so many steps."""

    def scoring(name: str, progress: Any, seconds: float) -> None:
        if report is not None:
            report(name, progress, seconds)
        if progress.step % every == 0:
            curve.add("whole", progress.step, measure)

    return scoring
