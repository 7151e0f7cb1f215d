"""What `--on hub` knows before and after AI Hub: the account, the journal, names, times, fixes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support import LIMITS, Command, check_refusal

from edgeport.errors import InputError, StageFailed
from edgeport.places import find_place
from edgeport.places.hub_client import check_reachable, read_account
from edgeport.places.hub_failures import job_failure
from edgeport.places.hub_jobs import Journal
from edgeport.places.hub_profile import measurements, placement, placement_note
from edgeport.places.hub_tensors import as_entries, as_samples
from edgeport.running import run_at

pytest.importorskip("qai_hub", reason="needs hub: pip install qai-hub")

pytest.importorskip("onnxruntime_qnn", reason="needs qnn: pip install onnxruntime-qnn")

from hub_server import write_ini


def refused(run_cli: Command, export: Path, words: str, **environment: str) -> None:
    done = run_cli("run", export, "--on", "hub", **environment)
    check_refusal(done.returncode, done.stdout, done.stderr, words)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Spec:
    """What AI Hub says that a file takes: the fields of its client's TensorSpec that we read."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"key": {"kind": "compile"}, "id"')
    journal = Journal(path, "https://hub")
    assert journal.find({"kind": "compile"}) is None
    journal.add({"kind": "compile"}, "j1")
    assert journal.find({"kind": "compile"}) == "j1"
    journal.add({"kind": "compile"}, "j2")
    assert journal.find({"kind": "compile"}) == "j2"
    assert Journal(path, "https://other").find({"kind": "compile"}) is None
    assert journal.find({"kind": "inference"}) is None


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
        ("[api]\napi_url = http://a:secret-4711@x\nweb_url = x\napi_token = a\n", "no http"),
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
    port = closed_port()
    ini = write_ini(tmp_path / "dead.ini", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    words = rf"AI Hub does not answer at 127\.0\.0\.1:{port} \(connection refused\)"
    refused(run_cli, export, words, QAIHUB_CLIENT_INI=str(ini))
    assert time.monotonic() - started < 20  # the client's own retries take 48 s


def test_a_server_that_dies_under_way(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    ini = write_ini(tmp_path / "dead.ini", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(ini))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    place = find_place("hub")
    monkeypatch.setattr(type(place), "check", lambda self, runtimes: None)  # it was alive then
    words = r"the connection to http://127\.\S+ broke \(connection refused\): the same command"
    with pytest.raises(StageFailed, match=words):
        run_at(export, place, ["onnx"], limits=LIMITS)


def test_a_proxy_is_what_has_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy AI Hub's own address does not answer, and that is no error."""
    ini = write_ini(tmp_path / "far.ini", "http://192.0.2.1")  # TEST-NET-1: nobody's address
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(ini))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        check_reachable(read_account())
    with pytest.raises(InputError, match=r"does not answer at 127\.0\.0\.1:\d+ "):
        check_reachable(read_account())


def test_what_ai_hub_does_not_run() -> None:
    with pytest.raises(
        InputError, match=r"AI Hub runs no executorch: name others, --target-runtime onnx$"
    ):
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
