"""Turns a request into a checked plan, before anything is imported, written or run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from edgeport import catalog
from edgeport.boundary import Boundary, parse_normalisation
from edgeport.catalog import Source
from edgeport.devices import find_chipset, find_device
from edgeport.errors import InputError, UnknownName
from edgeport.quantize.config import METHODS, CalibrationMethod, Request, levels_above
from edgeport.runtimes import RUNTIMES, Runtime, find_runtime
from edgeport.runtimes.worker import Limits
from edgeport.staging import check_target
from edgeport.types import CONVERTER_PRECISIONS, PRECISIONS, Device, Precision

if TYPE_CHECKING:
    from edgeport.passes import Target

OPTIMIZED, CONVERTED = "optimized.onnx", "optimized_gpu.onnx"
WRITTEN = "webgpu"  # the runtime whose files a recipe's exporter writes
BROWSER = "browser"  # the device where none is named for it
AUTO_SQNR_DB = 35.0  # what --precision auto holds where no --min-sqnr is given
WIDE_WEIGHTS_ARCH = 73  # the first Hexagon version whose compiler takes 16-bit weights


@dataclass(frozen=True)
class Plan:
    """A checked request: nothing in it is unknown, missing or impossible on the device."""

    source: Source
    device: Device
    precision: Precision
    runtimes: tuple[str, ...]
    output_dir: Path | None
    seed: int
    calibration_samples: int
    parity_samples: int
    calibration_data: Path | None
    limits: Limits
    boundary: Boundary
    quantize_io: bool
    quantization: Request | None  # None for float
    precision_given: bool = True
    own_precision: str = ""  # of a graph that is quantized already, and kept so

    @property
    def passes(self) -> Target:
        """Returns which tuple of passes the graph takes that every runtime shares."""
        if self.own_precision:
            return "kept"
        if not on_npu(self.runtimes):
            return "any"
        return "npu float" if self.precision == "float" else "npu integer"

    @property
    def converted(self) -> tuple[str, ...]:
        """The runtimes whose converter quantizes by itself: they have passes of their own."""
        return tuple(name for name in self.runtimes if RUNTIMES[name].compiles == "rewritten")

    @property
    def written(self) -> bool:
        """Whether the recipe's exporter writes the files."""
        return self.runtimes == (WRITTEN,)

    @property
    def shared(self) -> tuple[str, ...]:
        """The runtimes that take the same ONNX file, quantized where the precision says so."""
        return tuple(name for name in self.runtimes if name not in self.converted)

    def computed_by(self, runtime: str) -> str:
        """Returns the type that the device computes in."""
        if self.own_precision:
            return self.own_precision
        own = {"float": RUNTIMES[runtime].computed, "auto": "mixed"}
        return own.get(self.precision, self.precision)

    @property
    def precision_text(self) -> str:
        """Returns the precision in words: that of a graph that is kept is its own."""
        return f"{self.own_precision}, as it is" if self.own_precision else self.precision

    def _tolerance_db(self) -> float | None:
        """Returns the least SQNR that the source's recipe accepts, if it states one."""
        recipe = self.source.recipe
        return None if recipe is None else recipe.tolerance_db.get(self.precision)

    def describe(self) -> dict[str, Any]:
        """Returns the plan for the manifest and for `--dry-run`."""
        return {
            "source": self.source.describe(),
            "device": self.device.to_dict(),
            "options": {
                "precision": self.precision_text,
                "target_runtimes": list(self.runtimes),
                "seed": self.seed,
                "calib_samples": self.calibration_samples,
                "parity_samples": self.parity_samples,
                "boundary": self.boundary.to_dict(),
                "quantize_io": self.quantize_io,
                "calib_data": self.calibration_data.name if self.calibration_data else None,
                "calibration": self.quantization.method if self.quantization else None,
                "min_sqnr": self.quantization.least_db if self.quantization else None,
                "tolerance_db": self._tolerance_db(),
            },
        }


def keep_quantized(plan: Plan, own: str) -> Plan:
    """Returns the plan for a model that is quantized to `own` already: nothing is quantized again.

    Raises InputError where another precision, or what needs the float model, was asked for.
    """
    name = plan.source.text
    if plan.precision_given and plan.precision != own:
        raise InputError(
            f"{name} is quantized already ({own}), which --precision {plan.precision} contradicts:"
            " leave --precision out to keep it as it is, or give the float model"
        )
    if plan.quantize_io:
        raise InputError(
            f"{name} is quantized already and kept as it is: --quantize-io needs the float model"
        )
    if plan.converted:
        raise InputError(
            f"{name} is quantized already: the converter of {plan.converted[0]} needs the float"
            " model, and quantizes it by itself"
        )
    # "auto" is the precision of a compiler that takes integers, and floats where the chip has them.
    return replace(plan, precision="auto", quantization=None, own_precision=own)


class Options(TypedDict, total=False):
    """What an export takes beside its source and output directory, under the CLI's names."""

    device: str | None  # by name or alias
    chipset: str | None  # in place of device
    # float (the NPU computes fp16), w8a8, w8a16, w4a16 or auto; w8-dynamic, w8 and w4 where a
    # converter quantizes; default: float, and what a graph that is quantized already has
    precision: str | None
    calibration: str  # minmax, percentile, mse or entropy; default minmax
    min_sqnr: float | None  # dB: layers get more bits until the outputs hold it; auto: 35
    target_runtimes: Sequence[str]  # default: all that the device takes
    variant: str | None  # of a recipe; default: the recipe's
    options: Mapping[str, Any] | None  # of a recipe, by name
    inputs: Sequence[str]  # each as "name:float32[1,3,224,224]"; a recipe has its own
    weights: Path | str | None  # of a module, safetensors or a torch file of tensors
    pretrained: bool  # download the weights that timm or the hub publishes; default False
    offline: bool  # refuse the network while the model is built; default False
    calib_data: Path | str | None  # folder of images or arrays, or one .npz
    calib_samples: int  # at most; default 32
    parity_samples: int  # inputs compared at each stage; default 1
    channel_last_input: Sequence[str]  # names of the inputs that the app gives as N x ... x C
    normalize: str | None  # "MEAN,STD": the app gives 0..1, the model takes (x - mean) / std
    quantize_io: bool  # inputs and outputs are the integers themselves; default False
    seed: int  # of random weights and inputs; default 0
    timeout_s: float  # for one step of the vendor's tools; default 900
    memory_gib: float  # the same; default 16


def make_plan(
    source: str,
    *,
    output_dir: Path | str | None = None,
    device: str | None = None,
    chipset: str | None = None,
    precision: str | None = None,
    calibration: str = "minmax",
    min_sqnr: float | None = None,
    target_runtimes: Sequence[str] = (),
    variant: str | None = None,
    options: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    weights: Path | str | None = None,
    pretrained: bool = False,
    offline: bool = False,
    calib_data: Path | str | None = None,
    calib_samples: int = 32,
    parity_samples: int = 1,
    channel_last_input: Sequence[str] = (),
    normalize: str | None = None,
    quantize_io: bool = False,
    seed: int = 0,
    timeout_s: float = 900.0,
    memory_gib: float = 16.0,
) -> Plan:
    """Returns the checked plan of an export, or of a command that writes no directory.

    Imports and writes nothing.
    Raises InputError, UnknownName or OutputRefused with what is wrong and what to do.
    """
    found = catalog.find_source(
        source,
        inputs=inputs,
        weights=Path(weights) if weights is not None else None,
        variant=variant,
        options=options,
        pretrained=pretrained,
        offline=offline,
    )
    if found.writes and tuple(target_runtimes) in ((), (WRITTEN,)):
        target_runtimes = (WRITTEN,)
        device = device if device or chipset else BROWSER
    if (device is None) == (chipset is None):
        raise InputError("name the target: --device NAME or --chipset NAME (edgeport list devices)")
    target = find_device(device) if device is not None else find_chipset(chipset or "")
    given, precision = precision is not None, precision or "float"
    known = (*PRECISIONS, "auto", *CONVERTER_PRECISIONS)
    if precision not in known:
        raise InputError(f"{UnknownName('precision', precision, known)} {supported(target)}.")
    if quantize_io and precision == "float":
        raise InputError("--quantize-io needs a quantized model: add --precision w8a8 or w8a16")
    _check_counts({"--calib-samples": calib_samples, "--parity-samples": parity_samples})
    _check_seed(seed)
    check_amounts({"--timeout": timeout_s, "--memory": memory_gib})
    data = Path(calib_data) if calib_data is not None else None
    if data is not None and not data.exists():
        raise InputError(f"calibration data {data}: no such file or folder")
    runtimes = _choose_runtimes(target, target_runtimes, precision)
    _check_written(found, runtimes)
    if quantize_io and all(RUNTIMES[name].compiles == "rewritten" for name in runtimes):
        raise InputError(f"--quantize-io: {runtimes[0]}'s inputs and outputs stay floats")
    plan = Plan(
        source=found,
        device=target,
        precision=precision,
        runtimes=runtimes,
        output_dir=Path(output_dir) if output_dir is not None else None,
        seed=seed,
        calibration_samples=calib_samples,
        parity_samples=parity_samples,
        calibration_data=data,
        limits=Limits(timeout_s, int(memory_gib * 2**30)),
        boundary=_boundary(channel_last_input, normalize),
        quantize_io=quantize_io,
        quantization=_quantization(target, runtimes, precision, calibration, min_sqnr),
        precision_given=given,
    )
    if plan.output_dir is not None:
        check_target(plan.output_dir)
    return plan


def _check_written(source: catalog.Source, runtimes: Sequence[str]) -> None:
    """Raises InputError where files that only a recipe's exporter writes were asked for."""
    if WRITTEN in runtimes and not source.writes:
        raise InputError(
            f"{source.text}: no recipe that writes {WRITTEN} files; leave --target-runtime out"
        )
    if WRITTEN in runtimes and len(runtimes) > 1:
        raise InputError(
            f"{WRITTEN} is written by the recipe, and the others are compiled: export it by itself"
        )


def _check_counts(counts: Mapping[str, int]) -> None:
    for flag, value in counts.items():
        if value < 1:
            raise InputError(f"{flag} {value}: at least 1 is needed")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed {seed}: seeds are 0 or more, and below 2^32")


def check_amounts(amounts: Mapping[str, float]) -> None:
    """Raises InputError for a flag whose value is no positive finite number."""
    for flag, amount in amounts.items():
        if not 0 < amount < math.inf:
            raise InputError(f"{flag} {amount}: give a number above 0")


def _boundary(channel_last_input: Sequence[str], normalize: str | None) -> Boundary:
    mean, std = parse_normalisation(normalize) if normalize is not None else ((), ())
    return Boundary(tuple(channel_last_input), mean, std)


def supported(device: Device) -> str:
    """Returns in words which precisions the device takes with which runtime."""
    rows = [
        f"{name}: {', '.join(p for p in runtime.precisions if _computes(device, runtime, p))}"
        for name, runtime in RUNTIMES.items()
        if name in device.runtimes.value
    ]
    return f"{device.name} takes {'; '.join(rows)}"


def on_npu(runtimes: Sequence[str]) -> bool:
    """Returns whether a vendor's NPU compiler takes the graph that the runtimes share."""
    return any(RUNTIMES[name].passes == "npu" for name in runtimes)


def _quantization(
    device: Device,
    runtimes: tuple[str, ...],
    precision: Precision,
    calibration: str,
    min_sqnr: float | None,
) -> Request | None:
    """Returns how to quantize; raises InputError for settings that mean nothing together."""
    method: CalibrationMethod | None = next((one for one in METHODS if one == calibration), None)
    if method is None:
        raise UnknownName("calibration", calibration, METHODS)
    if precision == "float":
        if min_sqnr is not None:
            raise InputError("--min-sqnr: float is not quantized; name --precision auto with it")
        return None
    if all(RUNTIMES[name].compiles == "rewritten" for name in runtimes):
        if min_sqnr is not None:
            raise InputError(
                f"--min-sqnr: {runtimes[0]}'s own converter quantizes, and knows no layer by layer"
            )
        if method != "minmax":
            raise InputError(f"--calibration {method}: {runtimes[0]}'s own converter takes minmax")
        return None
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise InputError(f"--min-sqnr {min_sqnr}: give a number of dB")
    npu = on_npu(runtimes)
    is_wide = (device.fact("htp_arch") or 0) >= WIDE_WEIGHTS_ARCH
    start, levels = levels_above(
        precision,
        wide_weights=not npu or is_wide,
        floats=not npu or device.fact("fp16") is True,
    )
    if min_sqnr is not None and not levels:
        raise InputError(
            f"--min-sqnr: {precision} on {device.name} has no wider weights to promote layers to;"
            " use --precision auto"
        )
    least_db = AUTO_SQNR_DB if precision == "auto" and min_sqnr is None else min_sqnr
    return Request(start, method, least_db, levels, signed_operand=npu and is_wide)


def _computes(device: Device, runtime: Runtime, precision: Precision) -> bool:
    """Returns whether the runtime computes so on the device: an NPU runs float as fp16."""
    takes = precision in runtime.precisions
    return takes and (
        runtime.passes != "npu" or precision != "float" or device.fact("fp16") is True
    )


def _choose_runtimes(
    device: Device, wanted: Sequence[str], precision: Precision
) -> tuple[str, ...]:
    takes = [runtime for name, runtime in RUNTIMES.items() if name in device.runtimes.value]
    for name in wanted:
        if find_runtime(name) not in takes:
            raise InputError(f"{device.name} takes no {name}; {supported(device)}")
    chosen = [one for one in takes if one.name in wanted] or _defaults(takes, precision)
    for runtime in chosen:
        find_runtime(runtime.name)
        if precision not in runtime.precisions:
            raise InputError(f"{runtime.name} has no {precision}; {supported(device)}")
        if not _computes(device, runtime, precision):
            raise InputError(
                f"{device.chipset} computes no 16-bit float on its NPU; {supported(device)}"
            )
    names = tuple(runtime.name for runtime in chosen)
    if on_npu(names) and device.fact("soc_model") is None:
        raise InputError(f"{device.name} has no soc_model: its compiler's id is not known")
    return names


def _defaults(takes: Sequence[Runtime], precision: Precision) -> list[Runtime]:
    """Returns what is made where no runtime is named: those of the NPU and ONNX, or a converter."""
    able = [runtime for runtime in takes if precision in runtime.precisions]
    return [runtime for runtime in able if runtime.default] or able[:1]
