"""The place adb: what it says without a phone, parsers, and a phone that is a shell of ours.

No phone is here. `adb` itself is asked for real where there is none to find. Elsewhere a program
of that name stands in at the process boundary: it lists what a file says, copies files for push
and pull, and runs what `shell` is given in a shell of this machine. So the keeper and the runner
run for real; the tools on that "phone" replay text in the tools' format, or compute with
onnxruntime.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import LIMITS, conv_net, save

import edgeport
from edgeport.devices import find_device
from edgeport.errors import InputError, RuntimeCrashed, StageFailed
from edgeport.places import Job, adb, benchmark_model, board, find_place, qnn_net_run, same_machine
from edgeport.places.keeper import run_held
from edgeport.running import read_manifest, run_at
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits
from edgeport.types import TensorSpec

needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb: apt install adb")

ADB = """#!/bin/sh
here="$(dirname "$0")"
if [ "$1" = devices ]; then cat "$here/devices"; exit 0; fi
[ "$1" = -s ] || exit 64
shift 2
case "$1" in
    shell) PATH="$here/phone:$PATH" exec sh -c "$2" ;;
    push | pull) exec cp -r "$2" "$3" ;;
esac
exit 64
"""
GETPROP = """#!/bin/sh
case "$1" in
    ro.product.model) echo "SM-S921B" ;;
    ro.soc.model) echo "SM8650" ;;
esac
"""
PHONE = "List of devices attached\nR5CT1234\tdevice\n\n"

# What benchmark_model prints since 2.16: percentiles, and a prefix on each line.
LITE_NEW = """INFO: STARTING!
INFO: Num threads: [4]
INFO: Graph: [model.tflite]
INFO: Initialized session in 4.125ms.
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=163 first=9125 curr=3010 min=2950 max=9125 avg=3068.5 std=480 p5=2960 median=3010 \
p95=3400

INFO: Running benchmark for at least 50 iterations and at least 3 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1003 first=3001 curr=2999 min=2940 max=4200 avg=2990.25 std=75 p5=2950 median=2981 \
p95=3100

INFO: Inference timings in us: Init: 4125, First inference: 9125, Warmup (avg): 3068.5, \
Inference (avg): 2990.25
INFO: Memory footprint delta from the start of the tool (MB): init=3.25 overall=8.5
INFO: Overall peak memory footprint (MB) via periodic monitoring: 21.75
"""
# And in 2.4: no percentiles, an exponent in large means, one run of warm-up without a spread.
LITE_OLD = """STARTING!
count=1 curr=3512391

count=12 first=2990275 curr=2913402 min=2000000 max=4189954 avg=2.95034e+06 std=1109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, \
Inference (avg): 2.95034e+06
Peak memory footprint (MB): init=4.5 overall=46
"""
PROFILE = """Input Log File Location: out/qnn-profiling-data_0.log
Log File Created: Mon Jan  5 10:00:00 2026
Time Scale: 1e-06

Qnn Init/Prepare/Finalize/De-Init/Execute/Lib-Load Statistics:
------------------------------------------------------------
Init Stats:
-----------
    NetRun:  31250 us
    Backend (RPC (load binary) time): 4100 us

De-Init Stats:
--------------
    NetRun:  1500 us

Execute Stats (Average):
------------------------
Total Inference Time:
---------------------
Graph 0 (model):
    NetRun:  1250 us
    Backend (Number of HVX threads used): 4 count
    Backend (RPC (execute) time): 1200 us
    Backend (Accelerator (execute) time (cycles)): 900000 cycles
    Backend (Accelerator (execute) time): 875 us
    Backend (QNN (execute) time): 1240 us

Execute Stats (Overall):
------------------------
    NetRun IPS:  700.5 inf/sec
"""


# Parsers


def test_benchmark_model_of_today() -> None:
    report = benchmark_model.parse(LITE_NEW)
    assert report == benchmark_model.Report(
        4125, 9125, 2990.25, 1003, 2940, 4200, 75, 2981, 21.75 * 2**20, 8.5 * 2**20
    )
    found = {m.metric: m for m in benchmark_model.measurements(report, "device", {"a": "b"})}
    assert {name: one.value for name, one in found.items()} == {
        "latency_ms": 2.981,
        "latency_mean_ms": 2.99025,
        "first_latency_ms": 9.125,
        "load_ms": 4.125,
        "peak_bytes": 21.75 * 2**20,
        "memory_growth_bytes": 8.5 * 2**20,
    }
    assert {one.provenance for one in found.values()} == {"device"}
    assert found["latency_mean_ms"].environment["min_ms"] == "2.94"
    assert found["latency_mean_ms"].warnings == ("a mean: benchmark_model gives no samples",)


def test_benchmark_model_of_2020_warns_of_few_and_wide_runs() -> None:
    report = benchmark_model.parse(LITE_OLD)
    assert (report.mean_us, report.count, report.median_us) == (2.95034e6, 12, None)
    assert (report.peak_bytes, report.growth_bytes) == (None, 46 * 2**20)
    found = {m.metric: m for m in benchmark_model.measurements(report, "host", {})}
    assert "latency_ms" not in found  # a mean is no median
    assert [w.split(":")[0] for w in found["latency_mean_ms"].warnings] == [
        "a mean",
        "few runs",
        "wide spread",
    ]


@pytest.mark.parametrize("text", ["", "ERROR: Failed to load model model.tflite\n", LITE_NEW[:600]])
def test_benchmark_model_that_did_not_run(text: str) -> None:
    with pytest.raises(StageFailed, match="benchmark_model measured nothing: ") as caught:
        benchmark_model.parse(text)
    if text.startswith("ERROR"):
        assert str(caught.value).endswith("ERROR: Failed to load model model.tflite")


def test_a_qnn_profile() -> None:
    sections = qnn_net_run.parse_profile(PROFILE)
    assert list(sections) == ["Init", "De-Init", "Execute (Average)", "Execute (Overall)"]
    found = {m.metric: m.value for m in qnn_net_run.measurements(PROFILE, "device", {})}
    assert found == {"latency_mean_ms": 1.25, "accelerator_mean_ms": 0.875, "load_ms": 31.25}
    with pytest.raises(StageFailed, match="shows no execution"):
        qnn_net_run.measurements(PROFILE.partition("Execute")[0], "device", {})


def test_outputs_of_qnn_net_run_by_name_and_size(tmp_path: Path) -> None:
    first, second = np.arange(6, dtype="f4").reshape(2, 3), np.arange(4, dtype="u1")
    (tmp_path / "Result_0").mkdir()
    first.tofile(tmp_path / "Result_0" / "_head_out.raw")
    second.tofile(tmp_path / "Result_0" / "b_native.raw")
    specs = [TensorSpec("/head/out", "float32", (2, 3)), TensorSpec("b", "uint8", (4,))]
    (sample,) = qnn_net_run.read_outputs(tmp_path, specs, 1)
    assert np.array_equal(sample["output_0"], first)
    assert np.array_equal(sample["output_1"], second)
    with pytest.raises(StageFailed, match=r"has 24 bytes, not those of /head/out:float32\[7\]"):
        qnn_net_run.read_outputs(tmp_path, [replace(specs[0], shape=(7,)), specs[1]], 1)
    with pytest.raises(StageFailed, match=r"wrote no c\.raw into Result_0: _head_out\.raw, b_"):
        qnn_net_run.read_outputs(tmp_path, [replace(specs[0], name="c"), specs[1]], 1)


SDK_LIBRARIES = (
    "aarch64-android/libQnnHtp.so",
    "aarch64-android/libQnnHtpV75Stub.so",
    "aarch64-android/libQnnSystem.so",
    "hexagon-v75/unsigned/libQnnHtpV75Skel.so",
)


def unpacked_sdk(folder: Path, program: str = "") -> Path:
    """Returns qnn-net-run in a folder laid out as Qualcomm's SDK; its libraries are empty."""
    for name in SDK_LIBRARIES:
        (folder / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).touch()
    (folder / "bin" / "aarch64-android").mkdir(parents=True)
    return tool(folder / "bin" / "aarch64-android" / "qnn-net-run", program)


def test_what_an_unpacked_sdk_has(tmp_path: Path) -> None:
    bare = tool(tmp_path / "qnn-net-run", "")
    with pytest.raises(InputError, match=r"there is no .*libQnnHtp\.so"):
        qnn_net_run.sdk_files(bare, 75, dlc=False)
    program = unpacked_sdk(tmp_path / "sdk")
    assert len(qnn_net_run.sdk_files(program, 75, dlc=False)) == 4
    with pytest.raises(InputError, match=r"libQnnHtpPrepare\.so"):
        qnn_net_run.sdk_files(program, 75, dlc=True)
    with pytest.raises(InputError, match="has no htp_arch"):
        qnn_net_run.sdk_files(program, None, dlc=True)


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
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in adb, `devices` for what it lists, and the phone's `tmp`."""
    folder = tmp_path / "sdk"
    (folder / "phone").mkdir(parents=True)
    (folder / "tmp of the phone").mkdir()
    (folder / "devices").write_text(PHONE)
    for name, text in (("adb", ADB), ("phone/getprop", GETPROP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(board, "WARMUP_SECONDS", 0.2)
    monkeypatch.setattr(board, "TIMED_SECONDS", 0.1)
    return folder


@pytest.fixture
def another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the phone's kernel were not ours."""
    (tmp_path / "boot_id").write_text("5a3f6c1e-another")
    monkeypatch.setattr(same_machine, "_BOOT_ID", tmp_path / "boot_id")


def left(phone: Path) -> list[str]:
    return os.listdir(phone / "tmp of the phone")


def place(phone: Path, **settings: object) -> str:
    tmp = f"tmp={phone}/tmp of the phone"
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
def test_phones_that_are_not_one_ready_phone(phone: Path, listed: str, words: str) -> None:
    (phone / "devices").write_text(f"List of devices attached\n{listed}\n")
    with pytest.raises(InputError, match=words):
        find_place(place(phone, python="/p")).check(["onnx"])


def test_another_serial_than_those_there_are(phone: Path) -> None:
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
    assert left(phone) == []


# What runs there


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> edgeport.Export:
    folder = tmp_path_factory.mktemp("export")
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
    assert left(phone) == []
    (run,) = run_at(export.directory, find_place(where), limits=LIMITS, keep=True)
    (name,) = left(phone)
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


def tool(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


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
    assert called.startswith(f"{phone}/tmp of the phone/edgeport-")
    assert "--graph=model.tflite --num_threads=2" in called
    assert left(phone) == []


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
    assert left(phone) == []


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
    assert left(phone) == []


def test_a_held_command_that_does_not_end_is_killed() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeCrashed, match="it did not answer in"):
        run_held(["sleep", "600"], 0.2, "it")
    assert time.monotonic() - started < 10


def test_specs_of_outputs(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    file = save(proto, tmp_path / "net.onnx")
    (spec,) = qnn_net_run.output_specs(file, native=True)
    assert str(spec) == "y:float16[1,4,16,16]"
    (spec,) = qnn_net_run.output_specs(file, native=False)
    assert spec.dtype == "float32"
