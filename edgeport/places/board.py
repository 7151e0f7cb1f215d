"""What the places ssh and adb share: the runner is copied to a board, and its answer is judged.

The board gets a directory of its own with the model, the inputs and `runner.py`; it needs a Python
and one of the runtimes, and no edgeport.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from edgeport.errors import InputError, RuntimeCrashed, StageFailed, UnknownName
from edgeport.fingerprint import file_sha256
from edgeport.measure import summarise, to_measurement
from edgeport.places import Job, Ran, runner
from edgeport.places.keeper import Ended
from edgeport.places.same_machine import provenance_of
from edgeport.runtimes.samples import load_samples
from edgeport.types import Measurement, Provenance

PYTHON = "python3"
WARMUP_SECONDS = 10.0  # at most: it ends earlier where the median has settled
TIMED_SECONDS = 10.0  # at most: it ends earlier with MAX_RUNS
MIN_RUNS, MAX_RUNS = 10, 1000
GRACE_SECONDS = 15.0  # for the board to say itself that the time was over
HOT_RISE_C = 10.0
BUSY_SHARE = 0.5  # of the cores, before we began
_INPUTS, _OUTPUTS = "inputs.npz", "outputs.npz"
_PATH = re.compile(r"[\w./~][\w./~@+: -]*")


class Board(Protocol):
    """An open way to a board, and a directory there that goes when it is closed."""

    @property
    def name(self) -> str:
        """How the user knows it."""
        ...

    @property
    def directory(self) -> str:
        """Its absolute path on the board."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the directory."""
        ...

    def get(self, name: str, target: Path) -> None:
        """Copies a file of the directory here."""
        ...

    def run(self, words: Sequence[str], seconds: float) -> Ended:
        """Runs a command with its stdin held open; raises RuntimeCrashed where it does not end."""
        ...


@dataclass(frozen=True)
class Settings:
    """What stands behind the `?` of a place: `?python=/opt/venv/bin/python&threads=4`.

    `python` is the board's interpreter, `threads` of 0 are all cores, `tmp` is where the directory
    is made. The others name a tool that runs and times the model in place of the runner.
    """

    python: str = ""
    threads: int = 0
    tmp: str = ""
    benchmark_model: str = ""
    qnn_net_run: str = ""


def parse_settings(text: str, query: str, known: Sequence[str]) -> Settings:
    """Returns the settings in a query; raises InputError for what is unknown or no plain path."""
    found: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, _, quoted = item.partition("=")
        value = unquote(quoted)
        if key not in known:
            raise UnknownName(f"setting of --on {text.partition('?')[0]}", key, known)
        if key == "threads":
            if not re.fullmatch(r"[1-9]\d{0,3}", value):
                raise InputError(f"--on {text}: threads is a whole number from 1 on")
            found[key] = int(value)
        elif not _PATH.fullmatch(value):
            raise InputError(
                f"--on {text}: {key} is the path of a file on the board, of letters, digits and"
                " ./~@+:-_ or spaces"
            )
        else:  # a shell would know the home directory; ours starts in it
            found[key] = f"./{value[2:]}" if value.startswith("~/") else value
    return Settings(**found)


def check_runtimes(place: str, runtimes: Sequence[str], known: Sequence[str]) -> None:
    """Raises InputError for a runtime that nothing on such a board runs."""
    for name in runtimes:
        if name not in known:
            raise InputError(
                f"{place} runs no {name}; it runs {', '.join(known)}: --target-runtime"
            )


def check_board(board: Board, settings: Settings, runtimes: Sequence[str]) -> None:
    """Raises InputError where the board has no Python, or that has not what the runtimes need."""
    board.put(Path(runner.__file__), "runner.py")
    _ask(board, settings, {"task": "check", "runtimes": list(runtimes)}, 60.0)


def run_on_board(board: Board, host: str, settings: Settings, job: Job) -> Ran:
    """Returns what the runner gave on the board; `host` is its address, "" where it has none."""
    job.progress(f"{job.runtime}: copying to {board.name}")
    names = copy_job(board, job)
    board.put(Path(runner.__file__), "runner.py")
    job.progress(f"{job.runtime}: running on {board.name}")
    answer = _ask(board, settings, _request(job, settings, names), job.limits.seconds)
    outputs = job.workdir / _OUTPUTS
    board.get(_OUTPUTS, outputs)
    if file_sha256(outputs) != answer["outputs_sha256"]:
        raise StageFailed("run", f"the outputs did not come back whole from {board.name}")
    provenance = provenance_of(host, answer["board"]["boot_id"])
    samples = load_samples(outputs)
    if answer["emulated"]:
        note = f"{board.name} emulates the NPU: its numbers hold, its times mean nothing"
        return Ran(samples, "emulated", notes=(note,))
    ours = f"{board.name} is this machine: what was measured is the host's"
    notes = (ours,) if provenance == "host" else ()
    return Ran(samples, provenance, _measured(answer, provenance), notes)


def copy_job(board: Board, job: Job) -> list[str]:
    """Copies the model's files and the inputs to the board; returns the names, the model's first.

    The first is the one to load. Weights in a file beside it go along.
    """
    wanted = job.files[:1] if job.runtime == "onnx" else job.files
    first = next((file for file in wanted if file.suffix == ".onnx"), wanted[0])
    data = first.with_name(f"{first.name}.data")
    files = [first, *(file for file in wanted if file != first)]
    for file in [*files, *([data] if data.is_file() else [])]:
        board.put(file, file.name)
    board.put(job.inputs, _INPUTS)
    return [file.name for file in files]


def _request(job: Job, settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    from edgeport.runtimes.onnx import REWRITES_FLOAT_LAYERS
    from edgeport.runtimes.qnn_context_binary import provider_options

    hashes = {file.name: file_sha256(file) for file in job.files if file.name in names}
    chip = {"soc_model", "htp_arch"} <= set(job.device.values)
    return {
        "task": "run",
        "runtime": job.runtime,
        "model": names[0],
        "sha256": {**hashes, _INPUTS: file_sha256(job.inputs)},
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
        "threads": settings.threads,
        "warmup_seconds": WARMUP_SECONDS,
        "timed_seconds": TIMED_SECONDS,
        "min_runs": MIN_RUNS,
        "max_runs": MAX_RUNS,
        "disabled_optimizers": REWRITES_FLOAT_LAYERS,
        "emulator": provider_options(job.device.values) if chip else {},
    }


def _ask(
    board: Board, settings: Settings, request: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Returns the runner's answer to the request; raises what it says went wrong."""
    marker = f"edgeport-{secrets.token_hex(8)} "
    with _request_file({**request, "marker": marker, "seconds": seconds}) as file:
        board.put(file, file.name)
        words = [
            settings.python or PYTHON,
            f"{board.directory}/runner.py",
            f"{board.directory}/{file.name}",
        ]
        ended = board.run(words, seconds + GRACE_SECONDS)
    _, found, rest = ended.stdout.rpartition(f"\n{marker}")
    if not found:
        raise _no_answer(board, settings, ended)
    answer: dict[str, Any] = json.loads(rest.splitlines()[0])
    if "error" in answer:
        text = f"{board.name}: {answer['error']}"
        raise InputError(text) if answer["kind"] == "missing" else StageFailed("run", text)
    if "ended" in answer:
        raise _crashed(board, answer, seconds, ended)
    return answer


@contextmanager
def _request_file(request: Mapping[str, Any]) -> Iterator[Path]:
    from edgeport.private import scratch_directory

    with scratch_directory() as folder:
        file = folder / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        yield file


def _no_answer(board: Board, settings: Settings, ended: Ended) -> InputError | StageFailed:
    """Returns why there is no answer: no such Python, one too old, or a board that went away."""
    named = f"{board.name}: {settings.python or PYTHON}"
    if ended.status in (126, 127):
        return InputError(
            f"{named} cannot be run there ({ended.last_line}); install Python 3.8 or newer, or name"
            " another one: ?python=/path/to/python"
        )
    if re.search("SyntaxError|ModuleNotFoundError|ImportError", ended.stderr):
        return InputError(f"{named} cannot run the runner, it needs 3.8: {ended.last_line}")
    return StageFailed("run", f"{board.name} gave no answer: {ended.last_line}")


def _crashed(
    board: Board, answer: Mapping[str, Any], seconds: float, ended: Ended
) -> RuntimeCrashed:
    if answer["ended"] == "timeout":
        said = f"{board.name} did not end in {seconds:g} s (--timeout)"
        return RuntimeCrashed("run", said, reason="timeout", last_lines=ended.stderr)
    if answer["ended"] == "signal":
        number = answer["number"]
        known = {one.value: one.name for one in signal.Signals}
        killed = number == signal.SIGKILL
        hint = ", as the system does when memory runs out" if killed else ""
        said = f"{board.name}: the runtime was killed by {known.get(number, number)}{hint}"
        return RuntimeCrashed("run", said, reason="signal", last_lines=ended.stderr)
    said = f"{board.name}: the runtime ended before it gave a result: {ended.last_line}"
    return RuntimeCrashed("run", said, reason="exit", last_lines=ended.stderr)


# Its figures


def _measured(answer: Mapping[str, Any], provenance: Provenance) -> tuple[Measurement, ...]:
    """Returns latency, load and first inference in ms, and the peak of resident memory."""
    surroundings = _environment(answer)
    timing = summarise("runs", answer["samples_ms"], _warnings(answer))
    single = {
        "first_latency_ms": (answer["first_ms"], "ms"),
        "load_ms": (answer["load_ms"], "ms"),
        "peak_bytes": (float(answer["peak_bytes"]), "B"),
    }
    return (
        to_measurement(timing, provenance=provenance, artifact_sha256="", environment=surroundings),
        *(
            Measurement(metric, value, unit, provenance, environment=surroundings)
            for metric, (value, unit) in single.items()
        ),
    )


def _environment(answer: Mapping[str, Any]) -> dict[str, str]:
    before, after = answer["state_before"], answer["state_after"]
    told = {
        "governors": ", ".join(before["governors"]),
        "load_average": " ".join(f"{one:.2f}" for one in before["load_average"]),
        "hottest_c_before": _hottest_text(before),
        "hottest_c_after": _hottest_text(after),
        "clocks_mhz_before": _clocks_text(before),
        "clocks_mhz_after": _clocks_text(after),
        "peak_bytes_before_load": str(answer["peak_before_bytes"]),
        "threads": str(answer["threads"] or "the runtime's own choice"),
    }
    return {**answer["board"], **{key: text or "not readable" for key, text in told.items()}}


def _hottest_c(state: Mapping[str, Any]) -> float | None:
    return max(state["temperatures_c"].values(), default=None)


def _hottest_text(state: Mapping[str, Any]) -> str:
    degrees = _hottest_c(state)
    return "" if degrees is None else f"{degrees:.1f}"


def _clocks_text(state: Mapping[str, Any]) -> str:
    return " ".join(f"{khz / 1000:.0f}" for khz in state["clocks_khz"])


def _warnings(answer: Mapping[str, Any]) -> list[str]:
    """Returns what makes the board's timing doubtful, a sentence each."""
    before, after = answer["state_before"], answer["state_after"]
    said = []
    if answer["drift"] is None:
        said.append(f"warm-up not stable after {WARMUP_SECONDS:g} s: too few runs to see it")
    elif answer["drift"] > runner.STABLE_CHANGE:
        said.append(
            f"warm-up not stable after {WARMUP_SECONDS:g} s: the median still moved by"
            f" {answer['drift']:.0%}, more than {runner.STABLE_CHANGE:.0%}"
        )
    start, end = _hottest_c(before), _hottest_c(after)
    if start is not None and end is not None and end - start > HOT_RISE_C:
        said.append(f"the board became {end - start:.0f} °C hotter while it was timed")
    if "powersave" in before["governors"]:
        said.append("the CPU governor is powersave: clocks stay low")
    cores, load = answer["board"]["logical_cores"], before["load_average"]
    if load and cores.isdigit() and load[0] > BUSY_SHARE * int(cores):
        said.append(f"the board was busy before: load {load[0]:.1f} on {cores} cores")
    return said
