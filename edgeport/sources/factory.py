"""Calls the user's factory, from a file or a module."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeport.catalog import Source
from edgeport.errors import UnknownName
from edgeport.importing import importable, load_file, user_code


def call_factory(source: Source) -> Any:
    """Returns what the factory returns; raises InputError when it or its import fails."""
    with user_code(source.text), importable(Path.cwd() if source.module else source.folder):
        module = _load(source)
        factory = getattr(module, source.attribute, None)
        if not callable(factory):
            names = [name for name, value in vars(module).items() if callable(value)]
            where = source.module or Path(str(source.path)).name
            raise UnknownName(f"factory in {where}", source.attribute, names)
        return factory()


def _load(source: Source) -> ModuleType:
    if source.module:
        if source.module.partition(".")[0] == "torchvision":
            from edgeport.sources.torchvision_operators import import_torchvision

            import_torchvision()
        return importlib.import_module(source.module)
    assert source.path is not None
    return load_file(source.path)
