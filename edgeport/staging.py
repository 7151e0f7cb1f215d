"""Directories that are replaced whole: written beside their target, then swapped in by one call.

Three promises, each held by a test that kills real processes:

- kill -9 at any moment leaves the old directory or the new one under the target's name;
- nothing is deleted that edgeport did not write;
- what a killed run leaves behind is removed by the next one, and never while its owner lives.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from edgeport.errors import EdgeportError, InputError, OutputRefused, StageFailed
from edgeport.private import private_directory, remove_tree, spare, turn, write_text_atomic

GENERATOR = "edgeport"
MANIFEST = "manifest.json"
FAILURE = "failure.json"

_WRITE_ERRORS = {
    errno.ENOSPC: ("no space left", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file grew past the size limit", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
}
# With less than this left, a disk is full whatever the error says.
_FULL_BYTES = 1 << 20
# What the kernel or a file system answers where it cannot exchange two names.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
# Desktops put these into every folder that is looked at; nobody wrote them.
_DESKTOP_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yields a new hidden directory beside `target`, which replaces `target` when the block ends.

    When the block raises, `target` stays as it was and the files go to `failed_directory(target)`;
    an InputError of the block leaves none: what was made from that input is of no use.
    Raises OutputRefused before any work where `check_target` does, and StageFailed("write") for
    a full disk, a quota, a size limit or a read-only file system.
    """
    check_target(target)
    target = _resolve(target)
    with _prepared(target) as staging:
        made = staging.stat()
        try:
            yield staging
            _commit(staging, target)
        except BaseException as error:
            failure = _write_failure(error, staging, target)
            _keep_failed(staging, made, target, failure or error)
            if failure is None:
                raise
            raise failure from error


def check_target(target: Path) -> None:
    """Raises OutputRefused where `target` must not or cannot be replaced; writes nothing."""
    try:
        place = _resolve(target)
        _refuse_place(place)
        for path, index in _owned(place):
            if reason := _foreign(path, index):
                raise OutputRefused(f"{path} {reason}, or choose another --output-dir")
    except OSError as error:
        raise OutputRefused(
            f"{target} cannot be used: {error.strerror}; choose another --output-dir"
        ) from error


def failed_directory(target: Path) -> Path:
    """Returns where the files of a failed run go: `target`.failed, a symbolic link followed."""
    place = _resolve(target)
    return place.with_name(place.name + ".failed")


def _write_failure(error: BaseException, staging: Path, target: Path) -> StageFailed | None:
    """Returns the StageFailed that `error` stands for if the disk takes no more, else None."""
    code, where, cause = 0, str(target), ""
    if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
        code = error.errno
        if isinstance(error.filename, str) and not error.filename.startswith(str(staging)):
            where = error.filename
    elif isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        code, where = errno.ENOSPC, "temporary files"  # tempfile tried each and could not write
    elif isinstance(error, Exception) and not _is_told(error):
        # Libraries in C++ and child processes have their own words for a full disk, or none.
        with suppress(OSError):
            code = errno.ENOSPC if shutil.disk_usage(staging).free < _FULL_BYTES else 0
        cause = f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if code == 0:
        return None
    what, remedy = _WRITE_ERRORS[code]
    return StageFailed(
        "write", f"{what} while writing {where}{cause}: {remedy} or choose another --output-dir"
    )


def _is_told(error: Exception) -> bool:
    """Returns whether the error is the user's to mend, or already says that a write failed."""
    return isinstance(error, InputError) or getattr(error, "stage", None) == "write"


@contextmanager
def _prepared(target: Path) -> Iterator[Path]:
    """Yields the staging directory after an interrupted swap is undone; raises OutputRefused."""
    with ExitStack() as exit_stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            hidden = private_directory(target.parent, f".{target.name}.staging")
            staging = exit_stack.enter_context(hidden)
            with turn(_swap_lock(target)):
                _recover(staging, target)
        except OSError as error:
            raise OutputRefused(
                f"{target.parent} cannot be written: {error.strerror}; choose another --output-dir"
            ) from error
        yield staging


# The swap


def _commit(staging: Path, target: Path) -> None:
    """Puts `staging` in the place of `target`; the replaced directory is left in `staging`."""
    try:
        if target.is_dir():
            shutil.copymode(target, staging)
        _sync_tree(staging)
        with turn(_swap_lock(target)):
            _recover(staging, target)
            check_target(target)  # again: the user may have put a file there since
            _swap(staging, target)
            _sync(target.parent)
            failed = failed_directory(target)
            if failed.exists():
                os.rename(failed, spare(staging))
    except OSError as error:
        raise _write_failure(error, staging, target) or StageFailed(
            "write", f"{target} could not be replaced: {error}; choose another --output-dir"
        ) from error


def _swap(staging: Path, target: Path) -> None:
    """Exchanges the two names; where that cannot be done in one call, by three renames.

    Killed between the first and the second of them, `target` is missing and `_recover` puts it
    back; killed between the second and the third, `_recover` removes the replaced one.
    """
    if not os.path.lexists(target):
        os.rename(staging, target)
    elif not _exchange(staging, target):
        os.rename(target, _previous(target))
        os.rename(staging, target)
        os.rename(_previous(target), staging)


def _exchange(one: Path, other: Path) -> bool:
    """Returns whether renameat2(2) exchanged the two names; False where it is not to be had."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, rename_exchange = -100, 2
    if renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _recover(staging: Path, target: Path) -> None:
    """Ends a swap by renames that was killed: the old directory comes back, or goes if replaced."""
    previous = _previous(target)
    if not previous.exists():
        return
    if target.exists() and any(target.iterdir()):
        os.rename(previous, spare(staging))
        remove_tree(spare(staging))
    else:
        os.rename(previous, target)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _swap_lock(target: Path) -> Path:
    """Returns the lock file at which two runs into one directory take turns to swap."""
    return target.with_name(f".{target.name}.swap.lock")


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            if os.path.isfile(path := os.path.join(folder, name)):
                _sync(Path(path))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_failed(staging: Path, made: os.stat_result, target: Path, error: BaseException) -> None:
    """Moves the files of a failed run to `failed_directory(target)`; where it cannot, notes why.

    `made` is the status of the directory that the run wrote into: after the swap another one has
    its name, the replaced one, and that is not the failed run's.
    """
    failed = failed_directory(target)
    try:
        with turn(_swap_lock(target)):
            _recover(staging, target)
            if not staging.exists() or not os.path.samestat(staging.stat(), made):
                return
            refused = isinstance(error, OutputRefused)  # after the work: its files are of use
            if not any(staging.iterdir()) or (isinstance(error, InputError) and not refused):
                return
            if reason := _foreign(failed, FAILURE):
                raise EdgeportError(f"{failed} {reason}")
            write_text_atomic(staging / FAILURE, _failure_record(staging, error))
            if failed.exists():
                os.rename(failed, spare(staging))
            os.rename(staging, failed)
            error.add_note(f"the files made so far are in {failed}")
    except (OSError, EdgeportError) as problem:
        error.add_note(f"the files made so far could not be kept in {failed}: {problem}")


def _failure_record(staging: Path, error: BaseException) -> str:
    """Returns the text of failure.json; "files" makes what the user adds later stand out."""
    record: dict[str, Any] = {
        "generator": GENERATOR,
        "error": str(error) or type(error).__name__,
        "stage": getattr(error, "stage", None),
        "files": {name: {} for name in _listing(staging)},
    }
    return json.dumps(record, indent=2) + "\n"


# What may be replaced


def _resolve(target: Path) -> Path:
    """Returns the directory that is really replaced: absolute, symbolic links followed."""
    if target.is_symlink() and not target.is_dir():
        raise OutputRefused(
            f"{target} is a symbolic link to {os.readlink(target)}, which is no directory: "
            "remove the link or choose another --output-dir"
        )
    return Path(os.path.realpath(target))


def _refuse_place(place: Path) -> None:
    """Raises OutputRefused where a new directory cannot be put beside `place` and swapped in."""
    if Path.cwd().is_relative_to(place):
        raise OutputRefused(
            f"{place} is the current directory or above it, and would be replaced whole: "
            "choose a directory inside it as --output-dir"
        )
    if os.path.ismount(place):
        raise OutputRefused(
            f"{place} is a mount point, which cannot be replaced whole: "
            "choose a directory inside it as --output-dir"
        )
    above = place.parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputRefused(
            f"{above} is no directory that can be written: choose another --output-dir"
        )


def _owned(place: Path) -> tuple[tuple[Path, str], ...]:
    """Returns the directories that a run may remove, each with the file that lists its files."""
    return ((place, MANIFEST), (failed_directory(place), FAILURE), (_previous(place), MANIFEST))


def _foreign(directory: Path, index: str) -> str | None:
    """Returns why `directory` must not be removed, and the remedy; None where it may be.

    Where another run moved it while we looked, what we saw is no reason: it is looked at again.
    """
    while True:
        before = _identity(directory)
        try:
            reason = _foreign_as_seen(directory, index)
        except FileNotFoundError:
            if _identity(directory) == before:
                raise
            continue
        if reason is None or _identity(directory) == before:
            return reason


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _foreign_as_seen(directory: Path, index: str) -> str | None:
    if not os.path.lexists(directory):
        return None
    if directory.is_symlink() or not directory.is_dir():
        return "is not a directory: move it away"
    found = _listing(directory)
    if not found:
        return None
    listed = _listed_files(directory / index)
    if listed is None:
        return "exists and was not written by edgeport: move it away"
    unlisted = [name for name in found if name not in listed and name != index]
    if not unlisted:
        return None
    more = f" and {len(unlisted) - 3} more" if len(unlisted) > 3 else ""
    names = ", ".join(unlisted[:3])
    return f"holds files that edgeport did not write ({names}{more}): move them away"


def _listed_files(index: Path) -> dict[str, Any] | None:
    """Returns what `index` says that edgeport wrote beside it; None if the index is not ours."""
    if index.is_symlink() or not index.is_file():
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("generator") != GENERATOR:
        return None
    files = content.get("files")
    return files if isinstance(files, dict) else None


def _listing(directory: Path) -> list[str]:
    """Returns the relative names, "/" between parts, of all that is no plain directory."""
    names = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            names += [f"{entry.name}/{name}" for name in _listing(Path(entry.path))]
        elif entry.name not in _DESKTOP_FILES:
            names.append(entry.name)
    return names
