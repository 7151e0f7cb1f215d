"""Where blocks of a comparison run: in processes of this machine, or at a place."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgeport.bench import STABLE_CHANGE, STABLE_WINDOW, Arm, Held, Settings, turns_of
from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.measure import environment, now_seconds, rest
from edgeport.places import Job, Place, runner, served
from edgeport.places.served import Request, Served
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.samples import Sample
from edgeport.types import Provenance

HOT_RISE_C = 10.0
_OTHERS = (
    "board",
    "cpu",
    "machine",
    "boot_id",
    "logical_cores",
)  # said elsewhere, or the user's own
SLOWER_CLOCKS = 0.9  # of what they were


def runs_here(runtime: str) -> bool:
    """Returns whether this machine runs a runtime's files at a speed that means something."""
    return RUNTIMES[runtime].runs_as == "host"


class HostBlocks:
    """Blocks in processes of this machine; `outputs` are those of the first block, by arm.

    `module` is what a process runs: `edgeport.places.served`, or another that serves as it does.
    """

    provenance: Provenance = "host"

    def __init__(self, settings: Settings, workdir: Path, module: str = served.__name__) -> None:
        self._settings, self._workdir, self._module = settings, workdir, module
        self._calls: dict[str, int] = {}
        self._modules: tuple[str, ...] = ()
        self._told: Mapping[str, str] = {}
        self.outputs: dict[str, list[Sample]] = {}

    def block(self, arms: Sequence[Arm], order: random.Random) -> Mapping[str, Held]:
        """Starts a process for every arm, warms them up, and lets them take turns."""
        if self._settings.cool_down:
            rest(self._settings.cool_down)
        kinds = dict.fromkeys(arm.runtime for arm in arms if arm.runtime in RUNTIMES)
        self._modules = tuple(name for kind in kinds for name in runner.modules_of(kind))
        before = runner.read_state()
        with ExitStack() as stack:
            held = {
                arm.name: stack.enter_context(self._start(arm))
                for arm in order.sample(list(arms), len(arms))
            }
            self._told = {k: v for one in held.values() for k, v in one.environment.items()}
            moved = self._warm_up(held, order)
            turns: dict[str, list[tuple[float, ...]]] = {arm.name: [] for arm in arms}
            for _ in range(self._settings.turns):
                for name in order.sample(list(held), len(held)):
                    turns[name].append(tuple(held[name].turn(self._calls[name])))
            peaks = {name: one.peak_bytes() for name, one in held.items()}
            if not self.outputs:
                self.outputs = {name: one.outputs() for name, one in held.items()}
        said = _heat(before, runner.read_state())
        return {
            arm.name: Held(
                tuple(turns[arm.name]),
                {
                    "cold_ms": held[arm.name].cold_ms,
                    "load_ms": held[arm.name].load_ms,
                    "first_ms": held[arm.name].first_ms,
                    "peak_bytes": float(peaks[arm.name]),
                },
                moved[arm.name],
                said,
            )
            for arm in arms
        }

    def environment(self) -> Mapping[str, str]:
        """Returns what the times depend on, with the state of the processor where it is told."""
        state, board = runner.read_state(), runner.describe_board(self._modules)
        hottest = max(state["temperatures_c"].values(), default=None)
        clocks = state["clocks_khz"]
        return {
            **environment(self._settings.threads),
            **self._told,
            **{name: board[name] for name in board if name not in _OTHERS},
            "os": board["os"],
            "cores": ", ".join(map(str, self._settings.cores)) or "all",
            "governor": ", ".join(state["governors"]) or "not readable",
            "clock_mhz": f"{max(clocks) / 1000:.0f}" if clocks else "not readable",
            "temperature_c": "not readable" if hottest is None else f"{hottest:.0f}",
        }

    def _start(self, arm: Arm) -> Served:
        folder = self._workdir / arm.name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        request = Request(
            runtime=arm.runtime,
            model=str(arm.files[0].resolve()),
            inputs=str(arm.inputs.resolve()),
            outputs=str(folder / "outputs.npz"),
            threads=self._settings.threads,
            cores=self._settings.cores,
            part=arm.part,
        )
        return Served(request, folder, self._module, self._settings.timeout)

    def _warm_up(self, held: Mapping[str, Served], order: random.Random) -> Mapping[str, float]:
        """Runs turns until every arm's median is stable; returns by how much each still moved."""
        recent: dict[str, list[float]] = {name: [] for name in held}
        deadline = now_seconds() + self._settings.warmup_seconds * len(held)
        while True:
            for name in order.sample(list(held), len(held)):
                median = statistics.median(held[name].turn(self._calls.get(name, 1)))
                recent[name].append(median)
                self._calls.setdefault(name, turns_of(median, self._settings))
            moving = {name: _moved(medians) for name, medians in recent.items()}
            if max(moving.values()) <= STABLE_CHANGE or now_seconds() >= deadline:
                break
        for name, medians in recent.items():  # the first calls were slow
            self._calls[name] = turns_of(statistics.median(medians), self._settings)
        return moving


def _moved(medians: Sequence[float]) -> float:
    """Returns by which share the running median changed over the last turns; inf where too few."""
    if len(medians) < STABLE_WINDOW + 2:
        return float("inf")
    lately = medians[-STABLE_WINDOW - 2 :]
    running = [statistics.median(lately[i : i + STABLE_WINDOW]) for i in range(3)]
    return max(running) / min(running) - 1.0


def _heat(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns sentences about a chip that became hot, or lowered its clocks, in a block."""
    said = []
    start, end = before["temperatures_c"].values(), after["temperatures_c"].values()
    if start and end and max(end) - max(start) > HOT_RISE_C:
        said.append(f"the chip became {max(end) - max(start):.0f} °C hotter in one block")
    clocks = [one["clocks_khz"] for one in (before, after)]
    if all(clocks) and np.mean(clocks[1]) < SLOWER_CLOCKS * np.mean(clocks[0]):
        said.append("the clocks fell by more than a tenth within one block")
    return tuple(said)


class PlaceBlocks:
    """Blocks at a place: each arm is run there, one after the other, in a new order each block."""

    provenance: Provenance = "device"

    def __init__(
        self,
        place: Place,
        settings: Settings,
        workdir: Path,
        job: Callable[[Arm, Path], Job],
    ) -> None:
        self._place, self._settings, self._workdir, self._job = place, settings, workdir, job
        self._told: Mapping[str, str] = {}
        self.outputs: dict[str, list[Sample]] = {}

    def block(self, arms: Sequence[Arm], order: random.Random) -> Mapping[str, Held]:
        """Runs every arm at the place, with a rest before each."""
        held = {}
        for arm in order.sample(list(arms), len(arms)):
            rest(self._settings.cool_down)
            held[arm.name] = self._one(arm)
        return held

    def environment(self) -> Mapping[str, str]:
        """Returns what the place told of itself with its last run."""
        return self._told

    def _one(self, arm: Arm) -> Held:
        folder = self._workdir / arm.name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        ran = self._place.run(self._job(arm, folder))
        found = {one.metric: one for one in ran.measurements}
        latency = found.get("latency_ms")
        if ran.provenance == "emulated" or latency is None or not latency.samples:
            raise InputError(
                f"{self._place.text} gives no latency samples of {arm.runtime}: an emulator's times"
                " mean nothing, and a comparison needs every run's"
            )
        self.provenance, self._told = ran.provenance, latency.environment
        self.outputs.setdefault(arm.name, list(ran.outputs or ()))
        singles = {name: found[name].value for name in _PLACE_SINGLES if name in found}
        return Held((latency.samples,), singles, warnings=latency.warnings)


_PLACE_SINGLES = ("load_ms", "first_latency_ms", "peak_bytes")


def likeness_db(outputs: Mapping[str, Sequence[Sample]], base: str, name: str) -> float | None:
    """Returns the SQNR in dB of one arm's outputs with the other's as reference, the worst one.

    None where they have not the same shapes: then they are answers to other questions.
    """
    if base not in outputs or name not in outputs:
        return None
    pairs = list(zip(outputs[base], outputs[name]))
    if not pairs or any(_shapes(one) != _shapes(two) for one, two in pairs):
        return None
    return min(sqnr_db(one[key], two[key]) for one, two in pairs for key in one)


def _shapes(sample: Sample) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.items()}
