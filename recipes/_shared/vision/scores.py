"""Scores of trained networks as measurements, with intervals over the test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeport.measure import environment
from edgeport.metrics import bootstrap_interval
from edgeport.types import Measurement


def mean_score(metric: str, scores: Tensor) -> Measurement:
    """Returns the mean of one score an image, with its 95 % interval."""
    return _measured(metric, scores, 1.0, "fraction")


def points_lost(metric: str, reference: Tensor, ours: Tensor) -> Measurement:
    """Returns, in points, how much lower ours are than the reference's on the same images."""
    return _measured(metric, reference - ours, 100.0, "points")


def percent_more(metric: str, reference: Tensor, ours: Tensor) -> Measurement:
    """Returns, in percent of the reference's mean, how much higher ours are on the same images."""
    return _measured(metric, ours - reference, 100.0 / float(reference.mean()), "percent")


def _measured(metric: str, each: Tensor, scale: float, unit: str) -> Measurement:
    values = np.asarray(each, np.float64) * scale
    return Measurement(
        metric,
        float(values.mean()),
        unit,
        "host",
        interval=bootstrap_interval(values),
        environment={**environment(torch.get_num_threads()), "images": str(len(values))},
    )
