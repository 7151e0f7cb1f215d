"""Calibration: the ranges of each method, masks, and memory that does not grow with the feeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import conv_net, gaussian, model, node

from edgeport.errors import InputError, StageFailed
from edgeport.quantize import calibrate
from edgeport.quantize.calibrate import Feeds, Statistics, choose_range, gather
from edgeport.quantize.config import METHODS, Calibration
from edgeport.quantize.graph import Graph, Probe, in_groups
from edgeport.runtimes.onnx import Session


def relu_net(width: int = 4096) -> onnx.ModelProto:
    return model([node("Relu", "x", "y")], {"x": [1, width]}, {"y": [1, width]})


def histogram_of(values: np.ndarray, bins: int = 2048) -> Statistics:
    counts, _ = np.histogram(values, bins, (values.min(), values.max()))
    return Statistics(float(values.min()), float(values.max()), histogram=counts)


def squared_error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    step = (high - low) / (levels - 1)
    rounded = np.clip(np.rint((values - low) / step), 0, levels - 1) * step + low
    return float(((rounded - values) ** 2).mean())


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_statistics_are_those_of_all_feeds_at_once(method: str) -> None:
    feeds = [{"x": gaussian([1, 4096], seed, scale=1 + seed)} for seed in range(5)]
    config = Calibration(method=method, bins=64)
    found = gather(Probe(Graph(relu_net())), feeds, config, {"x": 1})
    values = np.concatenate([feed["x"] for feed in feeds])
    assert (found["x"].low, found["x"].high) == (values.min(), values.max())
    assert found["y"].low == 0.0 and found["y"].high == values.max()
    np.testing.assert_allclose(found["x"].mean, values.mean(axis=0), atol=1e-6)
    if method == "mse":
        expected, _ = np.histogram(values, 64, (values.min(), values.max()))
        assert np.abs(found["x"].histogram - expected).sum() <= 4  # of values on a bin's edge
    else:
        assert found["x"].histogram is None


def test_a_small_budget_of_memory_gives_the_same_ranges() -> None:
    feeds = [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(3)]
    config = Calibration(method="percentile")
    whole = gather(Probe(Graph(conv_net())), feeds, config, {})
    pieces = gather(Probe(Graph(conv_net())), feeds, replace(config, group_bytes=1), {})
    assert whole.keys() == pieces.keys()
    for name, one in whole.items():
        assert (one.low, one.high) == (pieces[name].low, pieces[name].high)
        np.testing.assert_array_equal(one.histogram, pieces[name].histogram)


def test_groups_hold_no_more_than_their_budget() -> None:
    probe = Probe(Graph(conv_net()))
    limit = 4 * 3 * 16 * 16 + 4 * 8 * 16 * 16
    for group in in_groups(probe.shapes, probe.bytes_of, limit):
        size = sum(4 * int(np.prod(probe.shapes[name])) for name in group)
        assert size <= limit or len(group) == 1
    grouped = [name for group in in_groups(probe.shapes, probe.bytes_of, limit) for name in group]
    assert sorted(grouped) == sorted(probe.shapes)


def test_one_feed_is_alive_at_a_time() -> None:
    alive, most = 0, 0

    class Tracked(dict):
        def __init__(self, **values):
            nonlocal alive, most
            super().__init__(**values)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    feeds = (Tracked(x=gaussian([1, 4096], seed)) for seed in range(20))
    gather(Probe(Graph(relu_net())), feeds, Calibration(method="entropy"), {})
    assert most <= 2


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=25)
def test_every_range_lies_in_what_was_seen_and_holds_zero(method, seed, shift, scale) -> None:
    values = (np.random.default_rng(seed).standard_normal(5000) + shift) * scale
    one = histogram_of(values)
    for dtype in ("uint8", "uint16"):
        low, high = choose_range(one, Calibration(method=method), dtype)
        assert min(values.min(), 0.0) - 1e-9 * scale <= low <= 0.0
        assert 0.0 <= high <= max(values.max(), 0.0) + 1e-9 * scale
        assert high > low


def test_percentile_leaves_out_the_share_it_names() -> None:
    values = np.linspace(-1, 1, 100_001)
    low, high = choose_range(
        histogram_of(values), Calibration(method="percentile", percentile=90), "uint8"
    )
    assert low == pytest.approx(-0.9, abs=2e-3)
    assert high == pytest.approx(0.9, abs=2e-3)


def test_mse_is_near_the_best_range_by_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50_000), [40.0]])
    low, high = choose_range(histogram_of(values, 8192), Calibration(method="mse"), "uint8")
    found = squared_error(values, low, high, 256)
    best = min(
        squared_error(values, min_, max_, 256)
        for min_ in np.linspace(values.min(), -1, 30)
        for max_ in np.linspace(1, values.max(), 160)
    )
    assert high < 39  # the one outlier does not set the step of all others
    assert found <= 1.05 * best


def test_entropy_cuts_a_long_tail() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(100_000), rng.uniform(5, 100, 5)])
    low, high = choose_range(histogram_of(values), Calibration(method="entropy"), "uint8")
    assert high < 0.5 * values.max()
    assert low == pytest.approx(values.min())


def test_entropy_is_not_misled_by_the_zeros_of_a_relu() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal(100_000), 0)
    _, high = choose_range(histogram_of(values), Calibration(method="entropy"), "uint8")
    assert high > 0.6 * values.max()


def test_a_mask_is_no_value_of_the_range() -> None:
    mask = np.where(np.tri(8) > 0, 0.0, np.finfo(np.float32).min).astype(np.float32)
    net = model([node("Add", "x mask", "y")], {"x": [8, 8]}, {"y": [8, 8]}, {"mask": mask})
    found = gather(Probe(Graph(net)), [{"x": gaussian([8, 8])}], Calibration(), {})
    assert found["y"].masked and not found["x"].masked
    assert -10 < found["y"].low < found["y"].high < 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told(value: float) -> None:
    net = model([node("Log", "x", "y")], {"x": [1, 4]}, {"y": [1, 4]})
    feed = {"x": np.array([[1.0, 2.0, -1.0, 3.0]], np.float32)}
    if np.isnan(value):
        with pytest.raises(StageFailed, match="tensor y is NaN"):
            gather(Probe(Graph(net)), [feed], Calibration(), {})
    else:
        zero = {"x": np.array([[1.0, 0.0, 2.0, 3.0]], np.float32)}
        found = gather(Probe(Graph(net)), [zero], Calibration(), {})
        assert found["y"].masked and np.isfinite(found["y"].low)


def test_no_feed_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        Feeds([], tmp_path)


def test_a_probe_gives_the_values_a_session_gives() -> None:
    feed = {"image": gaussian([1, 3, 16, 16])}
    probe = Probe(Graph(conv_net()))
    values = probe.run(list(probe.shapes), feed)
    (expected,) = Session(conv_net().SerializeToString()).run(feed)
    np.testing.assert_allclose(values["y"], expected, atol=1e-5)
    np.testing.assert_array_equal(values["r"], np.maximum(values["c"], 0))
    assert calibrate.MASK > 1e6
