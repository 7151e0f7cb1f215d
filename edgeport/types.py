"""The nouns of edgeport: frozen dataclasses over the standard library, nothing else.

Those that reach a file have `to_dict`, which gives plain JSON values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal

Provenance = Literal["device", "emulated", "host", "modelled"]
"""Where a number comes from: a phone or board ran it; the vendor's NPU emulator ran it (numerics
only); this machine ran it; it was computed from a device profile."""

PROVENANCES: tuple[Provenance, ...] = ("device", "emulated", "host", "modelled")

Precision = Literal["float", "w8a8", "w8a16", "w4a16", "auto", "w8-dynamic", "w8", "w4"]
PRECISIONS: tuple[Precision, ...] = ("float", "w8a8", "w8a16", "w4a16")
"""Those of a whole model; "auto" chooses one per layer."""
CONVERTER_PRECISIONS: tuple[Precision, ...] = ("w8-dynamic", "w8", "w4")
"""Those that only a runtime's own converter knows: int8 weights with activations quantized while it
runs; int8 or int4 weights alone, dequantized before they are used."""


def plain(value: Any) -> Any:
    """Returns `value` as plain JSON values: dataclasses and mappings become dicts, tuples lists.

    Infinities, which JSON cannot write, become the strings "inf" and "-inf": `float` reads them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class Serialisable:
    """Gives a dataclass `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return dict(plain(self))


@dataclass(frozen=True)
class TensorSpec(Serialisable):
    """The name, element type (numpy's name, such as "float32") and static shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Option:
    """One typed setting of a recipe; the CLI shows it as the flag `--name`.

    With `path` its value may name a file or folder, whose bytes are then part of the source.
    """

    name: str
    default: int | float | str
    help: str
    choices: tuple[str, ...] = ()
    path: bool = False


@dataclass(frozen=True)
class Claim(Serialisable):
    """A limit that a measured metric has to hold, and the provenance it accepts.

    "sqnr_db" is about every measurement of that metric, "sqnr_db:tflite" about one. `why` gives the
    paper's own figure and where it stands.
    """

    metric: str
    op: Literal["<=", ">="]
    limit: float
    provenance: tuple[Provenance, ...]
    why: str


@dataclass(frozen=True)
class Recipe:
    """One published method, declared without importing anything heavy.

    `variants` maps a name to "module:function"; the function is `build(seed, **options)` and gives
    an `nn.Module`. `inputs(**options)` gives the input specs. `calibration` names a function
    `(specs, count, seed) -> list of feeds`; with a parameter `**options` it gets those too.
    `comparisons` are settings of the options at which a variant is timed against `baseline`, each
    with the words that the table shows. `check` are the options of the export
    (`edgeport.plan.Options`) by which the claims are judged. `evaluate` names a function
    `() -> tuple[Measurement, ...]`: what only the recipe measures, such as the accuracy of the
    weights that come with it. It leaves out what it has no data or weights for, and claims about
    that are `missing`: data lie in the folder EDGEPORT_DATA; weights trained on data that must not
    be passed on are not shipped, and lie in the folder EDGEPORT_TRAINED. `exporter` names a
    function where the artifact is no nn.Module's; see `Written`.
    """

    name: str
    title: str
    paper: str
    variants: Mapping[str, str]
    default_variant: str
    inputs: Callable[..., tuple[TensorSpec, ...]]
    calibration: str
    options: tuple[Option, ...] = ()
    baseline: str | None = None
    comparisons: tuple[tuple[str, Mapping[str, int | float | str]], ...] = ()
    claims: tuple[Claim, ...] = ()
    check: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    evaluate: str | None = None
    exporter: str | None = None
    tolerance_db: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Written:
    """What a recipe's exporter wrote: `export(directory, seed, **options) -> Written`.

    The files in `directory` are those of the runtime "webgpu". For each sample, `feeds` has the
    inputs, arrays by name, and `outputs` what the torch reference gives for them, arrays in the
    order of the runtime's own: by them the files are judged. `computed` is the type that is
    computed in, `notes` are sentences, `measured` what else is known, such as the quality of what
    was trained.
    """

    computed: str
    feeds: tuple[Mapping[str, Any], ...]
    outputs: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    measured: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Fact(Serialisable):
    """A value about the world and where it was published."""

    value: Any
    source: str


@dataclass(frozen=True)
class Device(Serialisable):
    """A phone, board or laptop: which runtimes it takes, and facts, each with its source."""

    name: str
    aliases: tuple[str, ...]
    chipset: str
    chipset_aliases: tuple[str, ...]
    runtimes: Fact
    facts: Mapping[str, Fact]

    def fact(self, key: str) -> Any:
        """Returns the value of fact `key`, or None where it is not known."""
        known = self.facts.get(key)
        return None if known is None else known.value

    @property
    def values(self) -> dict[str, Any]:
        """The facts without their sources, as plain JSON values."""
        return {name: plain(fact.value) for name, fact in self.facts.items()}


@dataclass(frozen=True)
class PassResult:
    """What a pass made of an `onnx_ir.Model`: the model, how often it applied, and refusals."""

    name: str
    model: Any
    count: int
    refused: tuple[str, ...] = ()


Unit = Literal["npu", "gpu", "cpu"]
UNITS: tuple[Unit, ...] = ("npu", "gpu", "cpu")


@dataclass(frozen=True)
class NodeReport(Serialisable):
    """Where one node of a graph landed, and why."""

    node: str
    op: str
    unit: Unit
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Measurement(Serialisable):
    """One number with its provenance, its samples, and what it was measured on.

    `metric` may say of what: "sqnr_db:tflite". `noise_floor` is the share by which two runs of one
    thing differed where this was measured: a smaller difference is none. `self_reported` marks what
    a page sent in: nobody but its sender saw it run.
    """

    metric: str
    value: float
    unit: str
    provenance: Provenance
    samples: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    artifact_sha256: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()
    noise_floor: float | None = None
    self_reported: bool = False

    @property
    def origin(self) -> str:
        """The provenance in words: "device, self-reported" where a page sent it in."""
        return f"{self.provenance}, self-reported" if self.self_reported else self.provenance

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Measurement:
        """Returns the measurement that `to_dict` wrote."""
        interval = table["interval"]
        return cls(
            **{
                **table,
                "value": float(table["value"]),
                "samples": tuple(float(sample) for sample in table["samples"]),
                "interval": None if interval is None else (interval[0], interval[1]),
                "warnings": tuple(table["warnings"]),
            }
        )


@dataclass(frozen=True)
class Artifact(Serialisable):
    """One stage's file: what it is, how it was made, and how far it is from the reference.

    `path` is relative to the output directory; `computed` is the type really computed in, such as
    "fp32", "fp16" or "w8a16"; `runtime` is what "lower" and "run" are for. `steps` are (pass,
    count). `parity` holds `sqnr_db` and `max_abs` measurements against the reference, worst over
    samples and outputs.
    """

    stage: str
    path: str
    computed: str
    sha256: str
    bytes: int
    seconds: float
    steps: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    nodes: tuple[NodeReport, ...] = ()
    parity: tuple[Measurement, ...] = ()
    runtime: str = ""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Artifact:
        """Returns the artifact that `to_dict` wrote."""
        return cls(
            **{
                **table,
                "steps": tuple((name, count) for name, count in table["steps"]),
                "notes": tuple(table["notes"]),
                "nodes": tuple(NodeReport(**node) for node in table["nodes"]),
                "parity": tuple(Measurement.from_dict(one) for one in table["parity"]),
            }
        )


Outcome = Literal["pass", "fail", "missing", "inconclusive"]
"""Held; not held; nobody measured it, or not with an accepted provenance; measured, and within the
noise."""


@dataclass(frozen=True)
class Verdict(Serialisable):
    """What became of one claim, or of one number beside the baseline's.

    `subject` is the recipe or source; `limit` says in words what was asked (">= 30 dB"), `reason`
    what was found; `why` is the claim's own. `measurement` is the number that decided.
    """

    subject: str
    kind: Literal["claim", "regression"]
    metric: str
    outcome: Outcome
    limit: str
    reason: str
    why: str = ""
    measurement: Measurement | None = None
