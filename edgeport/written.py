"""Exports whose files a recipe writes by itself: a scene and its shaders, say, instead of a model.

The recipe says what its torch reference gives for some inputs, and the files are run on those
inputs here, in a child process, and compared: writing is no proof.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeport import report
from edgeport.cache import Cache, Entry
from edgeport.errors import InputError
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS
from edgeport.fingerprint import digest, file_sha256
from edgeport.footprint import base_key, shortened
from edgeport.importing import importable, load_function, user_code
from edgeport.plan import WRITTEN, Plan
from edgeport.private import scratch_directory
from edgeport.runtimes import RUNTIMES
from edgeport.types import Artifact, NodeReport, Written, plain


@dataclass(frozen=True)
class Export:
    """The artifacts, the manifest, and the cache's entries of the steps."""

    artifacts: tuple[Artifact, ...]
    manifest: dict[str, Any]
    entries: tuple[Entry, ...]


def export(plan: Plan, cache: Cache, staging: Path, progress: Callable[[str], None]) -> Export:
    """Puts the recipe's files into `staging` and compares what they give with its reference.

    Where nothing here runs them, the manifest says so. Raises StageFailed where they are further
    from the reference than the recipe's tolerance.
    """
    base = base_key()
    # What it reads beside its own code, it names by options that are paths.
    files = {str(path): file_sha256(path) for path in plan.source.files()}
    key = {
        "base": base,
        "source": plan.source.describe(),
        "files": files,
        "seed": plan.seed,
        "device": plan.device.to_dict(),
    }
    progress("write")
    wrote = cache.step("write", key, partial(_write, plan), staging)
    shutil.copytree(wrote.directory, staging, dirs_exist_ok=True, ignore=_not_ours)
    progress(f"run {WRITTEN}")
    with scratch_directory() as folder:
        adapter = _adapter(plan, folder)
    chained = {"before": digest(key), "adapter": adapter}  # another one may give other numbers
    run = partial(_run, plan, wrote.directory, adapter)
    ran = cache.step("run-written", chained, run, staging)
    artifacts = [
        replace(Artifact.from_dict(entry.result["artifact"]), seconds=round(entry.seconds, 3))
        for entry in (wrote, ran)
    ]
    manifest = report.make_manifest(
        plan.describe(),
        artifacts,
        inputs=wrote.result["inputs"],
        outputs=wrote.result["outputs"],
        latency=(),
        facts={
            "read": shortened(files),
            "passes": [],
            "compiled": {},
            "baseline": None,
            "measured": wrote.result["measured"],
        },
        files=staging,
        warnings=cache.warnings,
    )
    return Export(tuple(artifacts), manifest, (wrote, ran))


def _not_ours(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "entry.json"]


def _write(plan: Plan, directory: Path) -> Mapping[str, Any]:
    """Calls the recipe's exporter; keeps its reference beside its files."""
    from edgeport.parity import described
    from edgeport.runtimes.samples import named_outputs, save_samples

    source = plan.source
    assert source.recipe is not None and source.recipe.exporter is not None
    ours = source.folder is None  # a mistake in edgeport's own recipe is no bad input
    guard = contextlib.nullcontext() if ours else user_code(source.text)
    with guard, importable(source.folder), contextlib.redirect_stdout(sys.stderr):
        write = load_function(source.recipe.exporter)
        wrote: Written = write(directory, plan.seed, **source.options)
    size = sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
    references = [named_outputs(one) for one in wrote.outputs]
    save_samples(directory / PARITY_INPUTS, wrote.feeds)
    save_samples(directory / PARITY_OUTPUTS, references)
    file = directory / RUNTIMES[WRITTEN].files[0]
    artifact = described(
        file,
        "write",
        wrote.computed,
        notes=wrote.notes,
        nodes=_nodes(directory),
        runtime=WRITTEN,
    )
    return {
        "artifact": plain(replace(artifact, bytes=size)),
        "inputs": _specs(wrote.feeds[0]),
        "outputs": _specs(references[0]),
        "measured": [one.to_dict() for one in wrote.measured],
    }


def _nodes(directory: Path) -> tuple[NodeReport, ...]:
    from edgeport.runtimes.webgpu import report_nodes  # imports wgpu, and asks no driver

    return tuple(report_nodes(directory))


def _specs(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in sample.items()
    ]


def _adapter(plan: Plan, folder: Path) -> str:
    """Returns which adapter would run the files here, "" for none; a driver is vendor code."""
    from edgeport.runtimes.worker import run_in_child

    target = f"{__name__}:adapter_here"
    return str(run_in_child(target, {}, stage="run", workdir=folder, limits=plan.limits))


def adapter_here() -> str:
    """Returns the adapter's name and backend, "" where there is none; for a child process."""
    from edgeport.runtimes.webgpu import find_adapter

    try:
        found = find_adapter()
    except InputError:
        return ""
    return f"{found.name} ({found.backend})"


def _run(plan: Plan, wrote: Path, adapter: str, directory: Path) -> Mapping[str, Any]:
    """Returns the parity of the files, run by this machine's adapter; a note where it has none."""
    from edgeport.parity import compared, described, hold, tolerance_db
    from edgeport.runtimes.lowering import run_compiled
    from edgeport.runtimes.samples import load_samples

    file = wrote / RUNTIMES[WRITTEN].files[0]
    computed = "fp16"
    if not adapter:
        why = f"not compared with the reference: no adapter here ({RUNTIMES[WRITTEN].install})"
        missing = described(file, "run", computed, notes=(why,), runtime=WRITTEN)
        return {"artifact": plain(missing)}
    inputs = wrote / PARITY_INPUTS
    actual = run_compiled(WRITTEN, wrote, directory, inputs, plan.device, plan.limits)
    references = load_samples(wrote / PARITY_OUTPUTS)
    parity = compared(references, actual, "host", file_sha256(file))
    hold(parity, tolerance_db(plan.source, plan.precision), "run", f"{file.name} on {adapter}")
    return {"artifact": plain(described(file, "run", computed, parity=parity, runtime=WRITTEN))}
