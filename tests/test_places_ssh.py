"""The place ssh, against a real sshd on loopback: the runner, refusals, crashes, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from sshd import Server, address, needs_sshd, running_sshd
from support import (
    LIMITS,
    command,
    command_environment,
    conv_net,
    model,
    needs_compiler,
    node,
    save,
)

import edgeport
from edgeport.devices import find_device
from edgeport.errors import InputError, RuntimeCrashed, StageFailed
from edgeport.fingerprint import file_sha256
from edgeport.places import Job, board, find_place
from edgeport.places.ssh import CONFIG_VARIABLE
from edgeport.running import read_manifest, run_at
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_sshd(tmp_path_factory.mktemp("it's a board")) as running:
        yield running


@pytest.fixture(autouse=True)
def _known(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test logs in with the server's own key; what is timed is not timed for long."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(server.config))
    monkeypatch.setattr(board, "WARMUP_SECONDS", 0.2)
    monkeypatch.setattr(board, "TIMED_SECONDS", 0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> edgeport.Export:
    folder = tmp_path_factory.mktemp("made on a day")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeport.stages.passes_for", lambda target: ())  # they take long
        return exported(folder)


def exported(folder: Path) -> edgeport.Export:
    return edgeport.export(
        str(save(conv_net(), folder / "net.onnx")),
        device="s24",
        precision="w8a8",
        target_runtimes=("onnx",),
        calib_samples=4,
        parity_samples=2,
        output_dir=folder / "an export's folder",
    )


@pytest.fixture
def export(made: edgeport.Export, tmp_path: Path) -> Path:
    shutil.copytree(made.directory, tmp_path / "an export's folder")
    return tmp_path / "an export's folder"


def interpreter(folder: Path, onnxruntime: str) -> Path:
    """Returns a Python like this one, in which `import onnxruntime` does what the text says."""
    (folder / "stubs").mkdir()
    (folder / "stubs" / "onnxruntime.py").write_text(onnxruntime)
    script = folder / "python with stubs"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/stubs" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def processes_in(server: Server) -> list[str]:
    """Returns the command lines of running processes that name the board's temporary folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if os.fsencode(server.temporary) in words and b"sshd" not in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


def wait_until_clean(server: Server, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while (server.left() or processes_in(server)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (server.left(), processes_in(server)) == ([], [])


# What comes back


def test_onnx_on_a_board_that_is_this_machine(
    server: Server, export: Path, made: edgeport.Export
) -> None:
    place = find_place(address(server, threads="1"))
    (run,) = run_at(export, place, limits=LIMITS)
    assert run.artifact.parity == made.artifact("run", "onnx").parity  # the same numbers
    assert {one.provenance for one in (*run.artifact.parity, *run.measurements)} == {"host"}
    assert any("is this machine" in note for note in run.notes)

    measured = {one.metric: one for one in run.measurements}
    assert set(measured) == {"latency_ms", "first_latency_ms", "load_ms", "peak_bytes"}
    latency = measured["latency_ms"]
    assert len(latency.samples) >= 10
    assert latency.interval is not None
    assert min(latency.samples) <= latency.interval[0] <= latency.value <= latency.interval[1]
    assert measured["peak_bytes"].value > float(latency.environment["peak_bytes_before_load"]) > 1e6
    assert latency.environment["threads"] == "1"
    assert latency.environment["onnxruntime"][0].isdigit()
    assert latency.environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert latency.artifact_sha256 == run.artifact.sha256

    assert read_manifest(export)["run"]["places"] == [json.loads(json.dumps(run.to_dict()))]
    assert server.left() == []


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_an_npu_that_is_emulated_gives_numbers_and_no_times(server: Server, tmp_path: Path) -> None:
    made = edgeport.export(
        str(save(conv_net(), tmp_path / "net.onnx")),
        device="s24",
        target_runtimes=("qnn_context_binary",),
        output_dir=tmp_path / "out",
    )
    (run,) = run_at(made.directory, find_place(address(server)), limits=LIMITS)
    assert run.artifact.parity == made.artifact("run", "qnn_context_binary").parity
    assert run.artifact.parity[0].provenance == "emulated"
    assert run.measurements == ()
    assert "its times mean nothing" in run.notes[0]
    assert server.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["tflite", "executorch", "precompiled_qnn_onnx"])
def test_the_other_runtimes(server: Server, tmp_path: Path, runtime: str) -> None:
    if runtime not in RUNTIMES or RUNTIMES[runtime].missing():
        pytest.skip(f"needs {runtime}: edgeport list runtimes")
    made = edgeport.export(
        str(save(conv_net(), tmp_path / "net.onnx")),
        device="s24",
        precision="w8a8",
        target_runtimes=(runtime,),
        calib_samples=4,
        output_dir=tmp_path / "out",
    )
    (run,) = run_at(made.directory, find_place(address(server)), [runtime], limits=LIMITS)
    expected = made.artifact("run", runtime).parity[0]
    assert run.artifact.parity[0].provenance == expected.provenance
    assert abs(run.artifact.parity[0].value - expected.value) < 1  # another build's kernels
    assert len(run.measurements) == (0 if expected.provenance == "emulated" else 4)
    assert server.left() == []


def job_of(folder: Path, proto: onnx.ModelProto, feeds, runtime: str = "onnx") -> Job:
    folder.mkdir(exist_ok=True)
    save_samples(folder / "feeds.npz", feeds)
    file = save(proto, folder / "optimized.onnx")
    s24 = find_device("s24")
    return Job(
        runtime, (file,), file, folder / "feeds.npz", s24, "float", LIMITS, folder / "j", folder
    )


def test_integers_halves_and_several_outputs(server: Server, tmp_path: Path) -> None:
    """Inputs are fed by name, in whatever order the file has them."""
    nodes = [node("Gather", "table index", "row"), node("Cast", "row", "half", to=10)]
    proto = model(
        nodes,
        {"index": [3]},
        {"half": [3, 4], "row": [3, 4]},
        {"table": np.arange(20, dtype="f4").reshape(5, 4) / 3},
        dtype=onnx.TensorProto.INT64,
    )
    for value, kind in zip(proto.graph.output, (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)):
        value.type.tensor_type.elem_type = kind
    feeds = [{"index": np.array(rows)} for rows in ([0, 4, 2], [1, 1, 3])]
    ran = find_place(address(server)).run(job_of(tmp_path, proto, feeds))
    assert ran.outputs is not None
    for feed, outputs in zip(feeds, ran.outputs, strict=True):
        expected = Session(proto.SerializeToString()).run(feed)
        assert list(outputs) == ["output_0", "output_1"]
        for one, other in zip(expected, outputs.values(), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_weights_beside_the_model_go_along(server: Server, tmp_path: Path) -> None:
    feeds = [{"image": np.ones((1, 3, 16, 16), "f4")}]
    job = job_of(tmp_path, conv_net(), feeds)
    onnx.save(
        conv_net(),
        job.model,
        save_as_external_data=True,
        location="optimized.onnx.data",
        size_threshold=0,
    )
    ran = find_place(address(server)).run(job)
    assert ran.outputs is not None
    (expected,) = Session(conv_net().SerializeToString()).run(feeds[0])
    assert np.array_equal(ran.outputs[0]["output_0"], expected)


def test_parity_refuses_another_model(server: Server, export: Path) -> None:
    """The control: the board's answer is compared, and another model's fails."""
    other = conv_net()
    weights = onnx.numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights[::-1].copy(), "w1"))
    save(other, export / "quantized.onnx")
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["files"]["quantized.onnx"]["sha256"] = file_sha256(export / "quantized.onnx")
    manifest["options"]["tolerance_db"] = 20.0
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StageFailed, match=r"dB from the reference; 20 dB are needed"):
        run_at(export, find_place(address(server)), limits=LIMITS)
    assert server.left() == []


def test_what_a_login_prints_and_a_single_session_change_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: edgeport.Export
) -> None:
    chatter = 'echo "# welcome"; printf "half a line "; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    (tmp_path / "board").mkdir()
    with running_sshd(tmp_path / "board", f"ForceCommand {chatter}", "MaxSessions 1") as loud:
        monkeypatch.setenv(CONFIG_VARIABLE, str(loud.config))
        (run,) = run_at(export, find_place(address(loud)), limits=LIMITS)
        assert run.artifact.parity == made.artifact("run", "onnx").parity
        assert loud.left() == []


def test_keep_leaves_the_files_and_says_where(server: Server, export: Path) -> None:
    (run,) = run_at(export, find_place(address(server)), limits=LIMITS, keep=True)
    (name,) = server.left()
    kept = server.temporary / name
    assert any(note.endswith(str(kept)) for note in run.notes)
    assert {"quantized.onnx", "inputs.npz", "runner.py", "outputs.npz"} <= set(os.listdir(kept))
    assert kept.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(kept)


def test_another_directory_on_the_board(server: Server, export: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    place = find_place(address(server, tmp=str(tmp_path / "big disk")))
    run_at(export, place, limits=LIMITS, keep=True)
    assert len(os.listdir(tmp_path / "big disk")) == 1
    with pytest.raises(InputError, match=r"no directory could be made there.*\?tmp=/path"):
        find_place(address(server, tmp="/nowhere at all")).check(["onnx"])


def test_a_model_that_the_board_cannot_load(server: Server, tmp_path: Path) -> None:
    job = job_of(tmp_path, conv_net(), [{"image": np.ones((1, 3, 16, 16), "f4")}])
    job.model.write_bytes(b"garbage")
    with pytest.raises(StageFailed, match=r"run: .*127\.0\.0\.1.*optimized\.onnx") as caught:
        find_place(address(server)).run(job)
    assert "\n" not in str(caught.value)
    assert server.left() == []


# Crashes, time limits, and our own end


def test_a_runtime_that_crashes(server: Server, tmp_path: Path) -> None:
    job = job_of(tmp_path, conv_net(), [{"image": np.ones((1, 3, 16, 16), "f4")}])
    place = find_place(
        address(server, interpreter(tmp_path, "import os\nos.kill(os.getpid(), 11)"))
    )
    with pytest.raises(RuntimeCrashed, match="was killed by SIGSEGV") as caught:
        place.run(job)
    assert caught.value.reason == "signal"
    (tmp_path / "stubs" / "onnxruntime.py").write_text("import os\nos._exit(3)")
    with pytest.raises(RuntimeCrashed, match="ended before it gave a result") as caught:
        place.run(job)
    assert caught.value.reason == "exit"
    wait_until_clean(server)


HANG = (
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
)


def test_a_runtime_that_hangs(server: Server, tmp_path: Path) -> None:
    job = job_of(tmp_path, conv_net(), [{"image": np.ones((1, 3, 16, 16), "f4")}])
    place = find_place(address(server, interpreter(tmp_path, HANG)))
    with pytest.raises(RuntimeCrashed, match=r"did not end in 1 s \(--timeout\)") as caught:
        place.run(replace(job, limits=Limits(1, 1 << 30)))
    assert caught.value.reason == "timeout"
    wait_until_clean(server)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_we_are_ended(
    server: Server, export: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    """Even where we are killed: the board sees that nobody waits any more."""
    place = address(server, interpreter(tmp_path, HANG))
    process = subprocess.Popen(
        command("run", export, "--on", place),
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not running_workers(server, "quantized.onnx"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(ending)
    _, said = process.communicate(timeout=30)
    codes = {signal.SIGINT: 130, signal.SIGKILL: -9}
    assert process.returncode == codes[ending], said
    assert "Traceback" not in said
    wait_until_clean(server)


def running_workers(server: Server, model: str) -> list[str]:
    """Returns the runner's processes once it hangs: its check, before, leaves no model there.

    The copying of the request names it too, but not the runner.
    """
    hanging = any((path / model).exists() for path in server.temporary.iterdir())
    words = ("runner.py", "request.json")
    return [one for one in processes_in(server) if hanging and all(word in one for word in words)]


def test_a_connection_that_is_lost(server: Server, tmp_path: Path) -> None:
    job = job_of(tmp_path, conv_net(), [{"image": np.ones((1, 3, 16, 16), "f4")}])
    place = find_place(address(server, interpreter(tmp_path, HANG)))
    with ThreadPoolExecutor() as beside:
        running = beside.submit(place.run, job)
        while not running_workers(server, "optimized.onnx"):
            assert not running.done(), running.exception()
            time.sleep(0.05)
        for pid, words in ssh_children():
            if b"ControlMaster=yes" in words:
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(StageFailed, match=r"127\.0\.0\.1:\d+ gave no answer: ") as caught:
            running.result(timeout=60)
    assert "may be left on" in caught.value.__notes__[0]  # we cannot know; here it is not
    wait_until_clean(server)


def ssh_children() -> list[tuple[int, bytes]]:
    """Returns the ssh clients that this process started, with their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid() and words.startswith(b"ssh\0"):
            found.append((int(entry.name), words))
    return found


def test_a_copy_that_fails_says_what_to_do(server: Server, tmp_path: Path) -> None:
    job = job_of(tmp_path, conv_net(), [{"image": np.ones((1, 3, 16, 16), "f4")}])
    job = replace(job, limits=Limits(0.001, 1 << 30))
    with pytest.raises(StageFailed, match=r"took over 0\.001 s \(--timeout\)"):
        find_place(address(server)).run(job)
    wait_until_clean(server)
