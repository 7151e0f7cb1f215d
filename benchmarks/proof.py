"""Suite `proof`: is the parity figure of padre3 about PADRe at all?

The recipe's net and its control, the same net with every mixer's output zeroed, are exported for a
Galaxy S24. Both compiled binaries run in the emulator on the same inputs, and both are compared
with the answers of the intact net in torch. A control near the intact net would make its own
figure worthless.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.tables import NOT_RUN, Results, Row, cell, markdown
from edgeport import compare
from edgeport.devices import find_device
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.runtimes.lowering import run_compiled
from edgeport.runtimes.samples import Sample, load_samples
from edgeport.runtimes.worker import Limits
from edgeport.stages import host_threads

SUITE = "proof"
DEVICE = "s24"
PRECISIONS = ("float", "w8a16", "w8a8")
INPUT = "image:float32[1,3,224,224]"
SAMPLES = {"default": 1, "full": 4}  # by budget: the emulator takes a quarter of a minute for each
LIMITS = Limits(seconds=3600.0, memory_bytes=16 << 30)
INTACT, CONTROL = "padre3", "padre3 with its mixers zeroed"


def zeroed() -> object:
    """Returns the control: the factory that is exported."""
    from edgeport_recipes.padre.model import padre3, zero_mixers

    return zero_mixers(padre3(seed=0))


def run(results: Results, full: bool) -> None:
    """Adds both nets' SQNR at each precision."""
    samples = SAMPLES[results.budget]
    for precision in PRECISIONS:
        if results.finished(precision):
            continue
        print(f"running {precision}", file=sys.stderr, flush=True)
        with scratch_directory() as folder:
            rows = _run_precision(precision, folder, samples)
        results.add([replace(row, budget=results.budget) for row in rows])


def _run_precision(precision: str, work: Path, samples: int) -> list[Row]:
    import edgeport

    intact, control = work / "intact", work / "control"
    common = {"device": DEVICE, "precision": precision, "parity_samples": samples}
    edgeport.export("padre", output_dir=intact, **common)
    edgeport.export(f"{Path(__file__)}:zeroed", inputs=[INPUT], output_dir=control, **common)
    answers = load_samples(intact / "parity_outputs.npz")
    rows = []
    for arm, directory in ((INTACT, intact), (CONTROL, control)):
        inputs = intact / "parity_inputs.npz"
        emulated = run_compiled(
            "qnn_context_binary", directory, work, inputs, find_device(DEVICE), LIMITS
        )
        values = [_sqnr_db(*pair) for pair in zip(answers, emulated, strict=True)]
        row = Row(SUITE, precision, arm, "sqnr_db", min(values), "dB", "emulated")
        parameters = {"precision": precision, "samples": samples}
        rows.append(replace(row, parameters=parameters, samples=tuple(values)))
    return [replace(row, environment=environment(host_threads())) for row in rows]


def _sqnr_db(reference: Sample, actual: Sample) -> float:
    return min(compare.sqnr_db(reference[name], actual[name]) for name in reference)


def tables(results: Results) -> str:
    """Returns the SQNR of both nets in each precision, the worst of the inputs."""
    lines: list[Sequence[str]] = []
    for arm in (INTACT, CONTROL):
        found = [results.find("sqnr_db", arm, precision=one) for one in PRECISIONS]
        lines.append([arm, *(cell(rows[0]) if rows else NOT_RUN for rows in found)])
    return markdown(["SQNR dB against padre3 in torch, emulated", *PRECISIONS], lines)
