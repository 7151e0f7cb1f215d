"""`--on hub` with Qualcomm's real client, against a server here that really runs what it gets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import LIMITS

import edgeport
from edgeport.devices import find_device
from edgeport.errors import InputError, StageFailed
from edgeport.fingerprint import file_sha256
from edgeport.parity import compared
from edgeport.places import Job, find_place
from edgeport.report import place_lines
from edgeport.running import read_manifest, run_at
from edgeport.runtimes import find_runtime
from edgeport.runtimes.samples import load_samples

pytest.importorskip("qai_hub", reason="needs hub: pip install qai-hub")
pytest.importorskip("onnxruntime_qnn", reason="needs qnn: pip install onnxruntime-qnn")

from hub_phone import Hub, samples_of
from hub_server import parity_here, run_on_hub

pytestmark = pytest.mark.xdist_group("hub")  # one export, one server


def test_the_whole_path(hub: Hub, export: Path) -> None:
    runs = run_on_hub(export)
    assert [one.artifact.runtime for one in runs] == ["onnx", "qnn_context_binary"]
    # What this machine's runtimes give for these files is what has to come back over the wire.
    for one in runs:
        assert list(one.artifact.parity[0].samples) == parity_here(export, one.artifact.runtime)
    assert (hub.submitted("compile"), hub.submitted("inference")) == (1, 2)
    uploaded = {hashlib.sha256(content).hexdigest() for content in hub.files.values()}
    assert {file_sha256(export / name) for name in ("quantized.onnx", "model.bin")} <= uploaded
    recorded = read_manifest(export)["run"]["places"]
    assert recorded == [json.loads(json.dumps(one.to_dict())) for one in runs]
    (dataset,) = {job.inference_job.dataset.dataset_id for job in hub.jobs.values()} - {""}
    sent, ours = samples_of(hub.datasets[dataset]), load_samples(export / "parity_inputs.npz")
    assert [one["image"].tolist() for one in sent] == [one["image"].tolist() for one in ours]


def test_loopback_is_never_a_device(hub: Hub, export: Path) -> None:
    for one in run_on_hub(export, "hub", "onnx"):
        numbers = [*one.measurements, *one.artifact.parity]
        assert {number.provenance for number in numbers} == {"host"}


def test_measurements_and_placement(hub: Hub, export: Path) -> None:
    (found,) = run_on_hub(export, "hub", "onnx")
    by_metric = {one.metric: one for one in found.measurements}
    assert set(by_metric) == {"latency_ms", "load_ms", "first_load_ms", "peak_bytes"}
    (result,) = (r.inference_job_result.detail for r in hub.results.values())
    latency = by_metric["latency_ms"]
    assert latency.samples == tuple(t / 1000 for t in result.all_execution_times)
    assert latency.value == float(np.median(latency.samples))
    loads = [time / 1000 for time in result.all_warm_load_times]
    assert by_metric["load_ms"].value == float(np.median(loads))
    assert by_metric["first_load_ms"].samples == (result.cold_load_time / 1000,)
    assert by_metric["peak_bytes"].value == result.execution_memory.peak.upper
    assert latency.artifact_sha256 == file_sha256(export / "quantized.onnx")
    environment = latency.environment
    assert environment["device"] == "Samsung Galaxy S24"
    assert environment["chipset"] == "qualcomm-snapdragon-8gen3"
    assert environment["job"] in hub.jobs and environment["url"].startswith(hub.url)
    assert len(found.artifact.nodes) == len(result.layer_details)
    assert any("npu 6, gpu 0, cpu 5 layers" in note for note in found.notes)
    shown = "\n".join(place_lines(found.to_dict()))
    assert "onnx on hub: latency_ms" in shown and "(host, 24 samples)" in shown
    assert f"note: onnx: what ran is AI Hub's own compilation: {hub.url}/models/m" in shown


def test_another_inputs_answer_fails(hub: Hub, export: Path) -> None:
    manifest = read_manifest(export)
    manifest["options"]["tolerance_db"] = 25.0
    (export / "manifest.json").write_text(json.dumps(manifest))
    assert run_on_hub(export, "hub", "onnx")[0].artifact.parity[0].value > 30
    hub.faults.wrong_input = True
    (export / "jobs.jsonl").write_text("")  # or the right answer would be taken up again
    with pytest.raises(
        StageFailed, match=r"quantized\.onnx on hub is .* dB from the reference; 25"
    ):
        run_on_hub(export, "hub", "onnx")


def test_outputs_are_taken_by_order_where_the_names_changed(hub: Hub, export: Path) -> None:
    hub.faults.renamed_outputs = True
    (found,) = run_on_hub(export, "hub", "onnx")
    assert list(found.artifact.parity[0].samples) == parity_here(export, "onnx")


def test_ai_hub_quantizes_on_the_exports_calibration_inputs(hub: Hub, export: Path) -> None:
    runs = run_on_hub(export, "hub:quantize")
    # Its quantizer is ours here: on the same inputs it makes the same model.
    for one in runs:
        assert list(one.artifact.parity[0].samples) == parity_here(export, one.artifact.runtime)
    kinds = [hub.submitted(kind) for kind in ("quantize", "compile", "inference")]
    assert kinds == [1, 2, 2]
    calibration = next(
        job.quantize_job for job in hub.jobs.values() if job.HasField("quantize_job")
    )
    assert calibration.calibration_dataset.dataset_id != next(
        job.inference_job.dataset.dataset_id
        for job in hub.jobs.values()
        if job.HasField("inference_job")
    )
    uploaded = {hashlib.sha256(content).hexdigest() for content in hub.files.values()}
    assert file_sha256(export / "optimized.onnx") in uploaded
    # The artifact is the file that ran there, and stands beside that of a plain `hub`.
    assert [one.artifact.path for one in runs] == ["hub_onnx.onnx", "hub_qnn_context_binary.bin"]
    assert all(one.artifact.sha256 in uploaded for one in runs)


def test_what_ai_hub_cannot_quantize(hub: Hub, export: Path) -> None:
    manifest = read_manifest(export)
    for option, value, words in (
        ("precision", "auto", "AI Hub quantizes to w8a8, w8a16, w4a16, and this export is auto"),
        ("quantize_io", True, "which only our own quantizer makes"),
        ("calib_data", "photos", "calibrated on photos: name it with --calib-data"),
    ):
        changed = {**manifest, "options": {**manifest["options"], option: value}}
        (export / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words):
            run_on_hub(export, "hub:quantize")
    assert not hub.jobs


def test_export_and_run_there_in_one_command(hub: Hub, made: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(3).standard_normal((6, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)

    def export_there() -> edgeport.Export:
        return edgeport.export(
            str(made.parent / "net.onnx"),
            device="s24",
            precision="w8a8",
            calib_data=tmp_path / "images.npy",
            target_runtimes=["onnx"],
            output_dir=tmp_path / "new",
            on="hub:quantize",
        )

    (place,) = export_there().manifest["run"]["places"]
    assert place["place"] == "hub:quantize"
    assert place["artifact"]["parity"][0]["samples"] == parity_here(tmp_path / "new", "onnx")
    (job,) = (one.quantize_job for one in hub.jobs.values() if one.HasField("quantize_job"))
    sent = samples_of(hub.datasets[job.calibration_dataset.dataset_id])
    # All but the first, which is compared on; in a seeded order.
    given = np.concatenate([one["image"] for one in sent])
    np.testing.assert_array_equal(np.sort(given, axis=0), np.sort(images[1:], axis=0))
    export_there()
    assert hub.submitted("inference") == 1  # the journal lived on through the second export


def test_weights_in_a_file_beside_the_model_go_along(hub: Hub, export: Path) -> None:
    model = onnx.load(export / "quantized.onnx")
    beside = {"save_as_external_data": True, "location": "quantized.onnx.data"}
    onnx.save(model, export / "quantized.onnx", size_threshold=0, **beside)
    manifest = read_manifest_again(export, "quantized.onnx", "quantized.onnx.data")
    (export / "manifest.json").write_text(json.dumps(manifest))
    (found,) = run_on_hub(export, "hub", "onnx")
    assert list(found.artifact.parity[0].samples) == parity_here(export, "onnx")
    assert [model.is_directory for model in hub.models.values()] == [True, False]


def read_manifest_again(export: Path, *names: str) -> dict:
    """Returns the manifest with the sizes and hashes that these files have now."""
    manifest = json.loads((export / "manifest.json").read_text())
    for name in names:
        sha = file_sha256(export / name)
        manifest["files"][name] = {"bytes": (export / name).stat().st_size, "sha256": sha}
    return manifest


def test_an_onnx_file_with_its_context_binary_goes_as_it_is(
    hub: Hub, export: Path, tmp_path: Path
) -> None:
    job = Job(
        runtime="precompiled_qnn_onnx",
        files=(export / "model_ctx.onnx", export / "model.bin"),
        model=export / "quantized.onnx",
        inputs=export / "parity_inputs.npz",
        device=find_device("s24"),
        precision="w8a8",
        limits=LIMITS,
        journal=tmp_path / "jobs.jsonl",
        workdir=tmp_path,
    )
    outputs = find_place("hub").run(job).outputs
    emulated = run_on_hub(export, "hub", "qnn_context_binary")[0].artifact.parity
    parity = compared(load_samples(export / "parity_outputs.npz"), outputs, "host", "")
    assert parity[0].samples == emulated[0].samples
    assert hub.submitted("compile") == 0


def test_progress_is_heard(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_at(export, find_place("hub"), ["onnx"], limits=LIMITS, progress=print)
    printed = capsys.readouterr().out
    assert "onnx on hub" in printed and "AI Hub: upload of the model" in printed
    assert "Scheduled" not in printed and "Uploading" not in printed  # the client's own


@pytest.mark.parametrize(
    "runtime",
    [
        "precompiled_qnn_onnx",
        pytest.param("qnn_dlc", marks=pytest.mark.slow),
        pytest.param("tflite", marks=pytest.mark.slow),
    ],
)
def test_what_was_compiled_here_runs_there_as_it_is(
    hub: Hub, made: Path, tmp_path: Path, runtime: str
) -> None:
    try:
        known = find_runtime(runtime)
    except InputError as missing:
        pytest.skip(f"needs {runtime}: {missing}")
    made = edgeport.export(
        str(made.parent / "net.onnx"),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        target_runtimes=[runtime],
        output_dir=tmp_path / "other",
    )
    (found,) = run_on_hub(made.directory)
    assert list(found.artifact.parity[0].samples) == parity_here(made.directory, runtime)
    uploaded = [hashlib.sha256(content).hexdigest() for content in hub.files.values()]
    assert uploaded == [file_sha256(made.directory / known.files[0])]
    assert hub.submitted("compile") == 0
