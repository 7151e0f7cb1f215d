"""The place `adb[:SERIAL]`: a phone on a cable or in the net, reached by Android's adb.

    adb:R5CT1234?benchmark_model=/data/local/tmp/benchmark_model
    adb:R5CT1234?qnn_net_run=/opt/qairt/bin/aarch64-android/qnn-net-run
    adb?python=/data/data/com.termux/files/usr/bin/python

A phone has no Python of its own, so the user names what runs the files there: a Python, LiteRT's
benchmark_model (tflite; it times and gives no outputs), or Qualcomm's qnn-net-run (context binaries
and .dlc). A tool that is a file here is copied to the phone first. An emulator is no phone: what
runs in one has the provenance "host".
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgeport.errors import InputError, StageFailed
from edgeport.places import Job, Ran, benchmark_model, qnn_net_run, runner
from edgeport.places.board import (
    TIMED_SECONDS,
    Settings,
    check_board,
    copy_job,
    parse_settings,
    run_on_board,
)
from edgeport.places.keeper import (
    KEEPER,
    WATCHED,
    Ended,
    kept_directory,
    last_line,
    run_held,
)
from edgeport.places.same_machine import provenance_of
from edgeport.private import scratch_directory
from edgeport.runtimes.samples import load_samples
from edgeport.types import Provenance

TMP = "/data/local/tmp"
VIEWER = "qnn-profile-viewer"
_SERIAL = re.compile(r"[A-Za-z0-9\[][\w.:\[\]-]*", re.ASCII)
_ADB_SECONDS = 60.0
# The tool that runs a runtime's files where the user names it, and its setting's name.
_TOOLS = {
    "tflite": "benchmark_model",
    "qnn_context_binary": "qnn_net_run",
    "qnn_dlc": "qnn_net_run",
}
_FACTS = (
    "for p in ro.product.model ro.soc.model ro.build.version.release ro.kernel.qemu ro.boot.qemu;"
    ' do echo "$p=$(getprop $p)"; done;'
    ' echo "boot_id=$(cat /proc/sys/kernel/random/boot_id)"; echo "logical_cores=$(nproc)";'
    ' echo "load_average=$(cut -d " " -f 1-3 /proc/loadavg)";'
    ' echo "governors=$(cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor | sort -u'
    ' | xargs echo)"; echo "temperatures=$(cat /sys/class/thermal/thermal_zone*/temp | xargs echo)"'
)


@dataclass(frozen=True)
class Phone:
    """A connected phone: a `Board`, whose directory goes with it."""

    serial: str
    directory: str
    seconds: float

    @property
    def name(self) -> str:
        """How the user knows it."""
        return f"adb:{self.serial}"

    def put(self, source: Path, name: str) -> None:
        """Copies a file, or a folder, into the directory."""
        done = adb(self.serial, "push", str(source), f"{self.directory}/{name}", limit=self.seconds)
        if done.status != 0:
            raise StageFailed("run", f"{name} could not be copied to {self.name}: {done.last_line}")

    def get(self, name: str, target: Path) -> None:
        """Copies a file, or a folder, of the directory here."""
        done = adb(self.serial, "pull", f"{self.directory}/{name}", str(target), limit=self.seconds)
        if done.status != 0:
            raise StageFailed("run", f"{name} did not come back from {self.name}: {done.last_line}")

    def run(self, words: Sequence[str], seconds: float) -> Ended:
        """Runs a command with its stdin held open."""
        return run_held(["adb", "-s", self.serial, "shell", shlex.join(words)], seconds, self.name)

    def run_tool(self, words: Sequence[str]) -> Ended:
        """Runs a command in the directory, which is killed with us and with the time limit."""
        script = f'cd "$1"; shift; {WATCHED}'
        ended = self.run(["sh", "-c", script, "sh", self.directory, *words], self.seconds)
        if ended.status != 0:
            tool = next(word for word in words if "=" not in word and word != "env")
            said = f"{tool} ended with exit status {ended.status}: {ended.last_line}"
            raise StageFailed("run", f"{self.name}: {said}")
        return ended


class Adb:
    """A phone, reached by adb; `serial` is empty for the only one."""

    def __init__(self, text: str, serial: str, settings: Settings) -> None:
        self.text, self._serial, self._settings = text, serial, settings

    def check(self, runtimes: Sequence[str]) -> None:
        """Raises InputError where there is no phone, or nothing on it that runs the files."""
        serial = find_phone(self._serial)
        tools = {_tool(self._settings, runtime) for runtime in runtimes}
        for path in tools - {""}:
            if not Path(path).is_file():
                done = adb(serial, "shell", shlex.join(["test", "-x", path]))
                if done.status != 0:
                    raise InputError(f"adb:{serial}: {path} is no program there, nor a file here")
        ours = [runtime for runtime in runtimes if not _tool(self._settings, runtime)]
        if ours:
            with connect(serial, self._settings.tmp, _ADB_SECONDS) as phone:
                check_board(phone, self._settings, ours)

    def run(self, job: Job) -> Ran:
        """Copies the job to the phone, runs it there, and leaves nothing unless `keep`."""
        serial = find_phone(self._serial)
        tool = _tool(self._settings, job.runtime)
        with connect(serial, self._settings.tmp, job.limits.seconds, job.keep) as phone:
            facts = read_facts(phone)
            if not tool:
                ran = run_on_board(phone, host_of(serial, facts), self._settings, job)
            elif job.runtime == "tflite":
                ran = _benchmark(phone, tool, facts, self._settings, job)
            else:
                ran = _net_run(phone, tool, facts, job)
            kept = (f"left on {phone.name}: {phone.directory}",) if job.keep else ()
            return replace(ran, notes=(*ran.notes, *kept))


def open_place(text: str) -> Adb:
    """Returns the phone that `adb[:SERIAL][?settings]` names; raises InputError."""
    name, _, query = text.partition("?")
    serial = name.removeprefix("adb").removeprefix(":")
    if name not in ("adb", f"adb:{serial}") or not _SERIAL.fullmatch(serial or "any"):
        raise InputError(f"--on {text}: write adb:SERIAL, as `adb devices` lists it")
    known = ("python", "benchmark_model", "qnn_net_run", "threads", "tmp")
    return Adb(text, serial, parse_settings(text, query, known))


def adb(serial: str, *words: str, limit: float = _ADB_SECONDS) -> Ended:
    """Returns how an adb command ended; raises InputError where adb is not installed."""
    return _run_adb(["-s", serial, *words], limit)


def _run_adb(words: Sequence[str], limit: float) -> Ended:
    if shutil.which("adb") is None:
        raise InputError("adb is not installed: apt install adb, or Android's platform-tools")
    return run_held(["adb", *words], limit, "adb")


def find_phone(serial: str) -> str:
    """Returns the serial of the phone that was named, or of the only one.

    Raises InputError where there is none, several, or one that does not let us in.
    """
    listed = _run_adb(["devices"], _ADB_SECONDS)
    if listed.status != 0:
        raise InputError(f"adb devices failed: {listed.last_line}")
    phones = dict(re.findall(r"^(\S+)\t(.+?)\s*$", listed.stdout, re.MULTILINE))
    names = [serial] if serial else list(phones)
    if not phones or (serial and serial not in phones):
        there = f"; there are {', '.join(phones)}" if phones else ""
        what = f"no phone {serial}" if serial else "no phone"
        raise InputError(
            f"adb lists {what}{there}: connect it with USB debugging on (developer options)"
        )
    if len(names) > 1:
        raise InputError(f"adb lists several phones: --on {' or '.join(f'adb:{n}' for n in names)}")
    return _ready(names[0], phones[names[0]])


def _ready(serial: str, state: str) -> str:
    if state == "unauthorized":
        raise InputError(f"adb:{serial} is unauthorized: accept this computer's key on its screen")
    if state != "device":
        raise InputError(f"adb:{serial} is not ready, adb says {state!r}: connect it again")
    return serial


@contextmanager
def connect(serial: str, tmp: str, seconds: float, keep: bool = False) -> Iterator[Phone]:
    """Yields the phone with a new directory on it, which is removed in every case but `keep`."""
    marker = f"edgeport-{secrets.token_hex(8)} "
    keeping = shlex.join(["sh", "-c", KEEPER, "sh", tmp or TMP, marker])
    with scratch_directory() as scratch:
        log, shell = scratch / "log", ["adb", "-s", serial, "shell", keeping]
        name = f"adb:{serial}"
        with kept_directory(shell, log, marker, _ADB_SECONDS, keep, name) as directory:
            if not directory:
                said = last_line(log.read_text(errors="replace"))
                raise InputError(f"{name}: no directory could be made there: {said}")
            yield Phone(serial, directory, seconds)


def host_of(serial: str, facts: dict[str, str]) -> str:
    """Returns the address that a phone has in the net, "localhost" for an emulator; "" by cable."""
    if serial.startswith("emulator-") or "1" in (
        facts.get("ro.kernel.qemu"),
        facts.get("ro.boot.qemu"),
    ):
        return "localhost"
    found = re.fullmatch(r"\[?([^\[\]]+?)\]?:\d+", serial)
    return found[1] if found else ""


def read_facts(phone: Phone) -> dict[str, str]:
    """Returns the phone's model and state as words, those that it lets the shell read."""
    done = adb(phone.serial, "shell", shlex.join(["sh", "-c", _FACTS]))
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs if value.strip()}
    degrees = [int(one) / 1000 for one in facts.pop("temperatures", "").split() if one.isdigit()]
    plausible = [one for one in degrees if 1 < one < 150]  # a zone that is off tells 0
    return {**facts, **({"hottest_c": f"{max(plausible):.1f}"} if plausible else {})}


def _tool(settings: Settings, runtime: str) -> str:
    """Returns the tool that runs a runtime's files, "" for the runner; raises InputError."""
    setting = _TOOLS.get(runtime, "")
    named: str = getattr(settings, setting) if setting else ""
    if named or (settings.python and runtime in runner.PACKAGES):
        return named
    ways = [f"?{setting}=/path/to/{setting.replace('_net_', '-net-')}"] if setting else []
    ways += ["?python=/path/to/python"] if runtime in runner.PACKAGES else []
    if not ways:
        raise InputError(f"nothing on a phone over adb runs {runtime}: --target-runtime")
    raise InputError(f"--on adb: name what runs {runtime} on the phone: {' or '.join(ways)}")


def _install(phone: Phone, tool: str, beside: Sequence[Path] = ()) -> str:
    """Returns the tool's path on the phone; a file here is copied, with what it needs."""
    if not Path(tool).is_file():
        return tool
    for file in (Path(tool), *beside):
        phone.put(file, file.name)
    installed = f"{phone.directory}/{Path(tool).name}"
    phone.run_tool(["chmod", "755", installed])
    return installed


def _benchmark(phone: Phone, tool: str, facts: dict[str, str], settings: Settings, job: Job) -> Ran:
    job.progress(f"{job.runtime}: timing on {phone.name}")
    names = copy_job(phone, job)
    cores = facts.get("logical_cores", "")
    threads = settings.threads or (int(cores) if cores.isdigit() else 4)
    limit = max(1.0, job.limits.seconds / 2)
    words = benchmark_model.arguments(names[0], threads, TIMED_SECONDS, limit)
    ended = phone.run_tool([_install(phone, tool), *words])
    report = benchmark_model.parse(f"{ended.stdout}\n{ended.stderr}")
    environment = _environment(phone, facts, threads=str(threads))
    provenance = _provenance(phone, facts)
    return Ran(None, provenance, benchmark_model.measurements(report, provenance, environment))


def _net_run(phone: Phone, tool: str, facts: dict[str, str], job: Job) -> Ran:
    job.progress(f"{job.runtime}: running on {phone.name}")
    file = next(one for one in job.files if one.suffix in (".bin", ".dlc"))
    phone.put(file, file.name)
    arch = job.device.fact("htp_arch")
    beside: Sequence[Path] = ()
    if Path(tool).is_file():
        beside = qnn_net_run.sdk_files(Path(tool), arch, file.suffix == ".dlc")
    installed = _install(phone, tool, beside)
    native = qnn_net_run.write_inputs(job.inputs, job.workdir)
    for name in (qnn_net_run.INPUTS, qnn_net_run.LIST):
        phone.put(job.workdir / name, name)
    for timed in (False, True):
        where = phone.directory
        phone.run_tool(qnn_net_run.command(installed, where, file.name, native, timed))
    phone.get(qnn_net_run.OUTPUTS, job.workdir / qnn_net_run.OUTPUTS)
    specs = qnn_net_run.output_specs(job.model, native)
    count = len(load_samples(job.inputs))
    outputs = qnn_net_run.read_outputs(job.workdir / qnn_net_run.OUTPUTS, specs, count)
    provenance = _provenance(phone, facts)
    profile = _profile(phone, tool, job.workdir)
    if not profile:
        note = f"no times: {VIEWER} of the QNN SDK is not on PATH, which reads the profile"
        return Ran(outputs, provenance, notes=(note,))
    environment = _environment(phone, facts)
    measured = qnn_net_run.measurements(profile, provenance, environment)
    return Ran(outputs, provenance, measured)


def _profile(phone: Phone, tool: str, workdir: Path) -> str:
    """Returns the timed run's profile as the SDK's viewer shows it, "" without a viewer."""
    in_sdk = Path(tool).resolve().parents[1] / "x86_64-linux-clang" / VIEWER
    viewer = str(in_sdk) if in_sdk.is_file() else shutil.which(VIEWER)
    if viewer is None:
        return ""
    log = workdir / qnn_net_run.PROFILE
    phone.get(f"{qnn_net_run.TIMED}/{qnn_net_run.PROFILE}", log)
    words = [viewer, "--input_log", str(log)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ADB_SECONDS)
    except subprocess.TimeoutExpired:
        raise StageFailed("run", f"{VIEWER} did not end in {_ADB_SECONDS:g} s") from None
    if done.returncode != 0:
        raise StageFailed("run", f"{VIEWER} failed: {last_line(done.stdout + done.stderr)}")
    return done.stdout


def _provenance(phone: Phone, facts: dict[str, str]) -> Provenance:
    return provenance_of(host_of(phone.serial, facts), facts.get("boot_id", ""))


def _environment(phone: Phone, facts: dict[str, str], **more: str) -> dict[str, str]:
    """Returns what was read before, and how hot the phone is now."""
    before, after = dict(facts), read_facts(phone)
    before["hottest_c_before"] = before.pop("hottest_c", "not readable")
    before["hottest_c_after"] = after.get("hottest_c", "not readable")
    return {**before, **more}
