"""What suite `vit` times: arms that compute the same, their files, and what its tables say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeport_recipes.tosa.configs import Shape
from edgeport_recipes.tosa.cost import count_macs as counted

from benchmarks import vit_forms, vit_latency
from benchmarks.tables import DEFAULT, FULL, Results, Row
from benchmarks.vit_forms import ARMS, DIM, EXPLICIT, FUSED, HEADS, OUTPUTS, PATCH
from edgeport.compare import sqnr_db
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import load_samples, save_samples

GRID = 3
BY_NAME = {arm.name: arm for arm in ARMS}
TOPK, ONE_HOT = BY_NAME["ToSA, TopK, keep 0.5"], BY_NAME["ToSA, one-hot, keep 0.5"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answer(name: str) -> torch.Tensor:
    image = torch.from_numpy(vit_forms.image_of(GRID)["image"])
    with torch.no_grad():
        return vit_forms.network(BY_NAME[name], GRID)(image)


def test_forms_of_one_network_answer_the_same() -> None:
    torch.testing.assert_close(answer(FUSED), answer(EXPLICIT))
    assert torch.equal(answer(TOPK.name), answer(ONE_HOT.name))
    assert not torch.allclose(answer(FUSED), answer(TOPK.name), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "variant"), [(FUSED, "full"), (TOPK.name, "topk"), (ONE_HOT.name, "onehot")]
)
def test_a_file_for_onnxruntime_is_fused_right_and_its_macs_are_those_of_the_recipe(
    tmp_path: Path, name: str, variant: str
) -> None:
    arm = BY_NAME[name]
    vit_forms.write_reference(arm, GRID, tmp_path / "a")
    macs = vit_forms.write_graph(arm, GRID, "onnx", tmp_path / "a")
    shape = Shape(GRID, DIM, 2, HEADS, 4, PATCH, arm.keep, OUTPUTS)
    assert macs == counted(variant, shape)
    (reference,) = load_samples(tmp_path / "a" / vit_forms.REFERENCE)
    (given,) = Session(tmp_path / "a" / "model.onnx").run(vit_forms.image_of(GRID))
    assert sqnr_db(reference["output_0"], given) > 80


def test_torchs_arms_are_timed_and_a_wrong_answer_is_not(tmp_path: Path) -> None:
    folders = {}
    for name in (FUSED, TOPK.name):
        folders[name] = str(tmp_path / BY_NAME[name].kind)
        vit_forms.write_reference(BY_NAME[name], GRID, Path(folders[name]))
    wrong = np.ones((1, OUTPUTS), np.float32)
    save_samples(Path(folders[TOPK.name], vit_forms.REFERENCE), [{"output_0": wrong}])
    found = vit_forms.time_here("torch", GRID, folders, 1, 0.1)
    assert found[FUSED]["timing"]["median_ms"] > 0 and found[FUSED]["sqnr_db"] > 100
    assert "timing" not in found[TOPK.name]
    fields = [one for arm, one in vit_latency._measured({}, found) if arm == TOPK.name]
    refused = next(one for one in fields if one["metric"] == "latency_ms")
    assert refused["value"] is None and re.match(r"not timed: -?\d+ dB", refused["note"])


def test_a_runtime_is_measured_in_a_child_with_speedups_over_both_forms() -> None:
    rows = vit_latency.measure("latency torch 9", "torch", GRID, 0.2, DEFAULT)
    assert {row.arm for row in rows if row.metric == "latency_ms"} == set(BY_NAME)
    gains = [row for row in rows if row.metric == "speedup"]
    assert {row.parameters["against"] for row in gains} == {FUSED, EXPLICIT}
    assert all(row.interval and row.interval[0] <= (row.value or 0) for row in gains)
    assert {row.parameters["tokens"] for row in rows} == {9}


@pytest.mark.slow
def test_a_converter_that_refuses_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs litert_torch: pip install edgeport[tflite]")
    arm = BY_NAME[EXPLICIT]
    vit_forms.write_reference(arm, GRID, tmp_path / "good")
    vit_forms.write_graph(arm, GRID, "tflite", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.onnx").write_bytes(b"no model")
    folders = {"bad": str(tmp_path / "bad"), EXPLICIT: str(tmp_path / "good")}
    problems = vit_forms.compile_here("tflite", folders)
    assert set(problems) == {"bad"} and problems["bad"].startswith("does not convert: ")
    assert (tmp_path / "good" / "model.tflite").is_file()
    (timed,) = vit_forms.time_here("tflite", GRID, {EXPLICIT: folders[EXPLICIT]}, 1, 0.1).values()
    assert timed["sqnr_db"] > 80


def test_tables_say_what_was_not_run_and_what_is_slower(tmp_path: Path) -> None:
    results = Results(tmp_path / "rows.jsonl", DEFAULT)
    empty = vit_latency.tables(results)
    assert "not run" in empty and "no such form" in empty and "4,096" not in empty
    assert "4,096" in vit_latency.tables(Results(tmp_path / "full.jsonl", FULL))
    onnx = {"runtime": "onnx", "tokens": 64}
    common = Row("vit", "g", TOPK.name, "macs", 45e6, "1", parameters=onnx)
    gain = {"parameters": {**onnx, "against": FUSED}, "interval": (0.8, 0.95)}
    results.add(
        [
            common,
            replace(common, arm=EXPLICIT, value=60e6),
            replace(common, metric="latency_ms", value=1.5, unit="ms", interval=(1.4, 1.6)),
            replace(common, metric="speedup", value=0.9, **gain),
        ]
    )
    (line,) = [line for line in vit_latency.tables(results).splitlines() if "0.90x" in line]
    assert TOPK.name in line and "1.33x" in line and "0.90x (0.80 to 0.95)" in line


def test_every_runtime_has_a_group_and_executorch_fewer() -> None:
    names = [name for name, _ in vit_latency.groups(DEFAULT)]
    assert len(names) == len(set(names)) == 14
    assert len(list(vit_latency.groups(FULL))) == 20
