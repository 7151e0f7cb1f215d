"""Which runtimes work on this machine, in which interpreter, and what the others lack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.errors import RuntimeCrashed
from edgeport.runtimes import RUNTIMES, Runtime, interpreters, missing_modules
from edgeport.runtimes.webgpu_driver import GET_DRIVER, has_driver

_SECONDS = 10.0  # for an interpreter to start and look: it imports nothing heavy


@dataclass(frozen=True)
class Status:
    """One runtime here.

    `interpreter` is None for this one; `missing` are the modules that it lacks, and `problem` is
    why it did not say, or what else stands in the way; `fix` is what to do about that.
    """

    runtime: Runtime
    interpreter: Path | None
    missing: tuple[str, ...]
    problem: str = ""
    fix: str = "name another interpreter in edgeport.toml"

    @property
    def works(self) -> bool:
        """Whether the runtime's files can be made here."""
        return not self.missing and not self.problem

    @property
    def remedy(self) -> str:
        """What to do for it to work; empty where it does."""
        if self.problem:
            return self.fix
        start = f"{self.interpreter} -m " if self.interpreter else ""
        return f"{start}{self.runtime.install}" if self.missing else ""

    @property
    def runs_here(self) -> str:
        """What runs its files on this machine, and whose numbers those are."""
        known = self.runtime
        return f"{known.runs_here} [{known.runs_as}]" if known.runs_as else "nothing: --on hub"

    def to_dict(self) -> dict[str, Any]:
        """Returns the row of the table and what was found, as plain JSON values."""
        return {
            **self.runtime.to_dict(),
            "works_here": self.works,
            "interpreter": str(self.interpreter) if self.interpreter else None,
            "missing": list(self.missing),
            "problem": self.problem or None,
            "get_it": self.remedy or None,
        }


def statuses() -> list[Status]:
    """Returns the status of every runtime; each other interpreter is asked once.

    Raises UnknownName for a runtime in edgeport.toml that there is not.
    """
    other = interpreters()
    asked = {
        python: _ask(python, [name for name in RUNTIMES if other.get(name) == python])
        for python in dict.fromkeys(other.values())
    }
    return [
        asked[other[name]][name] if name in other else _here(runtime)
        for name, runtime in RUNTIMES.items()
    ]


def _here(runtime: Runtime) -> Status:
    """Returns the status in this interpreter; a GPU's driver counts where its files tell it."""
    missing = runtime.missing()
    if runtime.name == "webgpu" and not missing and not has_driver():
        return Status(runtime, None, (), "no Vulkan driver", GET_DRIVER)
    return Status(runtime, None, missing)


def missing_here(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns what this interpreter lacks for each runtime; for a child process."""
    return {name: missing_modules(name) for name in names}


def _ask(python: Path, names: list[str]) -> Mapping[str, Status]:
    """Returns the status of the runtimes that another interpreter serves."""
    from edgeport.private import scratch_directory
    from edgeport.runtimes.worker import Limits, run_in_child

    target, limits = f"{__name__}:missing_here", Limits(_SECONDS, 1 << 30)
    try:
        with scratch_directory() as workdir:
            found = run_in_child(
                target,
                {"names": names},
                stage="list",
                workdir=workdir,
                limits=limits,
                python=python,
            )
    except RuntimeCrashed as error:
        problem = f"{python} does not answer ({_cause(error)})"
        return {name: Status(RUNTIMES[name], python, (), problem) for name in names}
    return {name: Status(RUNTIMES[name], python, tuple(found[name])) for name in names}


def _cause(error: RuntimeCrashed) -> str:
    """Returns the last line that the interpreter printed, else how it ended."""
    lines = error.last_lines.strip().splitlines()
    return lines[-1].strip() if lines else error.reason
