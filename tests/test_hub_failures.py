"""`--on hub` where something breaks: killed, slow, refused, dropped; jobs are taken up again."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support import Command, command, command_environment

from edgeport.errors import EdgeportError, InputError, StageFailed
from edgeport.places.hub_client import read_account
from edgeport.running import read_manifest

pytest.importorskip("qai_hub", reason="needs hub: pip install qai-hub")
pytest.importorskip("onnxruntime_qnn", reason="needs qnn: pip install onnxruntime-qnn")

from hub_phone import Hub
from hub_server import TOKEN, journal_of, parity_here, run_on_hub, write_ini

pytestmark = pytest.mark.xdist_group("hub")  # one export, one server


def forget(export: Path, kind: str) -> None:
    """Takes what is of this kind out of the journal."""
    lines = [line for line in journal_of(export) if line["key"]["kind"] != kind]
    (export / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_second_command_takes_everything_up_again(hub: Hub, export: Path) -> None:
    first = run_on_hub(export)
    seen = dict(hub.seen)
    second = run_on_hub(export)
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


def test_a_slow_job_is_waited_for_no_longer_than_asked(hub: Hub, export: Path) -> None:
    run_on_hub(export, "hub", "onnx")
    forget(export, "inference")
    hub.faults.hold["inference"] = threading.Event()
    with pytest.raises(StageFailed) as failed:
        run_on_hub(export, "hub", "onnx", seconds=1.5)
    identity = list(hub.jobs)[-1]
    assert f"inference job {identity} is not finished after 1.5 s (--timeout)" in str(failed.value)
    assert f"{hub.url}/jobs/{identity}/" in str(failed.value)
    hub.faults.hold["inference"].set()
    run_on_hub(export, "hub", "onnx")
    assert hub.submitted("inference") == 2


def test_a_job_that_failed_is_told_and_submitted_again(hub: Hub, export: Path) -> None:
    reason = "Failed to validate op Softmax_3 with error 0xc26; op_type : Softmax"
    hub.faults.fail["compile"] = (reason, 1)
    with pytest.raises(StageFailed) as failed:
        run_on_hub(export, "hub", "onnx")
    (identity,) = hub.jobs
    for words in (identity, reason, "`edgeport doctor` names", f"{hub.url}/jobs/{identity}/"):
        assert words in str(failed.value)
    run_on_hub(export, "hub", "onnx")
    assert hub.submitted("compile") == 2
    assert (
        hub.seen["POST models"] == 2
    )  # one of them is the test's own client's upload of the model


def test_ids_of_another_account_are_submitted_again(hub: Hub, export: Path) -> None:
    run_on_hub(export, "hub", "onnx")
    for kept in (hub.jobs, hub.models, hub.datasets):
        kept.clear()
    run_on_hub(export, "hub", "onnx")
    assert (hub.submitted("compile"), hub.submitted("inference")) == (1, 1)


def test_an_expired_dataset_is_uploaded_again(hub: Hub, export: Path) -> None:
    run_on_hub(export, "hub", "onnx")
    hub.faults.dataset_seconds = -60
    forget(export, "inference")
    uploads = hub.seen["POST datasets"]
    with pytest.raises(StageFailed, match="is expired"):  # they expire at once there
        run_on_hub(export, "hub", "onnx")
    assert hub.seen["POST datasets"] == uploads + 1


def test_a_connection_that_drops_in_an_upload_is_tried_again(
    hub: Hub, export: Path, impatient: None
) -> None:
    hub.faults.cut_uploads = 1
    (found,) = run_on_hub(export, "hub", "onnx")
    assert list(found.artifact.parity[0].samples) == parity_here(export, "onnx")
    assert hub.seen["PUT files/models"] == 2


def test_a_connection_that_keeps_dropping(
    hub: Hub,
    export: Path,
    tmp_path: Path,
    impatient: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    hub.faults.cut_uploads = 99
    with pytest.raises(StageFailed, match=r"the connection to http://127.* broke .*takes the jobs"):
        run_on_hub(export, "hub", "onnx")
    assert not hub.jobs
    assert capfd.readouterr() == ("", "")  # neither the client's empty lines nor urllib3's warnings
    hub.faults.cut_uploads = 0
    run_on_hub(export, "hub", "onnx")
    # Nor its copies of what it sent: an empty file is what it forgets where an upload fails.
    assert sum(file.stat().st_size for file in temporary.rglob("*")) == 0


@pytest.mark.parametrize(
    ("route", "status", "kind", "words"),
    [
        ("GET jobs", 500, StageFailed, r"AI Hub fails itself \(500 at http://127"),
        ("POST jobs", 500, StageFailed, r"AI Hub fails itself \(500 at http://127"),
        ("POST models", 503, StageFailed, r"AI Hub fails itself \(503 at http://127"),
        ("POST jobs", 403, InputError, r"does not allow this \(403: why not\).*quota"),
        ("POST jobs", 429, StageFailed, r"takes no more jobs at the moment \(why not\)"),
        ("POST models", 413, StageFailed, r"too large for AI Hub"),
        ("GET frameworks", 200, InputError, r"what answers at http://127\S+ is not AI Hub"),
        ("GET frameworks", 426, InputError, r"pip install --upgrade qai-hub"),
        ("POST jobs", 404, InputError, r"does not have what was asked for: why not"),
        ("POST jobs", 400, StageFailed, r"AI Hub refuses the request: why not"),
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
        run_on_hub(export, "hub", "onnx")
    assert "\n" not in str(failed.value)


def test_too_many_jobs_are_not_waited_for(hub: Hub, export: Path, impatient: None) -> None:
    """The client's own waiting, of ten minutes, prints and cannot be interrupted by --timeout."""
    run_on_hub(export, "hub", "onnx")
    forget(export, "inference")
    hub.faults.status["POST jobs"] = (429, "ten jobs at most")
    with pytest.raises(
        StageFailed, match=r"no more jobs at the moment \(ten jobs at most\): later"
    ):
        run_on_hub(export, "hub", "onnx")


def test_a_wrong_token(hub: Hub, export: Path, tmp_path: Path) -> None:
    write_ini(tmp_path / "hub.ini", hub.url, "another-token")
    with pytest.raises(InputError, match=r"does not take the token in .*hub\.ini.*configure"):
        run_on_hub(export)
    assert not hub.jobs


def test_a_device_that_ai_hub_does_not_know(hub: Hub, export: Path) -> None:
    manifest = read_manifest(export)
    manifest["device"]["name"] = "Samsung Galaxy S25"
    (export / "manifest.json").write_text(json.dumps(manifest))
    words = "unknown AI Hub device 'Samsung Galaxy S25'. Did you mean 'Samsung Galaxy S24'?"
    with pytest.raises(InputError) as failed:
        run_on_hub(export)
    assert words in str(failed.value)


def test_our_own_bug_is_not_told_as_the_clients(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("edgeport.places.hub.as_samples", broken)
    with pytest.raises(KeyError, match="ours"):
        run_on_hub(export, "hub", "onnx")


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
