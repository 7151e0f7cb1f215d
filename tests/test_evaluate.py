"""Evaluate: the user's data and metric at every stage, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import (
    LIMITS,
    called,
    check_refusal,
    gaussian,
    model,
    needs_compiler,
    needs_pillow,
    node,
)

import edgeport
from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.evaluate import Evaluation, evaluate
from edgeport.metrics import find_metric
from edgeport.runtimes.onnx import Session

pytestmark = pytest.mark.xdist_group("evaluate")  # its exports are made once

COUNT, CLASSES = 24, 5
METRICS = """import numpy as np

calls = []


def mean_logit(outputs, targets):
    return float(outputs["logits"].mean())


def right(outputs, targets):
    return outputs["logits"].argmax(1) == targets["label"]


def both(outputs, targets):
    return {"mean": mean_logit(outputs, targets), "right": right(outputs, targets)}


def keep(outputs, targets):
    np.savez(targets["where"][0], **outputs)
    return np.float32(0)


def raises(outputs, targets):
    return outputs["no_such_output"]


def text(outputs, targets):
    return "good"


def too_few(outputs, targets):
    return np.zeros(3)


def undefined(outputs, targets):
    return float("nan")


def nothing(outputs, targets):
    return {}


def changes(outputs, targets):
    outputs.clear(), targets.clear()
    return 1
"""


def classifier(batch: int = 1, channels_first: bool = True) -> onnx.ModelProto:
    """Returns a net of two layers that gives `logits` [batch, 5] of an image of 16 x 16."""
    weights = {
        "w1": gaussian([8, 3, 3, 3], 1, 0.3),
        "w2": gaussian([8, CLASSES], 2),
        "axes": np.int64([2, 3]),
    }
    nodes = [
        node("Conv", "image w1", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("ReduceMean", "r axes", "m", keepdims=0),
        node("MatMul", "m w2", "logits"),
    ]
    return model(nodes, {"image": [batch, 3, 16, 16]}, {"logits": [batch, CLASSES]}, weights)


def made(folder: Path, net: onnx.ModelProto, name: str = "out", **options: object) -> Path:
    onnx.save(net, folder / "net.onnx")
    request = {"target_runtimes": ("onnx",), "precision": "w8a8", "calib_samples": 4, **options}
    return edgeport.export(
        str(folder / "net.onnx"), device="s24", output_dir=folder / name, **request
    ).directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the classifier in w8a8, and images that its float graph labels."""
    folder = tmp_path_factory.mktemp("evaluate")
    made(folder, classifier())
    images = gaussian([COUNT, 3, 16, 16], 5)
    session = Session(folder / "net.onnx")
    logits = np.concatenate([session.run({"image": one[None]})[0] for one in images])
    np.savez(folder / "data.npz", image=images, label=logits.argmax(1))
    (folder / "metrics.py").write_text(METRICS)
    return folder


def scored(
    folder: Path, metric: str = "top1", data: str = "data.npz", **more: object
) -> Evaluation:
    if ":" in metric:
        metric = f"{folder}/{metric}"
    return evaluate(folder / "out", data=folder / data, metric=metric, limits=LIMITS, **more)


def values(found: Evaluation) -> dict[str, float]:
    return {one.metric: one.value for one in found.measurements}


def test_every_stage_is_scored_on_all_samples(folder: Path) -> None:
    found = scored(folder)
    assert [row.stage for row in found.rows] == ["capture", "passes", "quantize"]
    assert (found.samples, found.batch, found.reference, found.complete) == (24, 1, "capture", True)
    assert values(found)["top1:capture"] == values(found)["top1:passes"] == 1
    with np.load(folder / "data.npz") as data:
        session = Session(folder / "out" / "quantized.onnx")
        answers = [session.run({"image": one[None]})[0].argmax() for one in data["image"]]
        expected = np.mean(answers == data["label"])
    row = found.rows[2]
    assert row.measurement is not None and row.drop == 1 - expected
    assert row.measurement.value == expected
    low, high = row.measurement.interval
    assert low <= expected <= high
    assert row.measurement.provenance == "host"
    assert row.measurement.environment["samples"] == "24"
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert row.measurement.artifact_sha256 == manifest["files"]["quantized.onnx"]["sha256"]


def test_the_users_function_gives_a_number_scores_or_several(folder: Path) -> None:
    found = scored(folder, "metrics.py:both", stages=["quantize", "capture", "onnx"])
    assert list(values(found)) == [
        "mean:capture", "right:capture", "mean:quantize", "right:quantize", "mean:onnx",
        "right:onnx",
    ]  # fmt: skip
    own = scored(folder)
    assert values(found)["right:quantize"] == values(own)["top1:quantize"]
    by_name = {one.metric: one for one in found.measurements}
    assert by_name["mean:capture"].interval is None
    assert by_name["right:quantize"].interval == own.measurements[2].interval
    assert values(found)["mean:onnx"] == values(found)["mean:quantize"]  # the same file
    assert values(scored(folder, "metrics.py:mean_logit"))["mean_logit:capture"] == pytest.approx(
        by_name["mean:capture"].value
    )
    assert list(values(scored(folder, "metrics.py:changes"))) == [
        "changes:capture", "changes:passes", "changes:quantize",
    ]  # fmt: skip


def test_a_limit_spreads_over_the_data(folder: Path) -> None:
    with np.load(folder / "data.npz") as data:
        chosen = [0, 4, 9, 14, 19]
        np.savez(folder / "few.npz", image=data["image"][chosen], label=data["label"][chosen])
    found = scored(folder, "metrics.py:mean_logit", limit=5)
    assert found.samples == 5
    assert values(found) == values(scored(folder, "metrics.py:mean_logit", "few.npz"))
    assert scored(folder, limit=1000, stages=["capture"]).samples == COUNT


@needs_pillow
def test_a_folder_of_images_is_the_same_pixels_in_an_npz(folder: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    names = ["b/x.png", "a/z.png", "c/0.png", "a/deeper/y.PNG", "b/y.png", "c/1.png"]
    for name, one in zip(names, pixels, strict=True):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / "images" / name)
    (folder / "images" / "read.me").write_text("no class")
    order = sorted(range(6), key=lambda at: names[at])
    scaled = (pixels[order].astype(np.float32) / 255).transpose(0, 3, 1, 2)
    np.savez(folder / "same.npz", image=scaled, label=[0, 0, 1, 1, 2, 2])
    found = scored(folder, "metrics.py:both", "images")
    assert values(found) == values(scored(folder, "metrics.py:both", "same.npz"))
    assert found.notes[0] == "labels are the sub-folders in sorted order: 0 = a, 1 = b, 2 = c"
    assert values(scored(folder, "top5", "images"))["top5:capture"] == 1  # of 5 classes
    (folder / "images" / "bb").mkdir()
    with pytest.raises(InputError, match=r"bb holds no images .* counted one too high"):
        scored(folder, data="images")


@pytest.mark.usefixtures("quick")
@needs_pillow
def test_the_app_gives_channels_last_and_nothing_normalised(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    edge = {"channel_last_input": ("image",), "normalize": "0.4,0.5,0.6,0.2,0.25,0.3"}
    out = made(tmp_path, classifier(), **edge)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for index, one in enumerate(pixels):
        (tmp_path / "images" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(tmp_path / "images" / str(index % 2) / f"{index}.png")
    given = pixels[[0, 2, 1, 3]].astype(np.float32) / 255
    np.savez(tmp_path / "data.npz", image=given, label=[0, 0, 1, 1])
    metric = f"{folder}/metrics.py:mean_logit"
    tried = [
        values(evaluate(out, data=tmp_path / data, metric=metric, limits=LIMITS))
        for data in ("data.npz", "images")
    ]
    assert tried[0] == tried[1]
    inner = (given - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.25, 0.3])
    session = Session(tmp_path / "net.onnx")
    logits = [session.run({"image": one.transpose(2, 0, 1)[None]})[0] for one in inner]
    assert tried[0]["mean_logit:capture"] == pytest.approx(np.mean(logits), rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_data_that_calibrated_the_model_is_told(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", image=gaussian([8, 3, 16, 16], 9))
    out = made(tmp_path, classifier(), calib_data=tmp_path / "images.npz")
    asked = {"metric": f"{folder}/metrics.py:mean_logit", "stages": ["quantize"]}
    told = evaluate(out, data=tmp_path / "images.npz", limits=LIMITS, **asked).notes
    assert told[0].startswith("1 of 1 files are of the data that the export was calibrated on")
    assert evaluate(out, data=folder / "data.npz", limits=LIMITS, **asked).notes == ()


@pytest.mark.usefixtures("quick")
@needs_compiler
def test_integers_at_the_edges_and_chunks_in_child_processes(folder: Path, tmp_path: Path) -> None:
    """Six samples are two chunks; each stage's outputs are real numbers in the samples' order."""
    out = made(
        tmp_path, classifier(), target_runtimes=("onnx", "qnn_context_binary"), quantize_io=True
    )
    with np.load(folder / "data.npz") as data:
        images = data["image"][:6]
    for stage in ("capture", "quantize", "qnn_context_binary"):
        where = np.array([str(tmp_path / f"{stage}.npz")] * 6)
        np.savez(tmp_path / "data.npz", image=images, where=where)
        found = evaluate(
            out,
            data=tmp_path / "data.npz",
            metric=f"{folder}/metrics.py:keep",
            stages=[stage],
            limits=LIMITS,
        )
    (row,) = found.rows
    assert row.measurement is not None and row.measurement.provenance == "emulated"
    outputs = {}
    for stage in ("capture", "quantize", "qnn_context_binary"):
        with np.load(tmp_path / f"{stage}.npz") as kept:
            outputs[stage] = kept["logits"]
    assert {one.shape for one in outputs.values()} == {(6, CLASSES)}
    for stage in ("quantize", "qnn_context_binary"):
        assert outputs[stage].dtype == np.float32
        assert 20 < sqnr_db(outputs["capture"], outputs[stage]) < 60


@pytest.mark.usefixtures("quick")
def test_batches_are_of_the_models_size(folder: Path, tmp_path: Path) -> None:
    out = made(tmp_path, classifier(batch=4), precision="float")
    found = evaluate(out, data=folder / "data.npz", metric="top1", limits=LIMITS)
    assert (found.samples, found.batch) == (COUNT, 4)
    assert set(values(found).values()) == {1.0}
    found = evaluate(out, data=folder / "data.npz", metric="top1", limit=6, limits=LIMITS)
    assert found.samples == 8  # two batches
    with np.load(folder / "data.npz") as data:
        np.savez(tmp_path / "odd.npz", image=data["image"][:7], label=data["label"][:7])
    with pytest.raises(InputError, match="holds 7 samples, and the model takes 4 at a time"):
        evaluate(out, data=tmp_path / "odd.npz", metric="top1", limits=LIMITS)


@pytest.mark.usefixtures("quick")
def test_a_stage_that_cannot_run_is_said_and_the_others_are_scored(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = made(tmp_path, classifier())
    (out / "optimized.onnx").write_text("no graph")
    arguments = (out, "--data", folder / "data.npz", "--metric", "top1")
    code, text, err = called(capfd, "evaluate", *arguments)
    assert code == 3, err
    assert "passes was not run: onnx: onnxruntime cannot load optimized.onnx" in text
    assert "note: optimized.onnx was changed since it was exported" in text
    code, text, err = called(capfd, "evaluate", *arguments, "--json")
    table = json.loads(text)
    assert (code, table["complete"], err) == (3, False, "")
    assert [row["measurement"] is not None for row in table["rows"]] == [True, False, True]


def test_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (folder / "out", "--data", folder / "data.npz", "--metric", "top1")
    code, out, err = called(capfd, "evaluate", *arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "top1 on 24 samples of data.npz"
    assert [line.split()[:5] for line in lines[2:4]] == [
        ["capture", "model.onnx", "host", "top1", "100.00"],
        ["passes", "optimized.onnx", "host", "top1", "100.00"],
    ]
    assert "drop is against capture" in out
    assert "note: top1:capture, top1:passes" in out and "few samples: 24" in out


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("raises", r"metrics\.py:raises raised KeyError: 'no_such_output' at .*metrics\.py:24$"),
        ("text", r"gave a str for text \(.*metrics\.py:27\); it gives a number"),
        ("too_few", r"gave an array of shape \[3\] for too_few, with 24 samples \(.*py:31\)"),
        ("undefined", r"gave NaN or infinity for undefined \(.*py:35\)"),
        ("nothing", r"gave an empty dict \(.*py:39\)"),
        ("calls", r"unknown metric in .*metrics\.py 'calls'\. "),
        ("", "name the function after the colon"),
    ],
)
def test_a_metric_that_fails_is_told_with_file_and_line(
    folder: Path, capfd: pytest.CaptureFixture[str], metric: str, words: str
) -> None:
    text = f"{folder}/metrics.py:{metric}"
    told = called(
        capfd, "evaluate", folder / "out", "--data", folder / "data.npz", "--metric", text
    )
    check_refusal(*told, words)


def test_metrics_that_are_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"unknown metric 'top2'\. Did you mean 'top"):
        find_metric("top2")
    with pytest.raises(InputError, match=r"gone\.py: no such file"):
        find_metric(f"{tmp_path}/gone.py:f")
    with pytest.raises(InputError, match="no_such_module:f raised ModuleNotFoundError"):
        find_metric("no_such_module:f")
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(InputError, match=r"raised SyntaxError: .*broken\.py, line 1"):
        find_metric(f"{tmp_path}/broken.py:f")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from near import score\n")
    (tmp_path / "near.py").write_text("def score(outputs, targets):\n    return 2\n")
    assert find_metric("mine:score").scores({"y": np.zeros(3)}, {})["score"].value == 2


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def test_data_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    images, labels = gaussian([4, 3, 16, 16]), np.arange(4)
    bad = {
        "has no array image, which the model takes; it has label, pixels": {
            "pixels": images, "label": labels,
        },
        "the arrays differ in their number of samples: image 4, label 3": {
            "image": images, "label": labels[:3],
        },
        r"image is \[4, 3, 8, 16\], the model takes image:float32": {"image": images[:, :, :8]},
        "top1 needs the target 'label', or one array of integers; the data has mask": {
            "image": images, "mask": images,
        },
        "top1 of output logits and target label: labels must be integers from 0 to 4": {
            "image": images, "label": labels + 4,
        },
        "holds NaN": {"image": images * np.nan, "label": labels},
        "holds 0 samples": {"image": images[:0], "label": labels[:0]},
    }  # fmt: skip
    for words, arrays in bad.items():
        path = save(tmp_path / "bad.npz", **arrays)
        with pytest.raises(InputError, match=words):
            evaluate(folder / "out", data=path, metric="top1", limits=LIMITS)
    (tmp_path / "empty").mkdir()
    for data, words in {
        "gone": "gone: no such file or folder; give an .npz or a folder",
        "empty": "has no sub-folders",
        "bad.txt": "bad.txt: neither; give an .npz",
    }.items():
        (tmp_path / "bad.txt").write_text("text")
        with pytest.raises(InputError, match=words):
            evaluate(folder / "out", data=tmp_path / data, metric="top1", limits=LIMITS)
    with pytest.raises(InputError, match="unknown stage 'quantise'"):
        scored(folder, stages=["quantise"])
    with pytest.raises(InputError, match="has no stage tflite"):
        scored(folder, stages=["tflite"])
    with pytest.raises(InputError, match="--limit 0"):
        scored(folder, limit=0)
    with pytest.raises(InputError, match="is no export"):
        evaluate(tmp_path, data=folder / "data.npz", metric="top1", limits=LIMITS)
