"""Loss and score of classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from edgeport_recipes._shared.vision.tasks import Targets
from torch import Tensor

SMOOTHING = 0.1


def loss(outputs: Tensor, targets: Targets) -> Tensor:
    """Returns the cross entropy of logits `n x classes` with smoothed labels."""
    return F.cross_entropy(outputs, targets["label"], label_smoothing=SMOOTHING)


def score(outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Returns 1 for each image whose largest logit is its label's, else 0."""
    return {"top1": (outputs.argmax(1) == targets["label"]).to(torch.float32)}
