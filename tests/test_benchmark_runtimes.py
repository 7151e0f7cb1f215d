"""The suite `runtimes`: served models answer as they should, and the verdict can be lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import conv_net, gaussian, save

from benchmarks.runtimes import AGAIN, EXECUTORS, tables
from benchmarks.tables import Results, Row
from edgeport.errors import StageFailed
from edgeport.places.served import Request, Served
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples


def test_a_served_model_runs_when_it_is_told_to(tmp_path: Path) -> None:
    model = save(conv_net(), tmp_path / "net.onnx")
    feeds = [{"image": gaussian([1, 3, 16, 16], seed)} for seed in (1, 2)]
    save_samples(tmp_path / "inputs.npz", feeds)
    with Served(request(model, tmp_path), tmp_path / "work", EXECUTORS) as served:
        assert served.cold_ms > served.load_ms > 0 and served.first_ms > 0
        assert len(served.turn(3)) == 3
        for feed, answer in zip(feeds, served.outputs(), strict=True):
            (reference,) = Session(model, 1).run(feed)
            np.testing.assert_array_equal(answer["output_0"], reference)
        assert 20e6 < served.peak_bytes() < 1e9


def request(model: Path, folder: Path) -> Request:
    return Request("onnx", str(model), str(folder / "inputs.npz"), str(folder / "outputs.npz"), 1)


def test_a_model_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    save_samples(tmp_path / "inputs.npz", [{"image": gaussian([1, 3, 16, 16])}])
    with pytest.raises(StageFailed, match=r"ended \(1\): .*cannot load bad\.onnx"):
        Served(request(tmp_path / "bad.onnx", tmp_path), tmp_path / "work", EXECUTORS)


@pytest.mark.parametrize(
    ("ours", "word"), [((0.5, 0.6), "SLOWER"), ((0.92, 1.3), "no slower"), ((1.5, 1.7), "faster")]
)
def test_the_verdict_knows_the_noise_floor(
    tmp_path: Path, ours: tuple[float, float], word: str
) -> None:
    results = Results(tmp_path / "r.jsonl", "default")
    group = "resnet20 float"
    results.add(
        [
            Row("runtimes", group, AGAIN, "speedup", 1.0, "ratio", interval=(0.95, 1.04)),
            Row(
                "runtimes", group, "edgeport onnx", "speedup", sum(ours) / 2, "ratio", interval=ours
            ),
        ]
    )
    line = next(one for one in tables(results).splitlines() if one.startswith("| resnet20 float"))
    assert "5%" in line and f"| {word} " in line
    assert line.count("not run") == 2
