"""Sizes beside the memory of the device, as far as its profile states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.devices import find_device
from edgeport.errors import InputError, UnknownName
from edgeport.liveness import peak_activation_bytes
from edgeport.page.placement import MEMORY, Fit
from edgeport.runtimes import RUNTIMES
from edgeport.types import Fact

_FACTS = {"ram_bytes": "memory of the device", "vtcm_bytes": "memory of its NPU alone (VTCM)"}
_GRAPHS = ("optimized.onnx", "quantized.onnx")  # the last one is what runs


@dataclass(frozen=True)
class Memory:
    """What the device's profile says of its memory, and what the graphs need.

    `facts` are (what, bytes), `peaks` (file, bytes of its activations at their peak), `problems`
    say why a file has none.
    """

    device: str
    facts: tuple[tuple[str, int], ...]
    ram_bytes: int | None
    peaks: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]


def memory_of_export(directory: Path, manifest: Mapping[str, Any]) -> Memory:
    """Returns the memory facts that the export was made for, or that today's profile adds."""
    name = manifest["device"]["name"]
    try:
        known = dict(find_device(name).facts)
    except UnknownName:  # a profile of the user's that is not here
        known = {}
    known |= {key: Fact(**fact) for key, fact in manifest["device"]["facts"].items()}
    facts = tuple((words, int(known[key].value)) for key, words in _FACTS.items() if key in known)
    ram = int(known["ram_bytes"].value) if "ram_bytes" in known else None
    peaks, problems = [], []
    for graph in (one for one in _GRAPHS if one in manifest["files"]):
        try:
            peaks.append((graph, peak_activation_bytes(directory / graph)))
        except InputError as error:  # a tensor without a static shape
            problems.append(f"the peak of the activations of {graph} is not known: {error}")
    return Memory(name, facts, ram, tuple(peaks), tuple(problems))


def size_fit(manifest: Mapping[str, Any], memory: Memory) -> Fit:
    """Returns whether the largest file of a runtime, and the peak, lie within the memory."""
    files = {name: int(entry.get("bytes", 0)) for name, entry in manifest["files"].items()}
    made = [RUNTIMES[name].files for name in manifest["options"]["target_runtimes"]]
    sizes = {name: files[name] for names in made for name in names if name in files}
    if not sizes:
        return Fit(MEMORY, "not known", "no runtime's file was made")
    largest = max(sizes, key=lambda name: sizes[name])
    words, needed = f"the largest file, {largest}, has {megabytes(sizes[largest])}", sizes[largest]
    if memory.peaks:
        graph, peak = memory.peaks[-1]
        words += f", the activations of {graph} {megabytes(peak)} at their peak"
        needed += peak
    if memory.ram_bytes is None:
        return Fit(MEMORY, "not known", f"{words}; the device's memory is not known")
    asked = f"{words}; the device has {megabytes(memory.ram_bytes)}"
    return Fit(MEMORY, "fits" if needed <= memory.ram_bytes else "does not fit", asked)


def megabytes(count: float) -> str:
    """Returns bytes in the unit that suits them; decimal, as the export's table."""
    for limit, size, unit in ((1e9, 1e9, "GB"), (1e5, 1e6, "MB"), (1e3, 1e3, "kB")):
        if count >= limit:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
