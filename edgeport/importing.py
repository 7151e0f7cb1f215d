"""Imports code by name: edgeport's own, and the user's from a folder, as it is now."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeport.errors import EdgeportError, InputError

_neighbours: set[str] = set()  # the modules that the last user's code imported from its folder


def load_function(reference: str) -> Callable[..., Any]:
    """Returns the function that a recipe names as "module:function".

    A recipe of the user's names its neighbours so: call it within `importable`.
    """
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


@contextlib.contextmanager
def user_code(name: str) -> Iterator[None]:
    """Turns what the user's code raises into an InputError of one line; `name` says whose it is."""
    try:
        yield
    except (EdgeportError, KeyboardInterrupt):
        raise
    except BaseException as error:  # it may raise anything, and leave by SystemExit
        line = next(iter(str(error).splitlines()), "")
        raise InputError(f"{name} raised {type(error).__name__}: {line}") from error


def load_file(path: Path) -> ModuleType:
    """Returns the module of a file, run anew; call it within `importable`."""
    name = f"edgeport_source_{path.stem}"  # never the name of a module that exists
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Lets code import what lies in the folder as it is now, and nothing after it.

    What earlier code imported so is forgotten: a notebook that edits a layer and exports again,
    or exports from two folders with a layers.py each, must not get the module it had before.
    A folder of None changes nothing.
    """
    if folder is None:
        yield
        return
    for name in _neighbours:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    before, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a stale .pyc passes for a file edited within its second
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        new = set(sys.modules) - before
        _neighbours.clear()
        _neighbours.update(name for name in new if _lies_in(folder, name))


def _lies_in(folder: Path, name: str) -> bool:
    """Returns whether a module is the user's: in the folder, but not in an environment there."""
    file = getattr(sys.modules[name], "__file__", None)
    if not isinstance(file, str) or name.partition(".")[0] in ("edgeport", "edgeport_recipes"):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(folder) and "site-packages" not in path.parts
