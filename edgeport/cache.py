"""Content-addressed results of the slow steps, and the digests that their keys are made of.

    ROOT/STEP/DIGEST/          one entry: what a step built, and entry.json: its result, its seconds
                               and the sha256 of every file, all checked on every hit
    ROOT/STEP/DIGEST.json      one note: a small value that `remember` kept
    ROOT/.building-*           entries being built; renamed into place when they are whole

Whatever is wrong with the cache (read-only, full, edited, half gone) costs time, never the answer.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edgeport.fingerprint import digest, file_names, file_sha256
from edgeport.private import private_directory, scratch_directory, write_text_atomic
from edgeport.types import plain

_ENTRY = "entry.json"
_BUILDING = ".building"
_YOUNG_SECONDS = 3600.0
# Below this a write may have failed for want of space, whatever the error says.
_FULL_BYTES = 1 << 20
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Entry:
    """What a step built: its files and result, whether they were here, and the build's seconds."""

    directory: Path
    result: dict[str, Any]
    hit: bool
    seconds: float


class Cache:
    """Keeps what slow steps built under `root`; with root None, in a private directory.

    `warnings` says in one line each what kept the cache from being written. Use it as a context
    manager or call `close`, which removes the private directory.
    """

    def __init__(self, root: Path | None, limit_bytes: int = 8 << 30) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.warnings: tuple[str, ...] = ()
        self._private: Path | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the private directory, if one was needed."""
        self._exit.close()
        self._private = None

    def step(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, Any]],
        keep_failed: Path | None = None,
    ) -> Entry:
        """Returns the entry of `key`, built by `build(directory)` unless it is here and intact.

        When `build` raises, nothing enters the cache; the files it made are moved to `keep_failed`.
        """
        assert name and not name.startswith(".") and "/" not in name, f"not a folder: {name!r}"
        place = Path(name, digest(key))
        for root in self._roots():
            if entry := _load(root / place):
                _touch(entry.directory)
                return entry
        if self.root is not None:
            try:
                entry = _build(self.root, place, build, keep_failed)
                _evict(self.root, self.limit_bytes)
                return entry
            except _Unwritable as error:
                self._warn(error)
        return _build(self._private_root(), place, build, keep_failed, last_resort=True)

    def recall(self, name: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what was remembered for `key`, None where nothing or something broken is."""
        for root in self._roots():
            path = root / name / f"{digest(key)}.json"
            with suppress(OSError, ValueError, KeyError, TypeError):
                note = json.loads(path.read_text(encoding="utf-8"))
                if note["sha256"] == digest(note["value"]):
                    _touch(path)
                    return dict(note["value"])
        return None

    def remember(self, name: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keeps a small JSON value for `key`."""
        text = json.dumps({"value": plain(value), "sha256": digest(value)})
        place = Path(name, f"{digest(key)}.json")
        if self.root is not None:
            try:
                _write(self.root / place, text)
                return
            except OSError as error:
                self._warn(error)
        _write(self._private_root() / place, text)

    def _roots(self) -> tuple[Path, ...]:
        return tuple(root for root in (self._private, self.root) if root is not None)

    def _private_root(self) -> Path:
        if self._private is None:
            self._private = self._exit.enter_context(scratch_directory())
        return self._private

    def _warn(self, error: BaseException) -> None:
        told = f"the cache {self.root} cannot be written ({error}): its results are not kept"
        if told not in self.warnings:
            self.warnings += (told,)


class _Unwritable(Exception):
    """Raised when an entry could not be built for a reason that lies with the cache's disk."""


def _build(
    root: Path,
    place: Path,
    build: Callable[[Path], Mapping[str, Any]],
    keep_failed: Path | None,
    last_resort: bool = False,
) -> Entry:
    """Returns the entry `root`/`place` after building it in a private directory inside `root`."""
    with ExitStack() as exit_stack:
        try:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            made = exit_stack.enter_context(private_directory(root, _BUILDING))
        except OSError as error:
            if last_resort:
                raise
            raise _Unwritable(error.strerror) from error
        try:
            started = time.perf_counter()
            result = build(made)
            return _install(made, root / place, result, time.perf_counter() - started)
        except BaseException as error:
            if not last_resort and (reason := _disk_reason(error, root)):
                raise _Unwritable(reason) from error
            if keep_failed is not None:
                _move_files(made, keep_failed, error)
            raise


def _install(made: Path, place: Path, result: Mapping[str, Any], seconds: float) -> Entry:
    """Returns the entry at `place`: `made` sealed and renamed, or what another process put."""
    files = {name: file_sha256(made / name) for name in file_names(made)}
    assert _ENTRY not in files, f"a build must not write {_ENTRY}"
    text = json.dumps({"result": plain(result), "seconds": seconds, "files": files}, indent=1)
    write_text_atomic(made / _ENTRY, text)
    while True:
        try:
            os.rename(made, place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            if winner := _load(place):
                return winner
            _discard(place)
        else:
            return Entry(place, dict(json.loads(text)["result"]), False, seconds)


def _load(place: Path) -> Entry | None:
    """Returns the entry at `place`, None where there is none or any file is not as it was built."""
    try:
        content = json.loads((place / _ENTRY).read_text(encoding="utf-8"))
        names = [name for name in file_names(place) if name != _ENTRY]
        if {name: file_sha256(place / name) for name in names} != content["files"]:
            return None
        return Entry(place, dict(content["result"]), True, float(content["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _disk_reason(error: BaseException | None, root: Path) -> str | None:
    """Returns why the cache's disk, and not the build, is to blame for `error`, or None."""
    if not isinstance(error, Exception):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            named = cause.filename if isinstance(cause.filename, str) else str(root)
            return cause.strerror if Path(named).is_relative_to(root) else None
        cause = cause.__cause__ or cause.__context__
    with suppress(OSError):
        if shutil.disk_usage(root).free < _FULL_BYTES:
            return os.strerror(errno.ENOSPC)
    return None


def _move_files(made: Path, kept: Path, error: BaseException) -> None:
    """Moves the files of a failed build to the directory `kept`; notes on `error` if it cannot."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for path in sorted(made.iterdir()):
            shutil.move(path, kept / path.name)
    except OSError as problem:
        error.add_note(f"the files made so far could not be moved to {kept}: {problem}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text)


def _touch(path: Path) -> None:
    """Marks an entry as used now; a read-only cache keeps no such order, and needs none."""
    with suppress(OSError):
        os.utime(path)


def _discard(path: Path) -> None:
    """Removes an entry or note; it disappears by one rename, so nobody sees a part of it."""
    with private_directory(path.parent.parent, _BUILDING) as grave, suppress(FileNotFoundError):
        os.rename(path, grave / path.name)


def _evict(root: Path, limit_bytes: int) -> None:
    """Removes the least recently used entries until under the limit; none used in the last hour."""
    with suppress(OSError):  # others evict and build at the same time; the next write tries again
        found = [path for path in root.glob("*/*") if not path.parent.name.startswith(".")]
        aged = sorted((path.stat().st_mtime, path) for path in found)
        sizes = {path: _tree_bytes(path) for path in found}
        total = sum(sizes.values())
        for used, path in aged:
            if total <= limit_bytes or time.time() - used < _YOUNG_SECONDS:
                return
            _discard(path)
            total -= sizes[path]


def _tree_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in file_names(path))


def default_root() -> Path | None:
    """Returns EDGEPORT_CACHE_DIR ("off" or empty: None), else edgeport in the user's cache."""
    named = os.environ.get("EDGEPORT_CACHE_DIR")
    if named is not None:
        return None if named in {"", "off"} else Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "edgeport"
    except RuntimeError:  # nobody's home: a container without a passwd entry
        return None
