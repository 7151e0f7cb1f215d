"""The files of an export that a browser may have: those that its manifest lists, and no other."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from edgeport.errors import InputError
from edgeport.fingerprint import file_sha256
from edgeport.running import load_manifest
from edgeport.staging import MANIFEST

PAGE = "index.html"
PROGRAM = "program.json"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".glsl": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wgsl": "text/plain; charset=utf-8",
}
_OTHER_TYPE = "application/octet-stream"

Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """One file: its name in the export, and which file lay there when the serving began."""

    name: str
    path: Path
    identity: Identity

    @property
    def content_type(self) -> str:
        """The MIME type, with which a browser runs a script and nothing else."""
        return _TYPES.get(self.path.suffix.lower(), _OTHER_TYPE)

    def open(self) -> BinaryIO | None:
        """Returns the file, opened; None where another lies there by now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        file = os.fdopen(descriptor, "rb")
        if _identity(os.fstat(descriptor)) == self.identity:
            return file
        file.close()
        return None


@dataclass(frozen=True)
class Site:
    """An export's page: its files by URL path, whose export it is, and its program's sha256."""

    directory: Path
    name: str
    entries: Mapping[str, Entry]
    program_sha256: str

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(entry.identity[2] for entry in self.entries.values())

    def find(self, url_path: str) -> Entry | None:
        """Returns the file that a decoded URL path names: a look-up, so nothing is outside it."""
        return self.entries.get(PAGE if url_path == "/" else url_path.removeprefix("/"))


def open_site(directory: Path) -> Site:
    """Returns the site of an export's directory, each file being the one that was written.

    Raises InputError where it is no export, has no page, or a file was changed, or is a link.
    """
    manifest = load_manifest(directory)
    listed: dict[str, Any] = manifest["files"]
    if PAGE not in listed or PROGRAM not in listed:
        raise InputError(
            f"{directory} has no page to serve: {_made_for(manifest)}; only the runtime webgpu"
            " makes one: edgeport export wsr_splatting -o DIR"
        )
    root = directory.resolve()
    names = (*listed, MANIFEST)
    entries = {name: _entry(root, name, listed.get(name, {}).get("sha256")) for name in names}
    name = str(manifest.get("source", {}).get("name") or root.name)
    return Site(directory, name, entries, str(listed[PROGRAM]["sha256"]))


def _made_for(manifest: Mapping[str, Any]) -> str:
    runtimes = {str(one.get("runtime")) for one in manifest["artifacts"] if one.get("runtime")}
    return f"it was exported for {', '.join(sorted(runtimes))}" if runtimes else "it lists none"


def _entry(root: Path, name: str, sha256: str | None) -> Entry:
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise InputError(f"{root / MANIFEST} lists {name!r}, which is outside: export it again")
    path = root.joinpath(*parts)
    if path.resolve() != path or not path.is_file():
        raise InputError(f"{path} is a symbolic link or no plain file: export it again")
    if sha256 is not None and file_sha256(path) != sha256:
        raise InputError(
            f"{path} was changed after it was exported, and what is measured would be kept under"
            " the wrong sha256: export it again"
        )
    return Entry(name, path, _identity(path.lstat()))


def _identity(status: os.stat_result) -> Identity:
    """Returns what tells one file from another that has its name; -1 for what is no file."""
    kind = status.st_dev if stat.S_ISREG(status.st_mode) else -1
    return kind, status.st_ino, status.st_size, status.st_mtime_ns
