"""Places: where a runtime's files run. Each is one file here; all combine with every runtime.

    local            this machine
    hub              a phone of Qualcomm's AI Hub; hub:quantize: which quantizes the model too
    ssh://user@host  a board that has Python and one of the runtimes
    adb[:SERIAL]     a phone on a cable

A place is given a Job, files and inputs, and answers with outputs and Measurements. What it
measured has the provenance "device", unless it turns out to be this machine: then "host".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeport.errors import InputError
from edgeport.types import Device, Measurement, NodeReport, Precision, Provenance

if TYPE_CHECKING:
    from edgeport.runtimes.samples import Sample
    from edgeport.runtimes.worker import Limits

JOURNAL = "jobs.jsonl"


def _no_calibration() -> Path:
    raise InputError("there are no calibration inputs here")


@dataclass(frozen=True)
class Job:
    """One runtime's files, to be run on samples.

    `files` are in the order of the runtime's table, those that are there; `model` is the ONNX file
    that they were compiled from. `inputs` is a file of `save_samples`. `journal` is a file of JSON
    lines that lives on beside the artifact, for a place that is asked again after an interruption.
    `workdir` may be written to and is removed afterwards. `progress` is told what is waited for.
    For a place that quantizes by itself: `unquantized` is the float model, and `calibration` gives
    a file of `save_samples` with the calibration inputs, or raises InputError.
    """

    runtime: str
    files: tuple[Path, ...]
    model: Path
    inputs: Path
    device: Device
    precision: Precision
    limits: Limits
    journal: Path
    workdir: Path
    keep: bool = False
    progress: Callable[[str], None] = lambda step: None
    unquantized: Path = Path()
    calibration: Callable[[], Path] = _no_calibration


@dataclass(frozen=True)
class Ran:
    """What a place gave: outputs ("output_0" ...) per sample, and what it measured.

    `outputs` is None where the place runs the files and gives none back: then there is no parity.
    `notes` are sentences for the table; `nodes` is where the place says that each layer ran. `file`
    is what ran where that is none of the job's: the place quantized the model itself.
    """

    outputs: Sequence[Sample] | None
    provenance: Provenance
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
    nodes: tuple[NodeReport, ...] = ()
    file: Path | None = None


class Place(Protocol):
    """Where files run; `text` is how the user named it."""

    text: str

    def check(self, runtimes: Sequence[str]) -> None:
        """Raises InputError for what can be known before any work: no token, no device."""
        ...

    def run(self, job: Job) -> Ran:
        """Runs the job; raises InputError, StageFailed or RuntimeCrashed."""
        ...


# What a text begins with -> the module that has `open_place(text)`.
_PLACES = {"local": "local", "hub": "hub", "ssh": "ssh", "adb": "adb"}


def find_place(text: str) -> Place:
    """Returns the place that `--on` names; raises InputError with those there are."""
    for name, module in _PLACES.items():
        if text == name or text.startswith((f"{name}:", f"{name}?")):
            opened: Place = importlib.import_module(f"{__name__}.{module}").open_place(text)
            return opened
    raise InputError(f"--on {text}: a place is local, hub, ssh://user@host or adb:SERIAL")
