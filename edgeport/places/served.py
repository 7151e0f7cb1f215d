"""A model file held by a process of its own, which runs it when it is told to.

    python -m edgeport.places.served REQUEST

Each arm of a comparison has a process, so that none disturbs another's memory or threads, and they
take turns, because the parent asks one at a time. The process answers in JSON lines: first what
loading and the first run took, then, as a line on its stdin asks, the milliseconds of so many calls
(a number), "outputs" of every sample, or its "peak" of memory. The sessions are those of a board's
runner.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import StageFailed
from edgeport.measure import call_times_ms, elapsed_ms
from edgeport.places import runner
from edgeport.private import write_text_atomic
from edgeport.runtimes.onnx import REWRITES_FLOAT_LAYERS
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples

Feed = Mapping[str, NDArray[Any]]
Bind = Callable[[Feed], Callable[[], Sequence[NDArray[Any]]]]
"""Prepares one feed once, and returns the call that is timed."""
Loader = Callable[["Request", dict[str, str]], Bind]
"""Loads the request's file, and notes what is to be known of where it computes."""


@dataclass(frozen=True)
class Request:
    """What one process holds: the file, its runtime, and on what it computes.

    `inputs` is a file of `save_samples`; the first sample is timed, the outputs of all go into
    `outputs`. `cores` are the logical cores it may use, () for all. `part` names one of a file's
    programs, where it has several.
    """

    runtime: str
    model: str
    inputs: str
    outputs: str
    threads: int
    cores: tuple[int, ...] = ()
    part: str = ""


class Served:
    """A loaded model in its own process; `cold_ms` is from its start to its first answer.

    `load_ms` is the loading of the file, without the import of the runtime; `first_ms` the first
    run; `environment` what only the process knows of where it computes. Raises StageFailed, with
    the last line of its stderr, where it ends or does not answer within `seconds`.
    """

    def __init__(
        self, request: Request, work: Path, module: str = __name__, seconds: float = 600.0
    ) -> None:
        self._seconds = seconds
        self._outputs = Path(request.outputs)
        work.mkdir(parents=True, exist_ok=True)
        file = work / "request.json"
        write_text_atomic(file, json.dumps(asdict(request)))
        self._log = (work / "stderr.log").open("w+", encoding="utf-8")
        self._name = Path(request.model).name
        first, self.cold_ms = elapsed_ms(lambda: self._start(module, file, request.threads))
        self.load_ms, self.first_ms = float(first["load_ms"]), float(first["first_ms"])
        self.environment: Mapping[str, str] = first["environment"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def turn(self, calls: int) -> list[float]:
        """Returns the milliseconds of so many calls, after one that is not counted."""
        self._say(f"{calls}\n")
        return list(self._answer()["ms"])

    def peak_bytes(self) -> int:
        """Returns the peak of resident memory of the whole process until now."""
        self._say("peak\n")
        return int(self._answer()["peak_bytes"])

    def outputs(self) -> list[Sample]:
        """Returns the outputs of every sample."""
        self._say("outputs\n")
        self._answer()
        return load_samples(self._outputs)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _start(self, module: str, file: Path, threads: int) -> dict[str, Any]:
        # -P: a file in the current folder must not shadow a module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(file)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            return self._answer()
        except StageFailed:
            self.close()
            raise

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then the answer says how it ended
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._seconds)
        if not ready:
            raise StageFailed(
                "measure", f"{self._name} gave no answer in {self._seconds:g} s (--timeout)"
            )
        line = self._process.stdout.readline()  # an answer is one line
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self._log.seek(0)
        said = [one.strip() for one in self._log.read().splitlines() if one.strip()]
        last = said[-1][:200] if said else "it printed nothing"
        raise StageFailed(
            "measure", f"{self._name}: the process that runs it ended ({code}): {last}"
        )


# The process


def serve(load: Loader, modules_of: Callable[[str], Sequence[str]]) -> None:
    """Serves the request that the command line names; `load` gives a Bind."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    out = _own_stdout()
    if request.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request.cores)  # before any library counts them
    for module in modules_of(request.runtime):  # importing is Python's cost, not the model's
        importlib.import_module(module)
    feeds = load_samples(Path(request.inputs))
    environment: dict[str, str] = {}
    bind, load_ms = elapsed_ms(lambda: load(request, environment))
    call = bind(feeds[0])
    _, first_ms = elapsed_ms(call)
    _write(out, {"load_ms": load_ms, "first_ms": first_ms, "environment": environment})
    for line in sys.stdin:
        match line.strip():
            case "":
                break
            case "outputs":
                answers = [named_outputs(_copies(bind(feed)())) for feed in feeds]
                save_samples(Path(request.outputs), answers)
                _write(out, {})
            case "peak":
                _write(out, {"peak_bytes": runner.peak_bytes()})
            case calls:
                call()  # what the others did meanwhile to the caches is not the model's
                _write(out, {"ms": call_times_ms(call, int(calls))})


def _copies(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.array(array) for array in arrays]  # the next run may reuse their memory


def _own_stdout() -> IO[str]:
    """Returns the pipe to the parent; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _write(out: IO[str], value: Mapping[str, Any]) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def _session(request: Request, environment: dict[str, str]) -> Bind:
    """Returns what runs the file in the runtime's own Python package."""
    if request.runtime == "webgpu":
        return _frames(request, environment)
    kind = runner.SESSIONS.get(request.runtime, runner.OnnxSession)
    settings = {
        "runtime": request.runtime,
        "model": request.model,
        "spin": False,  # threads that wait busily after a call steal time from the next arm
        "disabled_optimizers": REWRITES_FLOAT_LAYERS,
    }
    session = kind(settings, request.threads)
    return lambda feed: lambda: session.run(feed)


def _frames(request: Request, environment: dict[str, str]) -> Bind:
    """Returns what draws a frame to completion; its image stays on the GPU."""
    from edgeport.runtimes import webgpu

    session = webgpu.load(Path(request.model).parent, {})
    environment["adapter"] = str(session.adapter)

    def bind(feed: Feed) -> Callable[[], Sequence[NDArray[Any]]]:
        def draw() -> Sequence[NDArray[Any]]:
            session.frame(request.part, feed)
            return ()

        return draw

    return bind


if __name__ == "__main__":
    serve(_session, runner.modules_of)
