"""Digests: of values, files, source trees, the installed packages, and what a factory reads."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeport.types import plain

SOURCES = (".py", ".toml", ".wgsl", ".glsl", ".js", ".html", ".css", ".jinja")
_BYTECODE = f"{os.sep}__pycache__{os.sep}"


def digest(value: Any) -> str:
    """Returns the sha256 of `value` as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(root: Path, suffixes: tuple[str, ...] = SOURCES) -> str:
    """Returns one sha256 over the names and bytes of the files under `root` with these suffixes."""
    names = [name for name in file_names(root) if name.endswith(suffixes)]
    return digest([[name, file_sha256(root / name)] for name in names])


def file_names(root: Path) -> list[str]:
    """Returns the names of all files under `root`, relative to it, sorted."""
    return sorted(
        str((Path(folder) / name).relative_to(root))
        for folder, _, names in os.walk(root)
        for name in names
    )


def environment_digest() -> str:
    """Returns a digest of the interpreter, the machine type and every installed distribution.

    Distributions are read from the directory names on sys.path: nothing is imported. edgeport's own
    is left out: its source has a digest, and a checkout on sys.path may or may not show a name.
    """
    found = _distributions(sys.path)
    found = {name for name in found if not name.startswith(("edgeport-", "edgeport."))}
    return digest([sys.version, sys.platform, os.uname().machine, sorted(found)])


def interpreter_digest(python: Path | None) -> str:
    """Returns a digest of another interpreter and the distributions of its environment.

    Empty for None, which is this one: `environment_digest` stands for it.
    """
    if python is None:
        return ""
    folders = python.parent.parent.glob("lib*/python*/site-packages")
    return digest(
        [str(python), os.path.realpath(python), sorted(_distributions(map(str, folders)))]
    )


def _distributions(folders: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for entry in dict.fromkeys(folders):
        with suppress(OSError):  # a zip file, or a directory that is not there
            names = os.listdir(entry or ".")
            found.update(name for name in names if name.endswith((".dist-info", ".egg-info")))
    return found


def unchanged(files: Mapping[str, str]) -> bool:
    """Returns whether every file still has the sha256 that a SourceTracker noted for it."""
    try:
        return all(file_sha256(Path(path)) == sha256 for path, sha256 in files.items())
    except OSError:
        return False


class SourceTracker:
    """Notes the user's own files that are used while it is active: `with SourceTracker() as used`.

    `files` maps, at the exit, absolute path to sha256: files opened for reading by Python, and the
    files of all imported modules; without the standard library, site-packages, edgeport itself and
    /proc, /dev, /sys. A file opened by C code alone (a memory-mapped weight file, for one) is not
    seen. A file that was read and then written gets the sha256 "", which matches nothing.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._read: set[str] = set()
        self._written: set[str] = set()
        self._overwritten: set[str] = set()

    def __enter__(self) -> Self:
        _install_hook()
        _trackers.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _trackers.remove(self)
        modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        used = self._read | {path for path in modules if isinstance(path, str)}
        overwritten = {os.path.realpath(path) for path in self._overwritten}
        outside = _foreign_prefixes()
        for path in sorted(set(map(os.path.realpath, used))):
            if os.path.isfile(path) and not path.startswith(outside) and _BYTECODE not in path:
                known = path not in overwritten and os.access(path, os.R_OK)
                self.files[path] = file_sha256(Path(path)) if known else ""

    def note(self, path: str, reading: bool, writing: bool) -> None:
        """Notes that the file `path` is opened."""
        if reading and path not in self._written:
            self._read.add(path)
        if writing:
            (self._overwritten if path in self._read else self._written).add(path)


_trackers: list[SourceTracker] = []
_hooked: list[bool] = []


def _install_hook() -> None:
    """Installs the audit hook, once: Python has no way to remove one."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Tells the active trackers of a file being opened; whatever it raised would stop the open."""
    if not _trackers or event != "open":
        return
    path, _, flags = arguments
    if isinstance(path, (str, bytes, os.PathLike)):
        reading = not flags & (os.O_WRONLY | os.O_TRUNC | os.O_EXCL)
        writing = bool(flags & (os.O_WRONLY | os.O_RDWR))
        name = os.path.abspath(os.fsdecode(path))
        for tracker in _trackers:
            tracker.note(name, reading, writing)


def _foreign_prefixes() -> tuple[str, ...]:
    """Returns the directories, each with a final separator, whose files are nobody's sources."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    found = {os.path.realpath(sysconfig.get_path(name)) for name in names}
    found |= {os.path.realpath(entry) for entry in sys.path if entry.endswith("-packages")}
    found |= {os.path.dirname(os.path.realpath(__file__)), "/proc", "/dev", "/sys"}
    if recipes := sys.modules.get("edgeport_recipes"):  # a checkout's; they have a digest
        found |= {os.path.realpath(folder) for folder in recipes.__path__}
    return tuple(os.path.join(path, "") for path in found)
