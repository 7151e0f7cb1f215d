"""Random weights that are worth comparing, and integers that a module takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeport.catalog import Source, parse_spec
from edgeport.errors import InputError
from edgeport.feeds import FeedPlan, parity_feeds, random_feed
from edgeport.sources import Built
from edgeport.sources.ranges import integer_ranges
from edgeport.sources.statistics import (
    batch_norms,
    calibrate_batch_norm,
    fill_zero_weights,
    make_comparable,
)

IMAGE = (parse_spec("image:float32[1,3,16,16]"),)


class Started(nn.Module):
    """Has what libraries start at zero or nearly so, beside what stays."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.branch = nn.BatchNorm2d(8)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 1e-6))
        self.gate = nn.Parameter(torch.zeros(()))
        self.position = nn.Parameter(torch.zeros(1, 8, 14, 14))
        self.head = nn.Linear(8, 5)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.body(image) + self.position
        x = x + self.gate * self.gamma * self.branch(x)
        return self.head(x.mean((2, 3)))


def started(seed: int = 0) -> Built:
    torch.manual_seed(seed)
    return Built(Started().eval(), IMAGE, random=True)


def test_zero_weights_get_small_seeded_values() -> None:
    module = started().module
    before = {name: value.clone() for name, value in module.named_parameters()}
    assert fill_zero_weights(module, 0) == 5
    after = dict(module.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"branch.weight", "gamma", "gate", "position", "head.weight"}
    assert float(after["gamma"].min()) >= 0.25 and float(after["gamma"].max()) <= 0.75
    assert 0.1 < float(after["head.weight"].std()) < 0.8  # 1/sqrt(8)
    assert fill_zero_weights(module, 0) == 0


def test_batch_norm_statistics_are_those_of_its_inputs() -> None:
    built = started()
    fill_zero_weights(built.module, 0)
    assert calibrate_batch_norm(built, 0) == 2
    layer = batch_norms(built.module)[0]
    conv = built.module.body[0]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        real = conv(torch.randn(64, 3, 16, 16, generator=generator))
    torch.testing.assert_close(layer.running_mean, real.mean((0, 2, 3)), atol=0.05, rtol=0)
    torch.testing.assert_close(layer.running_var, real.var((0, 2, 3)), atol=0, rtol=0.1)
    assert not any(module.training for module in built.module.modules())
    assert all(layer.momentum == 0.1 for layer in batch_norms(built.module))


def test_the_seed_decides() -> None:
    states = []
    for seed in (1, 1, 2):
        built = started()
        make_comparable(built, seed)
        states.append(built.module.state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["body.1.running_mean"], other["body.1.running_mean"])


def test_notes_say_what_was_done() -> None:
    zero, statistics = make_comparable(started(), 0)
    assert "5 that start at zero" in zero
    assert "2 BatchNorm layers computed on 32 seeded inputs" in statistics
    assert make_comparable(Built(nn.Linear(3, 2).eval(), IMAGE), 0) == ()


def test_a_model_that_does_not_take_its_inputs() -> None:
    built = Built(started().module, (parse_spec("image:float32[1,4,16,16]"),))
    with pytest.raises(InputError, match="the model fails on image:float32") as caught:
        calibrate_batch_norm(built, 0)
    assert "\n" not in str(caught.value)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(90, 4), nn.Embedding(3, 4)
        self.places = nn.Embedding(64, 4)

    def forward(self, ids, kinds, attention_mask, other):
        places = torch.arange(ids.shape[1])[None]
        x = self.words(ids) + self.kinds(kinds.long()) + self.places(places)
        return x * attention_mask[..., None] + other


TEXT = tuple(
    map(
        parse_spec,
        ("ids:int64[1,9]", "kinds:int32[1,9]", "attention_mask:int64[1,9]", "other:int64[1]"),
    )
)


def test_integers_stay_below_the_table_they_index() -> None:
    ranges = integer_ranges(Text().eval(), TEXT, {}, 0)
    assert ranges == {"ids": (0, 90), "kinds": (0, 3), "attention_mask": (1, 2)}
    feeds = [random_feed(TEXT, ranges, np.random.default_rng(i)) for i in range(9)]
    assert max(int(feed["ids"].max()) for feed in feeds) > 50
    assert all((feed["attention_mask"] == 1).all() for feed in feeds)
    assert {int(value) for feed in feeds for value in feed["other"]} == {0, 1}


def test_what_is_known_wins_and_pixels_are_bytes() -> None:
    specs = (*TEXT, parse_spec("pixels:uint8[1,4,4]"))
    ranges = integer_ranges(Text().eval(), specs, {"ids": (0, 7), "nothing": (0, 5)}, 0)
    assert ranges == {"ids": (0, 7), "attention_mask": (1, 2), "pixels": (0, 256)}  # fails to run


def test_parity_feeds_use_the_ranges() -> None:
    plan = FeedPlan(Source("factory", "x", TEXT), TEXT, 0, 4, 4, integer_ranges={"ids": (80, 90)})
    feeds = parity_feeds(plan)
    assert all(80 <= feed["ids"].min() <= feed["ids"].max() < 90 for feed in feeds)
