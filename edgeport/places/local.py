"""The place `local`: this machine, in a child process; an NPU's files run in its emulator."""

from __future__ import annotations

from collections.abc import Sequence

from edgeport.errors import InputError
from edgeport.places import Job, Ran
from edgeport.runtimes import RUNTIMES, find_runtime
from edgeport.runtimes.lowering import run_compiled


class Local:
    """This machine."""

    text = "local"

    def check(self, runtimes: Sequence[str]) -> None:
        """Raises InputError for a runtime that nothing here runs."""
        for name in runtimes:
            if find_runtime(name).runs_as is None:
                raise InputError(f"nothing on this machine runs {name}: name a phone, --on hub")

    def run(self, job: Job) -> Ran:
        """Returns the outputs; the benchmark times, this place does not."""
        runs_as = RUNTIMES[job.runtime].runs_as
        assert runs_as is not None, "checked before"
        outputs = run_compiled(
            job.runtime, job.files[0].parent, job.workdir, job.inputs, job.device, job.limits
        )
        return Ran(outputs, runs_as)


def open_place(text: str) -> Local:
    """Returns this machine."""
    return Local()
