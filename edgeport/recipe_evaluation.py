"""What only a recipe can measure, by its function `evaluate`: the accuracy of its weights, say.

Remembered in the cache until something changes that it may depend on: edgeport's code and the
recipes', the installed packages, the machine, every file in the recipe's folder and what those
share, the folders that the environment names, and whatever else it read through Python.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeport.cache import Cache, default_root
from edgeport.catalog import own_recipes, recipe_file
from edgeport.errors import InputError
from edgeport.fingerprint import SourceTracker, file_sha256, unchanged
from edgeport.footprint import base_key
from edgeport.importing import importable, load_function, user_code
from edgeport.measure import machine_text
from edgeport.stages import host_threads
from edgeport.types import PROVENANCES, Measurement, Recipe

FOLDERS = ("EDGEPORT_DATA", "EDGEPORT_TRAINED")
"""Environment variables of folders: evaluation data; weights that must not be shipped."""
_LARGE_BYTES = 64 << 20  # such a file is known by its size and time, and not read


def evaluate_recipe(
    recipe: Recipe, *, fresh: bool = False, progress: Callable[[str], None] = lambda step: None
) -> tuple[Measurement, ...]:
    """Returns what the recipe's `evaluate` gives, () for a recipe without one.

    With `fresh` it is measured again. Raises InputError for a user's recipe whose function fails,
    and for anything but Measurements; what edgeport's own raises passes through.
    """
    if recipe.evaluate is None:
        return ()
    with Cache(default_root()) as cache:
        key = _key(recipe)
        known = None if fresh else cache.recall("evaluate", key)
        if known is None or not unchanged(known["files"]):
            progress("evaluate: what only the recipe measures")
            with SourceTracker() as used:
                measured = _call(recipe)
            known = {"measured": [one.to_dict() for one in measured], "files": used.files}
            cache.remember("evaluate", key, known)
        return tuple(Measurement.from_dict(one) for one in known["measured"])


def _call(recipe: Recipe) -> tuple[Measurement, ...]:
    """Calls the function; what it prints goes to stderr."""
    assert recipe.evaluate is not None
    folder = _users_folder(recipe)
    # A mistake in edgeport's own recipe is no bad input.
    guard = contextlib.nullcontext() if folder is None else user_code(f"evaluate of {recipe.name}")
    with guard, importable(folder), contextlib.redirect_stdout(sys.stderr):
        given = load_function(recipe.evaluate)()
    return _checked(given, recipe.name)


def _users_folder(recipe: Recipe) -> Path | None:
    """Returns the folder of a user's recipe, None for edgeport's own."""
    own = own_recipes()
    return own[recipe.name][1].parent if recipe.name in own else None


def _checked(given: Any, name: str) -> tuple[Measurement, ...]:
    """Returns the measurements; raises InputError for anything else, and for one number twice."""
    where = f"evaluate of {name}"
    if not isinstance(given, (tuple, list)):
        kind = type(given).__name__
        raise InputError(f"{where} gave {kind}, not a tuple of edgeport.types.Measurement")
    seen: set[tuple[str, str]] = set()
    for one in given:
        if not isinstance(one, Measurement):
            kind = type(one).__name__
            raise InputError(f"{where} gave a tuple with {kind}, where each is a Measurement")
        if one.provenance not in PROVENANCES or not isinstance(one.value, (int, float)):
            raise InputError(
                f"{where}: {one.metric} is {one.value!r} ({one.provenance}); give a float and a"
                f" provenance: {', '.join(PROVENANCES)}"
            )
        if (one.metric, one.provenance) in seen:
            raise InputError(f"{where} gave {one.metric} ({one.provenance}) twice; name what of")
        seen.add((one.metric, one.provenance))
    return tuple(given)


# What it may depend on


def _key(recipe: Recipe) -> Mapping[str, Any]:
    folder = recipe_file(recipe.name).parent
    shared = folder.parent / "_shared"
    return {
        "base": base_key(),
        "machine": machine_text(host_threads()),  # rounding, and where it times something
        "function": recipe.evaluate,
        "recipe": _contents(folder),
        "shared": _contents(shared) if _users_folder(recipe) is None else {},
        "named": {name: _named(name) for name in FOLDERS},
    }


def _named(variable: str) -> Mapping[str, Any]:
    """Returns the value of an environment variable, and what is in the folder that it names."""
    value = os.environ.get(variable, "")
    return {"value": value, "files": _contents(Path(value)) if value else {}}


def _contents(folder: Path) -> dict[str, Any]:
    """Returns by name each file's sha256, or size and time of a large one; no hidden folders'."""
    return {
        str(file.relative_to(folder)): _state(file) for file in _files(folder) if file.is_file()
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files below, also behind links to folders, which may form a circle."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [one for one in folders if one[0] != "." and one != "__pycache__"]
        yield from (Path(place, name) for name in names)


def _state(file: Path) -> str | list[int]:
    stat = file.stat()
    large = stat.st_size > _LARGE_BYTES
    return [stat.st_size, stat.st_mtime_ns] if large else file_sha256(file)
