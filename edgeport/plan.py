"""Turns a request into a checked plan, before anything is imported, written or run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from edgeport import catalog
from edgeport.catalog import Source
from edgeport.devices import find_chipset, find_device
from edgeport.errors import InputError, UnknownName
from edgeport.runtimes import RUNTIMES, find_runtime
from edgeport.runtimes.worker import Limits
from edgeport.staging import check_target
from edgeport.types import PRECISIONS, Device, Precision

NPU = "qnn_context_binary"


@dataclass(frozen=True)
class Plan:
    """A checked request: nothing in it is unknown, missing or impossible on the device."""

    source: Source
    device: Device
    precision: Precision
    runtimes: tuple[str, ...]
    output_dir: Path
    seed: int
    calibration_samples: int
    parity_samples: int
    calibration_data: Path | None
    limits: Limits

    def describe(self) -> dict[str, Any]:
        """Returns the plan for the manifest and for `--dry-run`."""
        return {
            "source": self.source.describe(),
            "device": self.device.to_dict(),
            "options": {
                "precision": self.precision,
                "target_runtimes": list(self.runtimes),
                "seed": self.seed,
                "calib_samples": self.calibration_samples,
                "parity_samples": self.parity_samples,
                "calib_data": self.calibration_data.name if self.calibration_data else None,
            },
        }


class Options(TypedDict, total=False):
    """What an export takes beside its source and output directory, under the CLI's names."""

    device: str | None  # by name or alias
    chipset: str | None  # in place of device
    precision: str  # float (the NPU computes fp16), w8a8 or w8a16; default float
    target_runtimes: Sequence[str]  # default: all that the device takes
    variant: str | None  # of a recipe; default: the recipe's
    options: Mapping[str, Any] | None  # of a recipe, by name
    inputs: Sequence[str]  # a factory's, each as "name:float32[1,3,224,224]"
    weights: Path | str | None  # a factory's, safetensors or a torch file of tensors
    calib_data: Path | str | None  # folder of images or arrays, or one .npz
    calib_samples: int  # at most; default 32
    parity_samples: int  # inputs compared at each stage; default 1
    seed: int  # of random weights and inputs; default 0
    timeout_s: float  # for one step of the vendor's tools; default 900
    memory_gib: float  # the same; default 16


def make_plan(
    source: str,
    *,
    output_dir: Path | str,
    device: str | None = None,
    chipset: str | None = None,
    precision: str = "float",
    target_runtimes: Sequence[str] = (),
    variant: str | None = None,
    options: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    weights: Path | str | None = None,
    calib_data: Path | str | None = None,
    calib_samples: int = 32,
    parity_samples: int = 1,
    seed: int = 0,
    timeout_s: float = 900.0,
    memory_gib: float = 16.0,
) -> Plan:
    """Returns the checked plan of an export; imports and writes nothing.

    Raises InputError, UnknownName or OutputRefused with what is wrong and what to do.
    """
    if (device is None) == (chipset is None):
        raise InputError("name the target: --device NAME or --chipset NAME (edgeport list devices)")
    target = find_device(device) if device is not None else find_chipset(chipset or "")
    if precision not in PRECISIONS:
        raise InputError(f"{UnknownName('precision', precision, PRECISIONS)} {supported(target)}.")
    for flag, value in (("--calib-samples", calib_samples), ("--parity-samples", parity_samples)):
        if value < 1:
            raise InputError(f"{flag} {value}: at least 1 is needed")
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed {seed}: seeds are 0 or more, and below 2^32")
    for flag, amount in (("--timeout", timeout_s), ("--memory", memory_gib)):
        if not 0 < amount < math.inf:
            raise InputError(f"{flag} {amount}: give a number above 0")
    data = Path(calib_data) if calib_data is not None else None
    if data is not None and not data.exists():
        raise InputError(f"calibration data {data}: no such file or folder")
    plan = Plan(
        source=catalog.find_source(
            source,
            inputs=inputs,
            weights=Path(weights) if weights is not None else None,
            variant=variant,
            options=options,
        ),
        device=target,
        precision=precision,
        runtimes=_choose_runtimes(target, target_runtimes, precision),
        output_dir=Path(output_dir),
        seed=seed,
        calibration_samples=calib_samples,
        parity_samples=parity_samples,
        calibration_data=data,
        limits=Limits(timeout_s, int(memory_gib * 2**30)),
    )
    check_target(plan.output_dir)
    return plan


def supported(device: Device) -> str:
    """Returns in words which precisions the device takes with which runtime."""
    rows = [
        f"{runtime}: {', '.join(p for p in PRECISIONS if _computes(device, runtime, p))}"
        for runtime in RUNTIMES
        if runtime in device.runtimes.value
    ]
    return f"{device.name} takes {'; '.join(rows)}"


def _computes(device: Device, runtime: str, precision: Precision) -> bool:
    """Returns whether the runtime computes so on the device: an NPU runs float as fp16."""
    return runtime != NPU or precision != "float" or device.fact("fp16") is True


def _choose_runtimes(
    device: Device, wanted: Sequence[str], precision: Precision
) -> tuple[str, ...]:
    takes = [name for name in RUNTIMES if name in device.runtimes.value]
    for name in wanted:
        if find_runtime(name).name not in takes:
            raise InputError(f"{device.name} takes no {name}; {supported(device)}")
    chosen = tuple(find_runtime(name).name for name in takes if not wanted or name in wanted)
    for name in chosen:
        if not _computes(device, name, precision):
            raise InputError(
                f"{device.chipset} computes no 16-bit float on its NPU; {supported(device)}"
            )
    if NPU in chosen and device.fact("soc_model") is None:
        raise InputError(f"{device.name} has no soc_model: its compiler's id is not known")
    return chosen
