"""Trains and judges selectors: the divergence of predicted maps, and how many tokens are right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from edgeport_recipes._shared.vision.tasks import Targets, Task
from edgeport_recipes.tosa.model import SelectiveTransformer, Selector, received
from torch import Tensor

from edgeport.rewrites.token_selection import top_tokens

PREDICTION_WEIGHT = 0.1
"""Of the divergence in fine-tuning: its gradient shall be small in the norm that is clipped. The
steps of AdamW do not depend on it."""
EVERY = 4
"""Fine-tuning takes the divergence of one image in so many: it costs more than the layers."""


def divergence(selector: Selector, logits: Tensor, true: Tensor) -> Tensor:
    """Returns KL(true map of the next layer || predicted map), the mean of all queries, in nats."""
    predicted, wanted = selector.predict(logits), F.log_softmax(true, -1)
    rows = wanted[..., 0].numel()
    return F.kl_div(predicted, wanted, reduction="sum", log_target=True) / rows


def selector_loss(net: SelectiveTransformer, images: Tensor, _targets: Targets) -> Tensor:
    """Returns the divergence, summed over pairs; every token passes every layer, which are not
    trained."""
    with torch.no_grad():
        maps = list(map_pairs(net, images, selecting=False))
    losses = [divergence(scorer, logits, true) for scorer, (logits, true) in zip(net.scorers, maps)]
    return torch.stack(losses).sum()


def tuning_loss(net: SelectiveTransformer, task: Task, images: Tensor, targets: Targets) -> Tensor:
    """Returns the task's loss with selection, and the divergence, which trains selectors alone: no
    gradient goes through the choice of tokens."""
    x, losses = net.embed(images), []
    for normal, scorer, selective in net.pairs():
        x, logits = normal.with_logits(x)
        with torch.no_grad():
            true = selective.inner.logits(x[::EVERY])
            scores = scorer(logits)
        losses.append(divergence(scorer, logits[::EVERY].detach(), true))
        x = selective(x, scores)
    return task.loss(net.read_out(x), targets) + PREDICTION_WEIGHT * torch.stack(losses).sum()


def map_pairs(
    net: SelectiveTransformer, images: Tensor, *, selecting: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields for each pair the logits of its first layer and those that its second layer has, or
    would have, with all tokens; `selecting` says whether the layers before select."""
    x = net.embed(images)
    for normal, scorer, selective in net.pairs():
        x, logits = normal.with_logits(x)
        yield logits, selective.inner.logits(x)
        x = selective(x, scorer(logits)) if selecting else selective.inner(x)


@torch.no_grad()
def overlaps(
    net: SelectiveTransformer, test: Tensor, *, selecting: bool, batch: int = 250
) -> dict[str, Tensor]:
    """Returns, by source of scores, the share of the true K best tokens that it finds,
    `n`, in images `n x 3 x side x side` uint8.

    The truth is the attention that tokens receive in the second layer of a pair; the mean of all
    pairs. "random" has the scores that follow from a seed.
    """
    drawn = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {"selector": [], "copy": [], "random": []}
    for images in test.split(batch):
        rows = []
        maps = map_pairs(net, images.float() / 255, selecting=selecting)
        for scorer, (logits, true) in zip(net.scorers, maps):
            wanted = received(true)
            guess = torch.rand(wanted.shape, generator=drawn)
            sources = (scorer(logits), received(logits), guess)
            rows.append([overlap(one, wanted, net.shape.kept) for one in sources])
        for name, column in zip(found, zip(*rows)):
            found[name].append(torch.stack(column).mean(0))
    return {name: torch.cat(parts) for name, parts in found.items()}


def overlap(scores: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Returns, for each image, the share of the `count` best tokens that two scores agree on."""
    both = [
        torch.zeros_like(one).scatter(1, top_tokens(one, count), 1.0) for one in (scores, wanted)
    ]
    return (both[0] * both[1]).sum(1) / count
