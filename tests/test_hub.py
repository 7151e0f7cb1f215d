"""`--on hub` with Qualcomm's real client, against a server here that really runs what it gets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import LIMITS, Command, check_refusal, command, command_environment, conv_net

import edgeport
from edgeport.errors import EdgeportError, InputError, StageFailed
from edgeport.fingerprint import file_sha256
from edgeport.places import find_place
from edgeport.places.hub_client import read_account
from edgeport.places.hub_failures import job_failure
from edgeport.places.hub_jobs import Journal
from edgeport.places.hub_profile import measurements, placement, placement_note
from edgeport.places.hub_tensors import as_entries, as_samples
from edgeport.running import PlaceRun, read_manifest, run_at
from edgeport.runtimes.samples import load_samples
from edgeport.runtimes.worker import Limits

pytest.importorskip("qai_hub", reason="needs hub: pip install qai-hub")
qnn = pytest.importorskip("onnxruntime_qnn", reason="needs qnn: pip install onnxruntime-qnn")

from hub_server import TOKEN, Hub, journal_of, serving, write_ini  # noqa: E402

pytestmark = pytest.mark.xdist_group("hub")  # one export, one server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with an ONNX file and a context binary, in w8a8."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(conv_net(), folder / "net.onnx")
    return edgeport.export(
        str(folder / "net.onnx"),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        parity_samples=2,
        output_dir=folder / "out",
    ).directory


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def hub(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server; the account is in the ini file that the environment names."""
    with serving(tmp_path) as hub:
        binary = hashlib.sha256((export / "model.bin").read_bytes()).hexdigest()
        hub.wrappers[binary] = export / "model_ctx.onnx"
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_ini(tmp_path / "hub.ini", hub.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between its retries, 48 s in all, take no time."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


def run(export: Path, text: str = "hub", *names: str, seconds: float = 120) -> list[PlaceRun]:
    return run_at(export, find_place(text), names, limits=Limits(seconds, LIMITS.memory_bytes))


def parity_here(export: Path, runtime: str) -> list[float]:
    artifacts = read_manifest(export)["artifacts"]
    (run,) = (a for a in artifacts if a["stage"] == "run" and a["runtime"] == runtime)
    return run["parity"][0]["samples"]


def test_the_whole_path(hub: Hub, export: Path) -> None:
    runs = run(export)
    assert [one.artifact.runtime for one in runs] == ["onnx", "qnn_context_binary"]
    # What this machine's runtimes give for these files is what has to come back over the wire.
    for one in runs:
        assert list(one.artifact.parity[0].samples) == parity_here(export, one.artifact.runtime)
    assert (hub.submitted("compile"), hub.submitted("inference")) == (1, 2)
    uploaded = {hashlib.sha256(content).hexdigest() for content in hub.files.values()}
    assert {file_sha256(export / name) for name in ("quantized.onnx", "model.bin")} <= uploaded
    recorded = read_manifest(export)["places"]
    assert recorded == [json.loads(json.dumps(one.to_dict())) for one in runs]


def test_loopback_is_never_a_device(hub: Hub, export: Path) -> None:
    for one in run(export):
        numbers = [*one.measurements, *one.artifact.parity]
        assert {number.provenance for number in numbers} == {"host"}


def test_measurements_and_placement(hub: Hub, export: Path) -> None:
    (found,) = run(export, "hub", "onnx")
    by_metric = {one.metric: one for one in found.measurements}
    assert set(by_metric) == {"latency_ms", "load_ms", "first_load_ms", "peak_bytes"}
    (result,) = (r.inference_job_result.detail for r in hub.results.values())
    latency = by_metric["latency_ms"]
    assert latency.samples == tuple(t / 1000 for t in result.all_execution_times)
    assert latency.value == float(np.median(latency.samples))
    assert (by_metric["load_ms"].value, by_metric["first_load_ms"].value) == (4.0, 9.0)
    assert by_metric["peak_bytes"].value == 5 << 20
    assert latency.artifact_sha256 == file_sha256(export / "quantized.onnx")
    environment = latency.environment
    assert environment["device"] == "Samsung Galaxy S24"
    assert environment["chipset"] == "qualcomm-snapdragon-8gen3"
    assert environment["job"] in hub.jobs and environment["url"].startswith(hub.url)
    assert len(found.artifact.nodes) == len(result.layer_details)
    assert any("npu 6, gpu 0, cpu 5 layers" in note for note in found.notes)


def test_another_inputs_answer_fails(hub: Hub, export: Path) -> None:
    manifest = read_manifest(export)
    manifest["options"]["tolerance_db"] = 25.0
    (export / "manifest.json").write_text(json.dumps(manifest))
    assert run(export, "hub", "onnx")[0].artifact.parity[0].value > 30
    hub.faults.wrong_input = True
    (export / "jobs.jsonl").write_text("")  # or the right answer would be taken up again
    with pytest.raises(
        StageFailed, match=r"quantized\.onnx on hub is .* dB from the reference; 25"
    ):
        run(export, "hub", "onnx")


def test_outputs_are_taken_by_order_where_the_names_changed(hub: Hub, export: Path) -> None:
    hub.faults.renamed_outputs = True
    (found,) = run(export, "hub", "onnx")
    assert list(found.artifact.parity[0].samples) == parity_here(export, "onnx")


def test_ai_hub_quantizes_on_the_exports_calibration_inputs(hub: Hub, export: Path) -> None:
    runs = run(export, "hub:quantize")
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
            run(export, "hub:quantize")
    assert not hub.jobs


def test_a_second_command_takes_everything_up_again(hub: Hub, export: Path) -> None:
    first = run(export)
    seen = dict(hub.seen)
    second = run(export)
    assert [one.to_dict() for one in first] == [one.to_dict() for one in second]
    for kind in ("POST jobs", "POST models", "POST datasets", "PUT files/models"):
        assert hub.seen[kind] == seen[kind]


@pytest.mark.parametrize("end", ["", '{"key": {"place": "hub", "ki'])
def test_kill_9_in_a_slow_job_then_resume(hub: Hub, export: Path, end: str) -> None:
    hub.faults.hold["inference"] = threading.Event()
    words = ["run", str(export), "--on", "hub", "--target-runtime", "onnx", "--json"]
    process = subprocess.Popen(command(*words), env=command_environment(), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(entry["key"]["kind"] == "inference" for entry in journal_of(export)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with (export / "jobs.jsonl").open("a") as file:  # killed while it wrote a line
        file.write(end)
    hub.faults.hold["inference"].set()
    done = subprocess.run(
        command(*words), env=command_environment(), capture_output=True, text=True, check=True
    )
    (found,) = json.loads(done.stdout)
    assert found["artifact"]["parity"][0]["samples"] == parity_here(export, "onnx")
    assert hub.seen["POST jobs"] == 2  # one to compile, one to infer
    assert hub.seen["PUT files/models"] == 1 and hub.seen["POST files/datasets"] == 1


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"key": {"kind": "compile"}, "id"')
    journal = Journal(path, "https://hub")
    assert journal.find({"kind": "compile"}) is None
    journal.add({"kind": "compile"}, "j1")
    journal.add({"kind": "compile"}, "j2")
    assert journal.find({"kind": "compile"}) == "j2"
    assert Journal(path, "https://other").find({"kind": "compile"}) is None
    assert journal.find({"kind": "inference"}) is None


def test_a_slow_job_is_waited_for_no_longer_than_asked(hub: Hub, export: Path) -> None:
    hub.faults.hold["inference"] = threading.Event()
    with pytest.raises(StageFailed) as failed:
        run(export, "hub", "onnx", seconds=1.5)
    (identity,) = (name for name, job in hub.jobs.items() if job.HasField("inference_job"))
    assert f"inference job {identity} is not finished after 1.5 s (--timeout)" in str(failed.value)
    assert f"{hub.url}/jobs/{identity}/" in str(failed.value)
    hub.faults.hold["inference"].set()
    run(export, "hub", "onnx")
    assert hub.submitted("inference") == 1


def test_a_job_that_failed_is_told_and_submitted_again(hub: Hub, export: Path) -> None:
    reason = "Failed to validate op Softmax_3 with error 0xc26; op_type : Softmax"
    hub.faults.fail["compile"] = (reason, 1)
    with pytest.raises(StageFailed) as failed:
        run(export, "hub", "onnx")
    (identity,) = hub.jobs
    for words in (identity, reason, "`edgeport doctor` names", f"{hub.url}/jobs/{identity}/"):
        assert words in str(failed.value)
    run(export, "hub", "onnx")
    assert hub.submitted("compile") == 2
    assert (
        hub.seen["POST models"] == 2
    )  # one of them is the test's own client's upload of the model


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("Could not create context from binary for context index = 0 : err 5000", "QAIRT is older"),
        ("Unsupported context binary version", "QAIRT is older"),
        ("Float32 is not supported on this device", "w8a8 or w8a16"),
        ("Error occurred due to op : Conv_1; op_type : Conv2d", "edgeport doctor"),
        ("Process ran out of memory", "too large for this phone"),
        ("Input tensor image has shape [1, 3]", "inputs do not fit"),
        ("", "no reason was given"),
        ("it rained", "it rained; its log: https"),
    ],
)
def test_known_reasons_have_a_fix(reason: str, fix: str) -> None:
    told = str(job_failure("compile", "j1", "https://hub/jobs/j1/", reason))
    assert fix in told and "https://hub/jobs/j1/" in told


def test_ids_of_another_account_are_submitted_again(hub: Hub, export: Path) -> None:
    run(export, "hub", "onnx")
    for kept in (hub.jobs, hub.models, hub.datasets):
        kept.clear()
    run(export, "hub", "onnx")
    assert (hub.submitted("compile"), hub.submitted("inference")) == (1, 1)


def test_an_expired_dataset_is_uploaded_again(hub: Hub, export: Path) -> None:
    run(export, "hub", "onnx")
    hub.faults.dataset_seconds = -60
    lines = [line for line in journal_of(export) if line["key"]["kind"] != "inference"]
    (export / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    uploads = hub.seen["POST datasets"]
    with pytest.raises(StageFailed, match="is expired"):  # they expire at once there
        run(export, "hub", "onnx")
    assert hub.seen["POST datasets"] == uploads + 1


def test_a_connection_that_drops_in_an_upload_is_tried_again(
    hub: Hub, export: Path, impatient: None
) -> None:
    hub.faults.cut_uploads = 1
    (found,) = run(export, "hub", "onnx")
    assert list(found.artifact.parity[0].samples) == parity_here(export, "onnx")
    assert hub.seen["PUT files/models"] == 2


def test_a_connection_that_keeps_dropping(hub: Hub, export: Path, impatient: None) -> None:
    hub.faults.cut_uploads = 99
    with pytest.raises(StageFailed, match=r"the connection to http://127.* broke .*takes the jobs"):
        run(export, "hub", "onnx")
    assert not hub.jobs
    hub.faults.cut_uploads = 0
    run(export, "hub", "onnx")


@pytest.mark.parametrize(
    ("route", "status", "kind", "words"),
    [
        ("GET jobs", 500, StageFailed, r"AI Hub fails itself \(500 at http://127"),
        ("POST jobs", 500, StageFailed, r"AI Hub fails itself \(500 at http://127"),
        ("POST models", 503, StageFailed, r"AI Hub fails itself \(503 at http://127"),
        ("POST jobs", 403, InputError, r"does not allow this \(403: why not\).*quota"),
        ("POST jobs", 429, StageFailed, r"takes no more jobs at the moment \(why not\)"),
        ("POST models", 413, StageFailed, r"too large for AI Hub"),
        ("GET frameworks", 426, InputError, r"pip install --upgrade qai-hub"),
        ("POST jobs", 404, InputError, r"does not have what was asked for: why not"),
        ("POST jobs", 400, StageFailed, r"qai-hub: UserError: why not"),
    ],
)
def test_statuses_in_words(
    hub: Hub,
    export: Path,
    impatient: None,
    route: str,
    status: int,
    kind: type[EdgeportError],
    words: str,
) -> None:
    hub.faults.status[route] = (status, "why not")
    with pytest.raises(kind, match=words) as failed:
        run(export, "hub", "onnx")
    assert "\n" not in str(failed.value)


def test_a_wrong_token(hub: Hub, export: Path, tmp_path: Path) -> None:
    write_ini(tmp_path / "hub.ini", hub.url, "another-token")
    with pytest.raises(InputError, match=r"does not take the token in .*hub\.ini.*configure"):
        run(export)
    assert not hub.jobs


def test_a_device_that_ai_hub_does_not_know(hub: Hub, export: Path) -> None:
    manifest = read_manifest(export)
    manifest["device"]["name"] = "Samsung Galaxy S25"
    (export / "manifest.json").write_text(json.dumps(manifest))
    words = "unknown AI Hub device 'Samsung Galaxy S25'. Did you mean 'Samsung Galaxy S24'?"
    with pytest.raises(InputError) as failed:
        run(export)
    assert words in str(failed.value)


def test_export_and_run_there_in_one_command(
    hub: Hub, made: Path, tmp_path: Path, run_cli: Command
) -> None:
    flags = ("--device", "s24", "--precision", "w8a8", "--calib-samples", 4, "--json")
    net, there = made.parent / "net.onnx", ("--on", "hub:quantize", "-o", "new")
    done = run_cli("export", net, *flags, *there, "--target-runtime", "onnx")
    assert done.returncode == 0, done.stderr
    (place,) = json.loads(done.stdout)["places"]
    assert place["place"] == "hub:quantize"
    assert place["artifact"]["parity"][0]["value"] > 30
    run_cli("export", net, *flags, *there, "--target-runtime", "onnx")
    assert hub.submitted("inference") == 1  # the journal lived on through the second export


def test_the_token_is_nowhere(hub: Hub, export: Path, run_cli: Command) -> None:
    """Not even where the server quotes it, or the traceback shows the client's own errors."""
    assert run_cli("run", export, "--on", "hub", "-v").returncode == 0
    hub.faults.status["POST jobs"] = (403, f"no quota for token {TOKEN}")
    hub.faults.fail["inference"] = (f"bad token {TOKEN}", 9)
    (export / "jobs.jsonl").write_text("")
    refused = run_cli("run", export, "--on", "hub", "-v")
    assert refused.returncode == 2 and "no quota for token ***" in refused.stderr
    assert "Traceback" in refused.stderr
    del hub.faults.status["POST jobs"]
    failed = run_cli("run", export, "--on", "hub", "-v")
    assert failed.returncode == 3 and "bad token ***" in failed.stderr
    for done in (refused, failed):
        assert TOKEN not in done.stderr + done.stdout
    for file in export.rglob("*"):
        assert TOKEN.encode() not in file.read_bytes()
    account = read_account()
    assert account.token == TOKEN and TOKEN not in repr(account)


# Before any work


def refused(run_cli: Command, export: Path, words: str, **environment: str) -> None:
    done = run_cli("run", export, "--on", "hub", **environment)
    check_refusal(done.returncode, done.stdout, done.stderr, words)


def test_no_account(export: Path, tmp_path: Path, run_cli: Command) -> None:
    ini = tmp_path / "none.ini"
    words = (
        r"needs an AI Hub token and .*none\.ini is not there.*`qai-hub configure --api_token TOKEN`"
        r".*`edgeport run DIR --on local`.*emulator.*`edgeport doctor`"
    )
    refused(run_cli, export, words, QAIHUB_CLIENT_INI=str(ini))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api_token = secret-4711\n", "is no readable ini file"),
        ("[api]\napi_url = http://x\nweb_url = http://x\n", r"has no api_token under \[api\]"),
        ("[api]\napi_url = http://x\nweb_url = http://x\napi_token =\n", "has no api_token"),
        ("[other]\n", "has no api_url"),
        ("[api]\napi_url = nowhere\nweb_url = x\napi_token = secret-4711\n", "no http"),
        ("[api]\napi_url = http://x:y\nweb_url = x\napi_token = secret-4711\n", "no http"),
        ("[api]\napi_token = %secret-4711\n", "is no readable ini file"),
    ],
)
def test_a_bad_ini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    (tmp_path / "bad.ini").write_text(text)
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "bad.ini"))
    with pytest.raises(InputError, match=words) as failed:
        read_account()
    assert "secret-4711" not in str(failed.value)
    assert failed.value.__suppress_context__ or failed.value.__context__ is None


def test_a_dead_server_is_told_at_once(export: Path, tmp_path: Path, run_cli: Command) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ini = write_ini(tmp_path / "dead.ini", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    words = rf"AI Hub does not answer at 127\.0\.0\.1:{port} \(connection refused\)"
    refused(run_cli, export, words, QAIHUB_CLIENT_INI=str(ini))
    assert time.monotonic() - started < 20  # the client's own retries take 48 s


def test_what_ai_hub_does_not_run() -> None:
    with pytest.raises(InputError, match=r"AI Hub runs no executorch; it runs onnx, tflite"):
        find_place("hub").check(["onnx", "executorch"])
    with pytest.raises(InputError, match="--on hub:fast: it is hub, or hub:quantize"):
        find_place("hub:fast")


def test_the_client_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "edgeport\[hub\]"'):
        find_place("hub").check(["onnx"])


def test_the_client_is_imported_by_no_other_command() -> None:
    code = "import sys, edgeport.places.hub, edgeport.cli; print('qai_hub' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == "False\n"


# What AI Hub's names and numbers mean


class Spec:
    def __init__(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


def test_inputs_are_named_and_typed_as_the_file_there_takes_them() -> None:
    ids, mask = np.array([[1, 2]], np.int64), np.ones((1, 2), np.float32)
    samples = [{"mask": mask, "ids": ids}]
    assert list(as_entries(samples, ["ids", "mask"], ())) == ["ids", "mask"]
    renamed = [Spec("args_0", "int32", (1, 2)), Spec("args_1", "float32", (1, 2))]
    entries = as_entries(samples, ["ids", "mask"], renamed)
    assert list(entries) == ["args_0", "args_1"]
    assert entries["args_0"][0].dtype == np.int32
    np.testing.assert_array_equal(entries["args_0"][0], ids)
    turned = [Spec("mask", "float32", (1, 2)), Spec("ids", "int64", (1, 2))]
    assert list(as_entries(samples, ["ids", "mask"], turned)) == ["mask", "ids"]
    with pytest.raises(StageFailed, match=r"args_0 takes \[2, 1\] there; ours is \[1, 2\]"):
        as_entries(samples, ["ids", "mask"], [Spec("args_0", "int32", (2, 1)), renamed[1]])
    big = [{"ids": np.array([[1 << 40, 2]]), "mask": mask}]
    with pytest.raises(StageFailed, match="args_0 takes int32 there; ours is int64"):
        as_entries(big, ["ids", "mask"], renamed)
    with pytest.raises(StageFailed, match="the file takes args_0; the graph has ids, mask"):
        as_entries(samples, ["ids", "mask"], renamed[:1])


def test_outputs_by_name_or_order() -> None:
    a, b = np.zeros((1, 2)), np.ones((1, 3))
    shapes = {"a": (1, 2), "b": (1, 3)}
    for entries in ({"b": [b], "a": [a]}, {"x": [a], "y": [b]}):
        (sample,) = as_samples(entries, shapes)
        assert [array.shape for array in sample.values()] == [(1, 2), (1, 3)]
    with pytest.raises(StageFailed, match=r"output a came back as \[1, 3\], not \[1, 2\]"):
        as_samples({"x": [b], "y": [a]}, shapes)
    with pytest.raises(StageFailed, match="the outputs x came back; a, b were expected"):
        as_samples({"x": [a]}, shapes)


def test_a_profile_without_samples_is_ai_hubs_estimate() -> None:
    summary = {"estimated_inference_time": 1234, "estimated_inference_peak_memory": 99}
    latency, peak = measurements({"execution_summary": summary}, "device", {"os": "14"})
    assert (latency.value, latency.samples, latency.provenance) == (1.234, (), "device")
    assert latency.warnings == ("AI Hub's own estimate: it gave no samples",)
    assert (peak.metric, peak.value) == ("peak_bytes", 99.0)
    assert measurements({}, "device", {}) == ()


def test_layers_by_unit() -> None:
    units = ["NPU", "NPU", "CPU", "GPU", "UNSPECIFIED", "CPU"]
    detail = [{"name": f"l{i}", "type": "Add", "compute_unit": u} for i, u in enumerate(units)]
    nodes = placement({"execution_detail": detail})
    assert [node.unit for node in nodes] == ["npu", "npu", "cpu", "gpu", "cpu"]
    assert placement_note(nodes) == "npu 2, gpu 1, cpu 2 layers; on the cpu: Add x2"


def test_parity_inputs_went_over_whole(hub: Hub, export: Path) -> None:
    from hub_server import _samples

    run(export, "hub", "onnx")
    (job,) = (one.inference_job for one in hub.jobs.values() if one.HasField("inference_job"))
    sent = _samples(hub.datasets[job.dataset.dataset_id])
    ours = load_samples(export / "parity_inputs.npz")
    assert len(sent) == len(ours) == 2
    for one, other in zip(sent, ours, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
