"""Tensors and facts about them in one safetensors file, replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport_recipes._shared.files import write_bytes

from edgeport.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_FACTS = "facts"
_MOST_BYTES = 1 << 20  # of a header: one of ten thousand tensors is smaller


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replaces the file; `facts` are plain JSON values."""
    from safetensors.torch import save

    whole = {name: value.detach().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(whole, {_FACTS: json.dumps(dict(facts), sort_keys=True)}))


def read_facts(path: Path) -> dict[str, Any]:
    """Returns the facts, read without torch.

    Raises InputError for a file that cannot be read and for one that `save_tensors` did not write.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= _MOST_BYTES else b""
        found = json.loads(json.loads(header)["__metadata__"][_FACTS])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: broken, or of another program; make it anew.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: broken, or of another program; make it anew.")
    return found


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors; raises InputError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: broken ({error}); make it anew.") from error


def check_origin(path: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises InputError, with the names, where a checkpoint is of a run with other settings."""
    asked = json.loads(json.dumps(dict(wanted)))
    if changed := sorted(name for name in asked if asked[name] != found.get(name)):
        raise InputError(
            f"{path}: is of a run with another {', '.join(changed)}; give the same, or another -o."
        )
