"""Compiles and runs many small graphs in the emulator, a few processes for all of them.

One child process takes the graphs one after another and notes each that it starts and finishes, so
that a crash is the fault of the one it had started; the next child goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.errors import RuntimeCrashed
from edgeport.runtimes.qnn_context_binary import PROVIDER, compiler_options, session_here
from edgeport.runtimes.qnn_placement import Crash, own_name
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.types import Device, Precision

_NOTES = "notes.jsonl"


@dataclass(frozen=True)
class Answer:
    """What one graph gave in the emulator, or in words why it gave nothing.

    `on_npu` are the names of the nodes that the NPU computed.
    """

    outputs: Sample | None
    on_npu: tuple[str, ...] = ()
    problem: str = ""


def run_each(
    models: Sequence[Path],
    inputs: Sequence[Path],
    workdir: Path,
    device: Device,
    precision: Precision,
    limits: Limits,
) -> tuple[Answer, ...]:
    """Returns an answer for each model on its file of inputs (`save_samples`, one sample each).

    `limits` are of one child process, which goes through all that are left.
    """
    answers: list[Answer] = []
    while len(answers) < len(models):
        first = len(answers)
        arguments = {
            "models": [str(path.resolve()) for path in models[first:]],
            "inputs": [str(path.resolve()) for path in inputs[first:]],
            "directory": str(workdir.resolve()),
            "provider": compiler_options(device.values, precision),
        }
        (workdir / _NOTES).write_text("", encoding="utf-8")
        crash = None
        try:
            run_in_child(
                f"{__name__}:_run_each_here",
                arguments,
                stage="classes",
                workdir=workdir,
                limits=limits,
            )
        except RuntimeCrashed as error:
            crash = Crash.of(error)
        answers.extend(_read_notes(workdir))
        if crash is not None:
            answers.append(Answer(None, problem=crash.what))
    return tuple(answers[: len(models)])


def _read_notes(workdir: Path) -> Iterator[Answer]:
    """Yields the answers of the graphs that the last child finished."""
    for line in (workdir / _NOTES).read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        file = workdir / note["file"] if note["file"] else None
        outputs = load_samples(file)[0] if file else None
        yield Answer(outputs, tuple(note["on_npu"]), note["problem"])
        if file:
            file.unlink()


def _run_each_here(
    models: Sequence[str], inputs: Sequence[str], directory: str, provider: Mapping[str, str]
) -> None:
    with Path(directory, _NOTES).open("a", encoding="utf-8") as notes:
        for index, (model, feed) in enumerate(zip(models, inputs, strict=True)):
            target = Path(directory, f"class_{index}.npz")
            try:
                note = _run_one_here(model, feed, target, provider)
            except MemoryError:
                raise
            except Exception as error:  # onnxruntime's binding raises a class per status code
                line = next(iter(str(error).splitlines()), type(error).__name__)
                note = {"file": "", "on_npu": [], "problem": line}
            notes.write(json.dumps(note) + "\n")
            notes.flush()


def _run_one_here(
    model: str, feed: str, target: Path, provider: Mapping[str, str]
) -> dict[str, Any]:
    session = session_here(model, provider, {"session.record_ep_graph_assignment_info": "1"})
    on_npu = [
        own_name(node.name)
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name == PROVIDER
        for node in subgraph.get_nodes()
    ]
    (sample,) = load_samples(Path(feed))
    save_samples(target, [named_outputs(session.run(None, dict(sample)))])
    return {"file": target.name, "on_npu": on_npu, "problem": ""}
