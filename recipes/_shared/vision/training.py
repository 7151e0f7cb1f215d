"""One training loop for the vision recipes: AdamW, a cosine schedule, a checkpoint an epoch.

Whatever is drawn follows from the seed and the epoch, so that a run that was killed goes on to
the result that it would have had.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from edgeport_recipes._shared.tensors import (
    check_origin,
    load_tensors,
    read_facts,
    save_tensors,
)
from edgeport_recipes._shared.vision.tasks import Split, Targets, Task
from torch import Tensor, nn

from edgeport.errors import InputError
from edgeport.measure import now_seconds

CHECKPOINT = "checkpoint.safetensors"
CLIP = 1.0  # of the gradient's norm: a polynomial's can be large at first
Loss = Callable[[nn.Module, Tensor, Targets], Tensor]


@dataclass(frozen=True)
class Budget:
    """How long a training is, and its rates: the same for all arms that are compared."""

    epochs: int
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    images: int | None = None
    """Of the training part, at most; all of them by default."""


@dataclass
class Progress:
    """Where a training is; `losses` are the means of the epochs that are done."""

    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


Report = Callable[[str, Progress, float], None]


def fit(
    net: nn.Module,
    task: Task,
    budget: Budget,
    folder: Path,
    *,
    seed: int,
    origin: Mapping[str, Any],
    resume: bool = False,
    loss: Loss | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
    report: Report | None = None,
) -> Progress:
    """Trains the network in place, on a GPU where there is one; `folder` keeps the checkpoint.

    `loss(net, images, targets)` is by default the task's; `parameters` are what is trained, by
    default all. `origin` tells runs apart. Raises InputError for a folder that holds another run,
    or this one without `resume`, and where the loss is not finite.
    """
    net.to(device := best_device())
    wanted = {**origin, "seed": seed, "budget": asdict(budget), "task": task.name}
    trained = list(net.parameters() if parameters is None else parameters)
    optimizer = torch.optim.AdamW(_groups(trained, budget), lr=budget.rate, fused=True)
    progress = _begin(folder / CHECKPOINT, net, optimizer, wanted, resume)
    train = _first(task.data("train", seed), budget.images)
    progress.steps = budget.epochs * math.ceil(train.count / budget.batch)
    loss = loss or _task_loss(task)
    net.train()
    while progress.epoch < budget.epochs:
        started = now_seconds()
        total = 0.0
        batches = list(_order(train.count, budget.batch, seed, progress.epoch))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed(seed, progress.epoch))  # of what the network itself draws
            for images, targets in batches_of(train, batches, task.flips, seed, progress.epoch):
                images, targets = _on(device, images, targets)
                _set_rate(optimizer, budget, progress)
                total += _step(net, loss, optimizer, trained, images, targets, folder)
                progress.step += 1
                if report is not None:
                    spent = progress.seconds + now_seconds() - started
                    report(folder.name, progress, spent)
        progress.epoch += 1
        progress.losses.append(total / len(batches))
        progress.seconds += now_seconds() - started
        _write(folder / CHECKPOINT, net, optimizer, wanted, progress)
    net.eval().to("cpu")
    return progress


def best_device() -> torch.device:
    """Returns the GPU where torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _on(device: torch.device, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    return images.to(device), {name: values.to(device) for name, values in targets.items()}


def _task_loss(task: Task) -> Loss:
    return lambda net, images, targets: task.loss(net(images), targets)


def _step(
    net: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    images: Tensor,
    targets: Targets,
    folder: Path,
) -> float:
    found = loss(net, images, targets)
    if not torch.isfinite(found):
        raise InputError(f"{folder}: the loss is not finite; lower --rate.")
    optimizer.zero_grad()
    found.backward()
    nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    return float(found.detach())


def _groups(trained: Sequence[nn.Parameter], budget: Budget) -> list[dict[str, Any]]:
    """Returns the matrices, which decay, and the vectors, which do not."""
    matrices = [one for one in trained if one.ndim > 1]
    vectors = [one for one in trained if one.ndim <= 1]
    decays = ((matrices, budget.weight_decay), (vectors, 0.0))
    return [{"params": part, "weight_decay": decay} for part, decay in decays if part]


def _set_rate(optimizer: torch.optim.Optimizer, budget: Budget, progress: Progress) -> None:
    """Sets the rate of this step: a linear rise, then half a cosine to zero."""
    share, rise = progress.step / progress.steps, budget.warmup
    if share < rise:
        scale = (progress.step + 1) / (rise * progress.steps + 1)
    else:
        scale = 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))
    for group in optimizer.param_groups:
        group["lr"] = budget.rate * scale


# Data


def _mixed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _first(split: Split, count: int | None) -> Split:
    """Returns at most `count` samples, spread over the split: real data may be sorted by class."""
    if count is None or count >= split.count:
        return split
    chosen = torch.linspace(0, split.count - 1, count).long()
    targets = {name: values[chosen] for name, values in split.targets.items()}
    return Split(split.images[chosen], targets)


def _order(count: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yields the indices of the epoch's batches: every sample once."""
    drawn = torch.Generator().manual_seed(_mixed(seed, epoch))
    yield from torch.randperm(count, generator=drawn).split(batch)


def batches_of(
    split: Split, batches: Sequence[Tensor], flips: bool, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Targets]]:
    """Yields images `b x 3 x h x w` in 0..1 and their targets; with `flips` half are mirrored."""
    drawn = torch.Generator().manual_seed(_mixed(seed, epoch) + 1)
    for chosen in batches:
        images = split.images[chosen].float() / 255
        if flips:
            mirrored = torch.rand(len(chosen), generator=drawn) < 0.5
            images[mirrored] = images[mirrored].flip(3)
        images = images.contiguous(memory_format=torch.channels_last)
        yield images, {name: values[chosen] for name, values in split.targets.items()}


@torch.no_grad()
def evaluate(
    net: nn.Module, task: Task, *, limit: int | None = None, batch: int = 250
) -> dict[str, Tensor]:
    """Returns, by metric, the score of every test image, or of `limit` of them spread evenly."""
    net.eval()
    test = _first(task.data("test", 0), limit)
    order = list(torch.arange(test.count).split(batch))
    found = [
        task.score(net(images), targets) for images, targets in batches_of(test, order, False, 0, 0)
    ]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def rounded(scores: Tensor) -> list[float]:
    """Returns the scores for a file."""
    return [round(one, 4) for one in scores.tolist()]


# Checkpoints


def _begin(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    wanted: Mapping[str, Any],
    resume: bool,
) -> Progress:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: {error.strerror}; choose another --output-dir."
        ) from error
    if not path.exists():
        return Progress()
    if not resume:
        raise InputError(f"{path.parent}: holds a run; go on with --resume, or give another -o.")
    return _read(path, net, optimizer, wanted)


def _write(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    wanted: Mapping[str, Any],
    progress: Progress,
) -> None:
    state = optimizer.state_dict()["state"]
    tensors = {
        **{f"net.{name}": value for name, value in net.state_dict().items()},
        **{
            f"optimizer.{index}.{name}": value
            for index, one in state.items()
            for name, value in one.items()
        },
    }
    save_tensors(path, tensors, {"origin": wanted, "progress": asdict(progress)})


def _read(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, wanted: Mapping[str, Any]
) -> Progress:
    facts, tensors = read_facts(path), load_tensors(path)
    check_origin(path, wanted, facts["origin"])
    net.load_state_dict(_under("net.", tensors))
    table = optimizer.state_dict()
    for name, value in _under("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        table["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(table)
    return Progress(**facts["progress"])


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def report(name: str, progress: Progress, seconds: float) -> None:
    """Writes a line to stderr: on a terminal it is replaced, elsewhere there are twenty in all."""
    live = sys.stderr.isatty()
    done = progress.step == progress.steps
    if not live and progress.step % max(1, progress.steps // 20) and not done:
        return
    each = seconds / progress.step
    left = each * (progress.steps - progress.step)
    last = f"loss {progress.losses[-1]:.3f}  " if progress.losses else ""
    line = f"{name}: {progress.step}/{progress.steps}  {last}{each:.2f} s each  {left:.0f} s left"
    end = "\n" if not live or done else ""
    print(f"\r{line}\x1b[K" if live else line, end=end, file=sys.stderr, flush=True)
