"""Every error edgeport raises on purpose, with the exit code the CLI gives it.

    EdgeportError               one line: what was wrong, where, what to do next
    |-- InputError          2   something the user named or gave cannot be used
    |   |-- UnknownName     2   a recipe, device, precision ... that does not exist (did you mean)
    |   `-- OutputRefused   2   the output directory is not ours, or cannot be written
    `-- StageFailed         3   a stage of the flow did not hold; `stage` says which
        `-- RuntimeCrashed  3   the child process of a vendor tool died, hung or ran out of memory

Exit code 1 belongs to gates, 0 to success. A traceback is shown only with `--verbose`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

_LISTED = 50  # names; more make no line


class EdgeportError(Exception):
    """Base of all errors that are told to the user in one line."""

    exit_code: ClassVar[int] = 3


class InputError(EdgeportError):
    """Raised for what the user named or gave: a file, a flag, a shape, a weight."""

    exit_code = 2


class UnknownName(InputError):
    """Raised for a name that is not among the known ones; suggests the nearest.

    `aliases` are suggested too, but not listed.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], aliases: Iterable[str] = ()
    ) -> None:
        choices = sorted(known)
        by_lower = {choice.lower(): choice for choice in (*choices, *aliases)}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
        hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
        listed = f"Known: {', '.join(choices)}."
        if len(choices) > _LISTED:
            listed = f"{len(choices)} are known."
        super().__init__(f"unknown {kind} {name!r}.{hint} {listed}")


class OutputRefused(InputError):
    """Raised before any work when the output directory must not or cannot be replaced."""


class StageFailed(EdgeportError):
    """Raised when a stage of the flow fails; the files made so far go to `DIR.failed/`."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


class RuntimeCrashed(StageFailed):
    """Raised when a child process aborted, hung, or ran out of memory.

    `reason` is one of "signal", "timeout", "memory" and "exit"; `last_lines` is the end of
    what the child printed.
    """

    def __init__(self, stage: str, message: str, *, reason: str, last_lines: str = "") -> None:
        super().__init__(stage, message)
        self.reason = reason
        self.last_lines = last_lines
