"""The user's own settings: `edgeport.toml` in the current directory or one above it.

    [recipes]
    paths = ["methods/mine"]          a folder with a recipe.py, or a folder of such folders

    [devices]
    paths = ["boards", "phone.toml"]  a profile, or a folder of profiles

    [runtimes.tflite]
    python = "venv/bin/python"        the interpreter that has what this runtime needs

Paths are relative to the file that names them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeport.errors import InputError, UnknownName
from edgeport.types import PROVENANCES, Claim

NAME = "edgeport.toml"
_SECTIONS = ("recipes", "devices")
_RUNTIMES = "runtimes"
_CLAIM = "claim"


@dataclass(frozen=True)
class ClaimTable:
    """One `[[claim]]`: what is claimed, of which source at which settings.

    `baseline` is another source, whose time over this one's is "speedup"; `evaluate` a metric
    function for the samples in `data`; `tolerance` by how much its value may fall.
    """

    claim: Claim
    source: str
    device: str
    folder: Path
    precision: str | None = None
    target_runtime: str = ""
    calib_data: Path | None = None
    baseline: str = ""
    data: Path | None = None
    evaluate: str = ""
    tolerance: float | None = None

    @property
    def subject(self) -> str:
        """What is judged together: the source at its settings."""
        runtime = f", {self.target_runtime}" if self.target_runtime else ""
        return f"{self.source} {self.precision or 'float'} on {self.device}{runtime}"

    def located(self, text: str) -> str:
        """Returns a source or function whose file lies beside edgeport.toml with its whole path."""
        name, colon, rest = text.partition(":")
        there = self.folder / name
        return f"{there}{colon}{rest}" if name and there.exists() else text


@dataclass(frozen=True)
class Config:
    """What `edgeport.toml` says: the recipe.py files and the device profiles, in its order.

    `interpreters` maps a runtime's name to the Python that serves it in place of this one.
    """

    file: Path | None = None
    recipes: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    interpreters: Mapping[str, Path] = field(default_factory=dict)
    claims: tuple[ClaimTable, ...] = ()


def load_config(start: Path | None = None) -> Config:
    """Returns the settings of the nearest edgeport.toml, in `start` or above.

    `start` is the current directory if it is not given.

    Raises InputError naming the file and the key that is unknown, of the wrong type, or leads to
    nothing.
    """
    folder = (start or Path.cwd()).resolve()
    file = next((f for d in (folder, *folder.parents) if (f := d / NAME).is_file()), None)
    if file is None:
        return Config()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    _check_keys(table, (*_SECTIONS, _RUNTIMES, _CLAIM), str(file))
    named = {section: _paths(table.get(section, {}), file, section) for section in _SECTIONS}
    return Config(
        file,
        tuple(found for path in named["recipes"] for found in _files(path, "recipe.py", file)),
        tuple(found for path in named["devices"] for found in _files(path, "*.toml", file)),
        _interpreters(table.get(_RUNTIMES, {}), file),
        _claims(table.get(_CLAIM, []), file),
    )


# [[claim]]

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "source": str,
    "device": str,
    "precision": str,
    "target_runtime": str,
    "calib_data": str,
    "metric": str,
    "op": str,
    "limit": (int, float),
    "provenance": list,
    "why": str,
    "baseline": str,
    "data": str,
    "evaluate": str,
    "tolerance": (int, float),
}
_NEEDED = ("source", "device", "metric", "op", "limit", "provenance")


def _claims(tables: Any, file: Path) -> tuple[ClaimTable, ...]:
    if not isinstance(tables, list):
        raise InputError(f"{file}: claims are tables of a list: [[claim]]")
    return tuple(_claim(table, file, number) for number, table in enumerate(tables, 1))


def _claim(table: Any, file: Path, number: int) -> ClaimTable:
    where = f"{file} [[claim]] {number}"
    _check_keys(table, _KINDS, where)
    for key in _NEEDED:
        if key not in table:
            raise InputError(f"{where}: {key} is missing; it takes {', '.join(_NEEDED)}")
    for key, value in table.items():
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise InputError(f"{where}: {key} {value!r} is of the wrong type")
    if table["op"] not in ("<=", ">="):
        raise InputError(f"{where}: op {table['op']!r} is neither <= nor >=")
    for one in table["provenance"]:
        if one not in PROVENANCES:
            raise UnknownName(f"provenance in {where}:", str(one), PROVENANCES)
    if bool(table.get("data")) != bool(table.get("evaluate")):
        raise InputError(f"{where}: data and evaluate belong together")
    beside = {key: file.parent / table[key] for key in ("calib_data", "data") if key in table}
    claim = Claim(
        table["metric"],
        table["op"],
        float(table["limit"]),
        tuple(table["provenance"]),
        table.get("why", ""),
    )
    plain = ("source", "baseline", "evaluate", "device", "precision", "target_runtime", "tolerance")
    return ClaimTable(
        claim=claim,
        folder=file.parent,
        **{key: table[key] for key in plain if key in table},
        **beside,
    )


def _interpreters(section: Any, file: Path) -> dict[str, Path]:
    """Returns runtime -> interpreter; symbolic links stay: a virtual environment's is one."""
    if not isinstance(section, dict):
        raise InputError(f"{file} [{_RUNTIMES}]: expected tables, as [runtimes.tflite]")
    found = {}
    for name, table in section.items():
        _check_keys(table, ("python",), f"{file} [{_RUNTIMES}.{name}]")
        named = table.get("python")
        if not isinstance(named, str):
            raise InputError(f'{file} [{_RUNTIMES}.{name}]: python is a path, as "venv/bin/python"')
        python = Path(os.path.abspath(file.parent / Path(named).expanduser()))
        if not (python.is_file() and os.access(python, os.X_OK)):
            raise InputError(f"{file} [{_RUNTIMES}.{name}]: {python} is no interpreter that runs")
        found[name] = python
    return found


def _check_keys(table: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{where}: expected a table")
    for key in table:
        if key not in known:
            raise UnknownName(f"key in {where}", key, known)


def _paths(section: Any, file: Path, name: str) -> list[Path]:
    _check_keys(section, ("paths",), f"{file} [{name}]")
    paths = section.get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InputError(f'{file} [{name}]: paths is a list of strings, as ["folder"]')
    return [file.parent / path for path in paths]


def _files(path: Path, pattern: str, file: Path) -> list[Path]:
    """Returns the files that a path means: itself, those in it, those in its folders."""
    if path.is_file() and path.match(pattern):
        return [path.resolve()]
    found = sorted(path.glob(pattern)) or sorted(path.glob(f"*/{pattern}"))
    if not found:
        missing = "holds no" if path.is_dir() else "is no folder with a"
        raise InputError(f"{file}: {path} {missing} {pattern}")
    return [one.resolve() for one in found]
