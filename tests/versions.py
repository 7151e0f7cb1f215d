"""An output directory whose files all hold its version: a mixture of two is seen."""

from __future__ import annotations

import json
from pathlib import Path

from edgeport.staging import staged_directory

FILES = 8


def write_version(directory: Path, version: int) -> None:
    for index in range(FILES):
        (directory / f"f{index}").write_text(str(version) * 1000)
    files: dict[str, object] = {f"f{index}": {} for index in range(FILES)}
    content = {"generator": "edgeport", "version": version, "files": files}
    (directory / "manifest.json").write_text(json.dumps(content))


def read_version(directory: Path) -> int:
    """Returns the version of a directory after checking that every file of it is whole."""
    version = json.loads((directory / "manifest.json").read_text())["version"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [f"f{index}" for index in range(FILES)] + ["manifest.json"]
    )
    for index in range(FILES):
        assert (directory / f"f{index}").read_text() == str(version) * 1000
    return int(version)


def replace(target: Path, version: int) -> None:
    with staged_directory(target) as directory:
        write_version(directory, version)


def fail(target: Path, error: BaseException, name: str = "model.onnx") -> None:
    """Writes one file, then raises."""
    with staged_directory(target) as directory:
        (directory / name).write_text("half")
        raise error


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
