"""Imports torchvision beside a torch that its own operators were not built for.

The package index has torchvision built for one torch only. Beside another (a CPU build of torch,
for one) its shared library does not load, and `import torchvision`, which registers shapes for its
operators, raises "operator torchvision::nms does not exist"; timm and some of transformers import
it. Its models and transforms need none of these operators.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from typing import Any

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST = 64  # far more operators than torchvision has
_declared: list[Any] = []  # a torch.library.Library lives as long as it is referenced


def import_torchvision() -> None:
    """Imports torchvision, declaring each operator that it lacks; without torchvision, nothing.

    The declared operators have no kernel: calling one raises torch's NotImplementedError.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    for _ in range(_MOST):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            _declare(missing[1])
    raise RuntimeError(f"torchvision lacks more than {_MOST} operators")


def _declare(name: str) -> None:
    from torch.library import Library

    if not _declared:
        _declared.append(Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
    _declared[0].define(f"{name}() -> ()")
    for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        with contextlib.suppress(KeyError):
            del sys.modules[module]  # half imported
