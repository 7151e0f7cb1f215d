"""Files that are replaced whole."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from edgeport.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file `path`; readers and a killed writer leave the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose where it can be written.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_bytes(path: Path) -> bytes:
    """Returns the file's content; raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the file's object; raises InputError where it holds none."""
    try:
        value = json.loads(read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; write it again.")
    return value


def find_data(name: str) -> Path:
    """Returns a file of the folder EDGEPORT_DATA; raises InputError where it is not there."""
    folder = os.environ.get("EDGEPORT_DATA")
    if not folder:
        raise InputError(f"set EDGEPORT_DATA to the folder that holds {name}")
    path = Path(folder, name)
    if not path.exists():
        raise InputError(f"{path}: not there; check EDGEPORT_DATA")
    return path
