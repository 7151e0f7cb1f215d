"""Private directories under a lock: nobody else's files, swept when their process has died.

Liveness is a lock (flock) on a file beside the directory, and not a process id: ids are reused,
locks end with their process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces the file `path` by one that holds `text`; readers see the old or the new text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def private_directory(parent: Path, stem: str, mode: int = 0o777) -> Iterator[Path]:
    """Yields a new directory `parent`/`stem`-PID-RANDOM under a lock; its exit removes the rest.

    Directories of the same stem whose owner has died are removed first. A file system without
    locks is used without: there nothing is ever swept.
    """
    sweep(parent, stem)
    directory, descriptor = _claim(parent, stem)
    try:
        directory.mkdir(mode)
        yield directory
    finally:
        remove_tree(directory)
        remove_tree(spare(directory))
        release(lock_file(directory), descriptor)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields a new directory for temporary files, which only this user reads.

    It goes with the block, and where the process was killed, with the next one that is made.
    """
    with private_directory(Path(tempfile.gettempdir()), "edgeport", mode=0o700) as directory:
        yield directory


def sweep(parent: Path, stem: str) -> None:
    """Removes the directories of `private_directory(parent, stem)` whose process has ended."""
    pattern = re.compile(rf"({re.escape(stem)}-\d+-[0-9a-f]{{8}})(\.old|\.lock)?")
    matches = (pattern.fullmatch(name) for name in os.listdir(parent))
    for name in sorted({match[1] for match in matches if match}):
        directory = parent / name
        with suppress(OSError):  # another user's, or no locks here: not ours to judge
            descriptor = try_lock(lock_file(directory))
            if descriptor is not None:
                remove_tree(directory)
                remove_tree(spare(directory))
                release(lock_file(directory), descriptor)


def _claim(parent: Path, stem: str) -> tuple[Path, int | None]:
    """Returns a name nobody uses and the descriptor that locks it, before the directory exists."""
    while True:
        directory = parent / f"{stem}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            descriptor = try_lock(lock_file(directory))
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            return directory, None
        if descriptor is not None:  # else a sweep met the lock file before we held it
            return directory, descriptor


def try_lock(path: Path) -> int | None:
    """Returns a descriptor that holds the lock file `path`, or None where another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is still the one of that name: its holder unlinks it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, waiting for it; without locks on this file system, does not."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if not _is_at(descriptor, path):  # the one before us unlinked it: queue at the new file
        os.close(descriptor)
        with turn(path):
            yield
        return
    try:
        yield
    finally:
        release(path, descriptor)


def release(path: Path, descriptor: int | None) -> None:
    """Unlinks a lock file, then lets go of the lock: whoever gets it sees that the name is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{path} could not be removed: {error}", stacklevel=2)
    if descriptor is not None:
        os.close(descriptor)


def lock_file(directory: Path) -> Path:
    return directory.with_name(directory.name + ".lock")


def spare(directory: Path) -> Path:
    """Returns the second name of a private directory, for what has to be out of the way at once."""
    return directory.with_name(directory.name + ".old")


def remove_tree(directory: Path) -> None:
    """Removes a directory; what cannot be removed is said, and tried again by the next sweep."""

    def tell(_: Callable[..., Any], path: str, raised: Any) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            warnings.warn(f"{path} could not be removed: {raised[1]}", stacklevel=2)

    if os.path.lexists(directory):
        shutil.rmtree(directory, onerror=tell)
