"""What a page posts: its form, whose number it is, and the Measurements that it becomes.

The page sends samples only. Medians, ratio and interval are computed here, as everywhere else.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeport.errors import InputError
from edgeport.measure import Timing, ratio, summarise, to_measurement
from edgeport.types import Measurement, Provenance

FORMAT = "edgeport.results/1"
MAX_BYTES = 256 << 10
PROGRAMS = ("sort_free", "sorted")
RENDERERS = ("webgpu", "webgl2")

_MAX_SAMPLES = 2000
_MIN_SAMPLES = 5
_MAX_TEXT = 300
_MAX_WARNINGS = 8
_MAX_SAMPLE_MS = 600_000.0
_MAX_FRAME = 16_384
_MAX_SPLATS = 100_000_000
_ADAPTER = ("vendor", "architecture", "device", "description", "backend")
_SOFTWARE = re.compile(
    r"swiftshader|llvmpipe|lavapipe|softpipe|software|\bwarp\b|microsoft basic render|\bcpu\b", re.I
)
_PHONE = re.compile(r"\b(Android|iPhone|iPad|iPod)\b")
_EMULATOR = re.compile(r"sdk_gphone|Android SDK built for|\bEmulator\b", re.I)


@dataclass(frozen=True)
class Posted:
    """One benchmark of a page, checked: milliseconds per frame by program, round by round."""

    renderer: str
    adapter: Mapping[str, str]
    fallback: bool
    frame: tuple[int, int]
    splats: Mapping[str, int]
    frames_per_sample: int
    samples_ms: Mapping[str, tuple[float, ...]]
    warnings: tuple[str, ...]


def parse_posted(body: bytes) -> Posted:
    """Returns what a page sent. Raises InputError, one line, for anything of another form."""
    try:
        table = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the results are no JSON: {error}") from None
    keys = {
        *("format", "renderer", "adapter", "fallback", "frame", "splats"),
        *("frames_per_sample", "samples_ms", "warnings"),
    }
    _check_keys("results", table, keys, keys)
    if table["format"] != FORMAT:
        raise InputError(f"results: format is not {FORMAT!r}")
    if table["renderer"] not in RENDERERS:
        raise InputError(f"results: renderer is none of {', '.join(RENDERERS)}")
    if not isinstance(table["fallback"], bool):
        raise InputError("results: fallback is neither true nor false")
    samples = _samples(table["samples_ms"])
    _check_keys("splats", table["splats"], PROGRAMS, samples)
    splats = {name: _whole(f"splats.{name}", n, _MAX_SPLATS) for name, n in table["splats"].items()}
    frame = _row("frame", table["frame"], 2, 2)
    width, height = (_whole("frame", side, _MAX_FRAME) for side in frame)
    warnings = _row("warnings", table["warnings"], 0, _MAX_WARNINGS)
    return Posted(
        renderer=table["renderer"],
        adapter=_adapter(table["adapter"]),
        fallback=table["fallback"],
        frame=(width, height),
        splats=splats,
        frames_per_sample=_whole("frames_per_sample", table["frames_per_sample"], 100_000),
        samples_ms=samples,
        warnings=tuple(_text("warnings", one) for one in warnings),
    )


def is_software(adapter: Mapping[str, str], fallback: bool) -> bool:
    """Returns whether a processor draws in place of a GPU, by what the adapter says of itself."""
    return fallback or any(_SOFTWARE.search(text) for text in adapter.values())


def provenance_of_post(*, from_here: bool, user_agent: str, software: bool) -> Provenance:
    """Returns whose number a page's is: "device" where a phone or board drew it, else "host".

    A software adapter is "host", whoever asks: its times say nothing of a device's GPU. A client at
    an address of this machine (`from_here`) is "host" too, but for a phone: over `adb reverse` it
    comes from the loopback address, and only its user agent tells. The emulator's runs here.
    """
    if software or _EMULATOR.search(user_agent):
        return "host"
    return "host" if from_here and not _PHONE.search(user_agent) else "device"


def measurements_of(
    posted: Posted, *, program_sha256: str, user_agent: str, from_here: bool
) -> tuple[Measurement, ...]:
    """Returns the time of a frame of each program and, where both ran, how much sort-free gains.

    `speedup:sort_free` is the sorted program's median over the sort-free one's, with the bootstrap
    interval over rounds; its samples are the rounds' quotients.
    """
    software = is_software(posted.adapter, posted.fallback)
    provenance = provenance_of_post(from_here=from_here, user_agent=user_agent, software=software)
    environment = {
        **_environment(posted),
        "user_agent": clean(user_agent),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    timings = {name: summarise(name, posted.samples_ms[name]) for name in posted.samples_ms}
    made = [
        to_measurement(
            timing,
            metric=f"frame_ms:{name}",
            provenance=provenance,
            artifact_sha256=program_sha256,
            environment={**environment, "splats": str(posted.splats[name])},
        )
        for name, timing in timings.items()
    ]
    if len(timings) == len(PROGRAMS):
        made.append(_speedup(timings, made[0]))
    warned = (*posted.warnings, *(("a software adapter drew it",) if software else ()))
    return tuple(
        replace(one, warnings=(*one.warnings, *warned), self_reported=provenance == "device")
        for one in made
    )


def _speedup(timings: Mapping[str, Timing], like: Measurement) -> Measurement:
    sort_free, in_order = timings["sort_free"], timings["sorted"]
    found = ratio(in_order, sort_free)
    pairs = zip(in_order.samples_ms, sort_free.samples_ms, strict=True)
    said = dict.fromkeys((*in_order.warnings, *sort_free.warnings))
    return replace(
        like,
        metric="speedup:sort_free",
        value=found.value,
        unit="ratio",
        samples=tuple(above / below for above, below in pairs),
        interval=(found.low, found.high),
        warnings=tuple(said),
    )


def clean(text: str) -> str:
    """Returns one line of `text` that a terminal may show: no control characters, not too long."""
    kept = "".join(one if one.isprintable() else " " for one in text[:_MAX_TEXT])
    return " ".join(kept.split())


def _environment(posted: Posted) -> dict[str, str]:
    return {
        "renderer": posted.renderer,
        **{f"adapter_{key}": text for key, text in posted.adapter.items() if text},
        "frame": "{}x{}".format(*posted.frame),
        "frames_per_sample": str(posted.frames_per_sample),
    }


# The form


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_keys(
    what: str, table: Any, known: Sequence[str] | set[str], needed: Mapping[str, Any] | set[str]
) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{what}: not a JSON object")
    for key in table:
        if key not in known:
            raise InputError(f"{what}: unknown key {clean(key)!r}")
    for key in needed:
        if key not in table:
            raise InputError(f"{what}: {key} is missing")


def _samples(table: Any) -> dict[str, tuple[float, ...]]:
    _check_keys("samples_ms", table, PROGRAMS, set())
    rows = {}
    for name in PROGRAMS:
        if name in table:
            row = _row(f"samples_ms.{name}", table[name], _MIN_SAMPLES, _MAX_SAMPLES)
            rows[name] = tuple(_milliseconds(name, one) for one in row)
    if not rows:
        raise InputError("samples_ms: no program")
    if len({len(row) for row in rows.values()}) > 1:
        raise InputError("samples_ms: the programs have not the same number of rounds")
    return rows


def _milliseconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"samples_ms.{name}: a sample is no number")
    if isinstance(value, int) and abs(value) > _MAX_SAMPLE_MS:
        value = math.inf  # float() of a longer one would raise
    if not math.isfinite(value) or not 0.0 < value <= _MAX_SAMPLE_MS:
        raise InputError(f"samples_ms.{name}: a sample is not in 0 .. {_MAX_SAMPLE_MS:g} ms")
    return float(value)


def _adapter(table: Any) -> dict[str, str]:
    _check_keys("adapter", table, _ADAPTER, set())
    return {key: _text(f"adapter.{key}", text) for key, text in table.items()}


def _row(what: str, value: Any, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise InputError(f"{what}: not a list of {least} to {most}")
    return value


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise InputError(f"{what}: not a text of at most {_MAX_TEXT} characters")
    return clean(value)


def _whole(what: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"{what}: not a whole number from 1 to {most}")
    return value
