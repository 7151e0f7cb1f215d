"""The place adb: what it says without a phone, parsers, and a phone that is a shell of ours.

No phone is here. The real adb client talks to a server of ours, whose phone is a shell of this
machine: copying, the keeper and the runner are real. Tools that exist for phones only are scripts
there, which replay text in the tools' format, or compute with onnxruntime.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adb_server import AdbServer, running_adb_server
from phone_tools import LITE_NEW, PROFILE, tool, unpacked_sdk
from support import LIMITS, conv_net, save

import edgeport
from edgeport.devices import find_device
from edgeport.errors import InputError, RuntimeCrashed, StageFailed
from edgeport.places import Job, adb, benchmark_model, board, find_place, same_machine
from edgeport.places.keeper import run_held
from edgeport.running import read_manifest, run_at
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits

NEEDS_ADB = "needs adb: apt install adb"
needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason=NEEDS_ADB)

GETPROP = """#!/bin/sh
case "$1" in
    ro.product.model) echo "SM-S921B" ;;
    ro.soc.model) echo "SM8650" ;;
esac
"""
PHONE = "R5CT1234\tdevice\n"


# Which phone


@pytest.mark.parametrize(
    ("serial", "facts", "expected"),
    [
        ("emulator-5554", {}, "host"),
        ("127.0.0.1:5555", {}, "host"),
        ("localhost:5555", {}, "host"),
        ("[::1]:5555", {}, "host"),
        ("R5CT1234", {"ro.kernel.qemu": "1"}, "host"),
        ("R5CT1234", {"ro.boot.qemu": "1"}, "host"),
        ("R5CT1234", {"boot_id": same_machine.boot_id()}, "host"),
        ("R5CT1234", {"boot_id": "another"}, "device"),
        ("192.0.2.1:5555", {}, "device"),
    ],
)
def test_an_emulator_is_no_phone(serial: str, facts: dict[str, str], expected: str) -> None:
    phone = adb.Phone(serial, "/data/local/tmp/x", 1)
    assert adb._provenance(phone, facts) == expected


@needs_adb
def test_without_a_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks the real adb, with a server of its own, which ends with the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(probe.getsockname()[1]))
    try:
        with pytest.raises(InputError, match="adb lists no phone: connect it with USB debugging"):
            find_place("adb?python=/p").check(["onnx"])
        with pytest.raises(InputError, match="adb lists no phone XYZ: connect it"):
            find_place("adb:XYZ?python=/p").check(["onnx"])
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


def test_without_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="adb is not installed: apt install adb, or"):
        find_place("adb?python=/p").check(["onnx"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adb:-x", "write adb:SERIAL"),
        ("adb:a b", "write adb:SERIAL"),
        ("adb:$(id)", "write adb:SERIAL"),
        ("adbx", "a place is local"),
        ("adb?python=;id", "python is the path"),
        ("adb?qnn-net-run=/x", "Did you mean 'qnn_net_run'"),
    ],
)
def test_what_is_no_phone(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_place(text)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    """An adb server with one phone, to which the adb client is led."""
    if shutil.which("adb") is None:
        pytest.skip(NEEDS_ADB)
    (tmp_path / "programs").mkdir()
    tool(tmp_path / "programs" / "getprop", GETPROP)
    path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
    with running_adb_server(PHONE, path) as running:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(running.server_address[1]))
        yield running


@pytest.fixture
def phone(server: AdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The phone's folder for temporary files; what is timed there is not timed for long."""
    monkeypatch.setattr(board, "WARMUP_SECONDS", 0.2)
    monkeypatch.setattr(board, "TIMED_SECONDS", 0.1)
    (tmp_path / "tmp of the phone").mkdir()
    return tmp_path / "tmp of the phone"


@pytest.fixture
def another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the phone's kernel were not ours."""
    (tmp_path / "boot_id").write_text("5a3f6c1e-another")
    monkeypatch.setattr(same_machine, "_BOOT_ID", tmp_path / "boot_id")


def place(phone: Path, **settings: object) -> str:
    tmp = f"tmp={phone}"
    return "adb?" + "&".join([tmp, *(f"{name}={value}" for name, value in settings.items())])


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("", "adb lists no phone: "),
        ("R5CT1234\tunauthorized\n", "adb:R5CT1234 is unauthorized: accept"),
        ("R5CT1234\toffline\n", "adb:R5CT1234 is not ready, adb says 'offline'"),
        ("R5CT1234\tno permissions (user in plugdev?)\n", "adb says 'no permissions"),
        ("A1\tdevice\nB2\tdevice\n", "several phones: --on adb:A1 or adb:B2"),
    ],
)
def test_phones_that_are_not_one_ready_phone(server: AdbServer, listed: str, words: str) -> None:
    server.listed = listed
    with pytest.raises(InputError, match=words):
        find_place("adb?python=/p").check(["onnx"])


@pytest.mark.usefixtures("server")
def test_another_serial_than_those_there_are() -> None:
    with pytest.raises(InputError, match="no phone XYZ; there are R5CT1234: connect it"):
        find_place("adb:XYZ?python=/p").check(["onnx"])


def test_what_has_to_be_named(phone: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"name what runs tflite on the phone: \?benchmark_model=/path/to/benchmark_model or"
        r" \?python=/path/to/python",
    ):
        find_place("adb").check(["tflite"])
    with pytest.raises(InputError, match=r"qnn_dlc on the phone: \?qnn_net_run=/path/to/qnn-net-r"):
        find_place("adb?python=/p").check(["qnn_dlc"])
    with pytest.raises(InputError, match="nothing on a phone over adb runs webgpu"):
        find_place("adb?python=/p").check(["webgpu"])
    with pytest.raises(InputError, match=r"adb:R5CT1234: /no/tool is no program there, nor a file"):
        find_place("adb?benchmark_model=/no/tool").check(["tflite"])
    with pytest.raises(InputError, match="/no/python cannot be run there"):
        find_place(place(phone, python="/no/python")).check(["onnx"])
    assert os.listdir(phone) == []


# What runs there


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> edgeport.Export:
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeport.stages.passes_for", lambda target: ())  # they take long
        return edgeport.export(
            str(save(conv_net(), folder / "net.onnx")),
            device="s24",
            target_runtimes=("onnx",),
            parity_samples=2,
            output_dir=folder / "out",
        )


def test_a_python_on_the_phone(phone: Path, export: edgeport.Export) -> None:
    where = place(phone, python=sys.executable)
    (run,) = run_at(export.directory, find_place(where), limits=LIMITS)
    assert run.artifact.parity == export.artifact("run", "onnx").parity
    assert {one.provenance for one in run.measurements} == {"host"}
    assert os.listdir(phone) == []
    (run,) = run_at(export.directory, find_place(where), limits=LIMITS, keep=True)
    (name,) = os.listdir(phone)
    assert any(note.endswith(name) for note in run.notes)


def job_of(folder: Path, runtime: str, file: str, content: bytes = b"a model") -> Job:
    """Returns a job for a tool; its file is of no format, and its ONNX model is the small net."""
    folder.mkdir(exist_ok=True)
    feeds = [{"image": np.full((1, 3, 16, 16), value, "f4")} for value in (1, 2)]
    save_samples(folder / "feeds.npz", feeds)
    (folder / file).write_bytes(content)
    model = save(conv_net(), folder / "optimized.onnx")
    (folder / "work").mkdir()
    s24 = find_device("s24")
    files, work = (folder / file,), folder / "work"
    return Job(
        runtime, files, model, folder / "feeds.npz", s24, "float", LIMITS, folder / "j", work
    )


@pytest.mark.usefixtures("another_kernel")
def test_benchmark_model_gives_times_and_no_parity(phone: Path, tmp_path: Path) -> None:
    (tmp_path / "recorded").write_text(LITE_NEW)
    script = f'#!/bin/sh\necho "$PWD $*" > "{tmp_path}/called"\ncat "{tmp_path}/recorded" >&2\n'
    tool(tmp_path / "benchmark_model", script)
    job = job_of(tmp_path / "job", "tflite", "model.tflite")
    where = find_place(place(phone, benchmark_model=tmp_path / "benchmark_model", threads=2))
    where.check(["tflite"])
    ran = where.run(job)
    assert ran.outputs is None
    assert ran.provenance == "device"
    measured = {one.metric: one for one in ran.measurements}
    assert measured["latency_ms"].value == 2.981
    told = measured["latency_ms"].environment
    assert (told["ro.product.model"], told["ro.soc.model"]) == ("SM-S921B", "SM8650")
    assert (told["threads"], told["tool"]) == ("2", "benchmark_model")
    called = (tmp_path / "called").read_text()
    assert called.startswith(f"{phone}/edgeport-")
    assert "--graph=model.tflite --num_threads=2" in called
    assert os.listdir(phone) == []


def test_a_run_without_outputs_has_no_parity_in_the_manifest(
    phone: Path, export: edgeport.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a parity of zero, nor a tolerance that was held: a note."""

    class Timed:
        text = "a timer"

        def check(self, runtimes: object) -> None:
            pass

        def run(self, job: Job) -> object:
            report = benchmark_model.parse(LITE_NEW)
            return adb.Ran(None, "host", benchmark_model.measurements(report, "host", {}))

    (run,) = run_at(export.directory, Timed(), limits=LIMITS)
    assert run.artifact.parity == ()
    assert run.notes == ("a timer gives no outputs of optimized.onnx: its parity was not checked",)
    recorded = read_manifest(export.directory)["run"]["places"][-1]
    assert (recorded["artifact"]["parity"], len(recorded["measurements"])) == ([], 6)


NET_RUN = """#!{python}
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime

flags = dict(zip(sys.argv[1:], sys.argv[2:]))
out = Path(flags["--output_dir"])
session = onnxruntime.InferenceSession("{model}", providers=["CPUExecutionProvider"])
for index, line in enumerate(Path(flags["--input_list"]).read_text().splitlines()):
    name, _, file = line.partition(":=")
    (out / f"Result_{{index}}").mkdir(parents=True)
    image = np.fromfile(file, "float32").reshape(1, 3, 16, 16)
    (y,) = session.run(None, {{name: image * {scale}}})
    y.tofile(out / f"Result_{{index}}" / "y.raw")
if "--profiling_level" in sys.argv:
    assert flags["--num_inferences"] == "50"
    (out / "qnn-profiling-data_0.log").write_text("binary")
assert flags["--retrieve_context"] == "model.bin" and Path("model.bin").is_file()
assert Path("libQnnHtpV75Skel.so").is_file() and os.getcwd() in os.environ["ADSP_LIBRARY_PATH"]
"""


@pytest.mark.usefixtures("another_kernel")
def test_qnn_net_run_gives_outputs_and_the_viewers_times(phone: Path, tmp_path: Path) -> None:
    """The stand-in computes with onnxruntime, and checks what it is given and what lies there."""
    job = job_of(tmp_path / "job", "qnn_context_binary", "model.bin")
    text = NET_RUN.format(python=sys.executable, model=job.model, scale=1)
    program = unpacked_sdk(tmp_path / "qairt", text)
    where = find_place(place(phone, qnn_net_run=program))
    where.check(["qnn_context_binary"])
    ran = where.run(job)
    assert ran.outputs is not None
    for value, sample in zip((1, 2), ran.outputs, strict=True):
        feed = {"image": np.full((1, 3, 16, 16), value, "f4")}
        (expected,) = Session(conv_net().SerializeToString()).run(feed)
        assert np.array_equal(sample["output_0"], expected)
    assert (ran.provenance, ran.measurements) == ("device", ())
    assert "no times: qnn-profile-viewer of the QNN SDK is not on PATH" in ran.notes[0]

    (tmp_path / "profile").write_text(PROFILE)
    (tmp_path / "qairt" / "bin" / "x86_64-linux-clang").mkdir()
    viewer = tmp_path / "qairt" / "bin" / "x86_64-linux-clang" / "qnn-profile-viewer"
    tool(viewer, f'#!/bin/sh\n[ -s "$2" ] && cat "{tmp_path}/profile"\n')
    ran = where.run(job_of(tmp_path / "again", "qnn_context_binary", "model.bin"))
    assert {one.metric: one.value for one in ran.measurements}["latency_mean_ms"] == 1.25
    assert {one.provenance for one in ran.measurements} == {"device"}
    assert os.listdir(phone) == []


def test_a_tool_that_fails_or_hangs(phone: Path, tmp_path: Path) -> None:
    failing = tool(tmp_path / "benchmark_model", "#!/bin/sh\necho 'ERROR: no model' >&2\nexit 3\n")
    job = job_of(tmp_path / "job", "tflite", "model.tflite")
    where = find_place(place(phone, benchmark_model=failing))
    with pytest.raises(StageFailed, match="ended with exit status 3: ERROR: no model"):
        where.run(job)
    tool(failing, f'#!/bin/sh\necho $$ > "{tmp_path}/pid"\nexec sleep 600\n')
    with pytest.raises(RuntimeCrashed, match="did not answer in 2 s") as caught:
        where.run(replace(job, limits=Limits(2, 1 << 30)))
    assert caught.value.reason == "timeout"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert os.listdir(phone) == []


def test_files_that_cannot_be_copied(server: AdbServer, phone: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with adb.connect("R5CT1234", str(phone), 20) as connected:
        with pytest.raises(
            StageFailed, match=r"out did not come back from adb:R5CT1234: .*not exist"
        ):
            connected.get("out", tmp_path / "out")
        shutil.rmtree(connected.directory)
        Path(connected.directory).touch()
        with pytest.raises(StageFailed, match=r"file could not be copied to adb:R5CT1234: .*file'"):
            connected.put(tmp_path / "file", "file")
    assert os.listdir(phone) == []


def test_a_held_command_that_does_not_end_is_killed() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeCrashed, match="it did not answer in"):
        run_held(["sleep", "600"], 0.2, "it")
    assert time.monotonic() - started < 10
