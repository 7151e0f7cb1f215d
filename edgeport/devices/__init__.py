"""Device profiles: one TOML file each, every fact with its source; unknown keys are errors."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from edgeport.config import load_config
from edgeport.errors import InputError, UnknownName
from edgeport.types import Device, Fact

_KEYS = {"name", "aliases", "chipset", "chipset_aliases", "runtimes", "facts"}
_FACTS = {
    "soc_model",  # the id QNN's compiler takes
    "soc_name",
    "htp_arch",  # Hexagon tensor processor version, 75 for v75
    "fp16",  # whether the NPU computes in 16-bit float
    "vtcm_bytes",
    "ram_bytes",  # the least that the device is sold with
    "dram_bandwidth_bytes_per_s",
    "peak_int8_ops_per_s",
    "android_api",
}


def parse_device(text: str, where: str) -> Device:
    """Returns the device that a profile's TOML text describes.

    Raises InputError naming `where` and the key that is unknown, missing or without a source.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from None
    _check_keys(table, _KEYS, _KEYS, where)
    facts = table["facts"]
    _check_keys(facts, _FACTS, set(), f"{where} [facts]")
    for name, fact in facts.items():
        _check_keys(fact, {"value", "source"}, {"value", "source"}, f"{where} [facts.{name}]")
        _check_source(fact, f"{where} [facts.{name}]")
    runtimes = table["runtimes"]
    _check_keys(runtimes, {"values", "source"}, {"values", "source"}, f"{where} [runtimes]")
    _check_source(runtimes, f"{where} [runtimes]")
    for key in ("aliases", "chipset_aliases"):
        if not isinstance(table[key], list):
            raise InputError(f"{where}: {key} is no list")
    for key in ("name", "chipset"):
        if not isinstance(table[key], str) or not table[key]:
            raise InputError(f"{where}: {key} is no text")
    return Device(
        name=table["name"],
        aliases=tuple(table["aliases"]),
        chipset=table["chipset"],
        chipset_aliases=tuple(table["chipset_aliases"]),
        runtimes=Fact(tuple(runtimes["values"]), runtimes["source"]),
        facts={name: Fact(fact["value"], fact["source"]) for name, fact in facts.items()},
    )


def _check_keys(table: Any, known: set[str], required: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{where}: expected a table")
    if unknown := sorted(set(table) - known):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if missing := sorted(required - set(table)):
        raise InputError(f"{where}: missing key {missing[0]!r}")


def _check_source(fact: Any, where: str) -> None:
    if not isinstance(fact["source"], str) or not fact["source"].strip():
        raise InputError(f"{where}: the source is empty")


def all_devices() -> tuple[Device, ...]:
    """Returns every profile, edgeport's and those that edgeport.toml names, ordered by name.

    Raises InputError when one of the user's has the name or an alias of another.
    """
    devices = list(shipped_devices())
    for file in load_config().devices:
        own = parse_device(file.read_text(encoding="utf-8"), str(file))
        for device in devices:
            if shared := sorted(_names(own) & _names(device)):
                raise InputError(f"{file}: {shared[0]!r} already names {device.name}; rename it")
        devices.append(own)
    return tuple(sorted(devices, key=lambda device: device.name))


@cache
def shipped_devices() -> tuple[Device, ...]:
    """Returns the profiles that come with edgeport."""
    files = [f for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")]
    return tuple(parse_device(file.read_text(encoding="utf-8"), file.name) for file in files)


def _names(device: Device) -> set[str]:
    return {name.lower() for name in (device.name, *device.aliases)}


def find_device(name: str) -> Device:
    """Returns the device of this name or alias, whatever the case; raises UnknownName."""
    for device in all_devices():
        if name.lower() in _names(device):
            return device
    aliases = [alias for device in all_devices() for alias in device.aliases]
    raise UnknownName("device", name, (d.name for d in all_devices()), aliases)


def find_chipset(name: str) -> Device:
    """Returns the first device with this chipset, by AI Hub's name or an alias."""
    for device in all_devices():
        if name.lower() in {n.lower() for n in (device.chipset, *device.chipset_aliases)}:
            return device
    aliases = [alias for device in all_devices() for alias in device.chipset_aliases]
    raise UnknownName("chipset", name, (d.chipset for d in all_devices()), aliases)
