"""Turns what the user names into arms to time.

build/padre            an export's directory: its files of one runtime
build/fox:sorted       one of the programs in an export's webgpu files; without a name, the first
model.onnx             the file as it is, on onnxruntime
model.tflite           the file as it is, on LiteRT
padre, padre:padre2    a recipe, or one of its variants, exported for the runtime
timm:mobilevit_s ...   any other source of `edgeport export`, exported for the runtime
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeport import pipeline
from edgeport.bench import Arm
from edgeport.blocks import runs_here
from edgeport.cache import Cache, default_root
from edgeport.catalog import all_recipes
from edgeport.errors import InputError, UnknownName
from edgeport.feeds import PARITY_INPUTS, PARITY_INTEGERS
from edgeport.fingerprint import file_sha256
from edgeport.flow import Flow
from edgeport.places import Job
from edgeport.plan import WRITTEN, make_plan
from edgeport.private import scratch_directory
from edgeport.running import job_of, read_manifest
from edgeport.runtimes import RUNTIMES, webgpu_program
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.staging import MANIFEST
from edgeport.types import Artifact

DEVICE = "Samsung Galaxy S24"  # where none is named: it changes no file that this machine runs
Progress = Callable[[str], None]


def find_arms(
    texts: Sequence[str],
    workdir: Path,
    runtime: str | None = None,
    *,
    elsewhere: bool = False,
    progress: Progress = lambda step: None,
    **options: Any,
) -> list[Arm]:
    """Returns an arm for each text; `workdir` keeps what had to be exported.

    `options` are those of `edgeport.pipeline.export`. With `elsewhere` the arms need not run on
    this machine. Raises InputError for what is nothing to time.
    """
    arms: list[Arm] = []
    for text in texts:
        folder = workdir / str(len(arms))
        arm = find_arm(text, folder, runtime, elsewhere, progress, options)
        same = sum(one.name.split("#")[0] == arm.name for one in arms)
        arms.append(replace(arm, name=f"{arm.name}#{same + 1}") if same else arm)
    return _on_same_inputs(arms)


def find_arm(
    text: str,
    folder: Path,
    runtime: str | None,
    elsewhere: bool,
    progress: Progress,
    options: Mapping[str, Any],
) -> Arm:
    """Returns the arm of one text; see the module."""
    path = Path(text)
    if path.is_dir() and (path / MANIFEST).is_file():
        return _of_export(text, path, runtime, elsewhere)
    folder_text, _, part = text.rpartition(":")
    if part and (Path(folder_text or ".") / MANIFEST).is_file():
        return _of_export(text, Path(folder_text or "."), runtime, elsewhere, part)
    kinds = {".onnx": "onnx", ".tflite": "tflite"}
    if path.is_file() and path.suffix in kinds:
        if elsewhere:
            raise InputError(f"{text}: a place runs the files of an export; name its directory")
        if runtime not in (None, kinds[path.suffix]):
            raise InputError(f"{text} is no file of {runtime}: leave --target-runtime out")
        folder.mkdir(parents=True)
        as_it_is = _of_onnx_file if path.suffix == ".onnx" else _of_tflite_file
        return as_it_is(text, path, folder, progress, options)
    name, _, variant = text.partition(":")
    if name in all_recipes() and variant:
        options = {**options, "variant": variant}
    wanted = runtime or "onnx"
    _check_runs_here(text, wanted, elsewhere)
    target = {} if "device" in options or "chipset" in options else {"device": DEVICE}
    made = pipeline.export(
        name if variant and name in all_recipes() else text,
        output_dir=folder,
        target_runtimes=[wanted],
        progress=progress,
        **{**target, **options},
    )
    return _of_export(text, made.directory, wanted, elsewhere)


def job_at_place(arm: Arm, workdir: Path, limits: Limits) -> Job:
    """Returns the arm as what a place runs."""
    assert arm.directory is not None, "only an export's files reach a place"
    return job_of(arm.directory, read_manifest(arm.directory), arm.runtime, limits, workdir)


def _of_export(
    text: str, directory: Path, runtime: str | None, elsewhere: bool, part: str = ""
) -> Arm:
    manifest = read_manifest(directory)
    made = [name for name in manifest["options"]["target_runtimes"] if name in RUNTIMES]
    if runtime is None:
        runtime = next((name for name in made if elsewhere or runs_here(name)), made[0])
    if runtime not in made:
        raise InputError(f"{directory} has no {runtime}; it has {', '.join(made)}")
    _check_runs_here(text, runtime, elsewhere)
    files = RUNTIMES[runtime].files
    found = tuple(directory / file for file in files if file in manifest["files"])
    integers = PARITY_INTEGERS in manifest["files"] and RUNTIMES[runtime].compiles == "quantized"
    artifacts = [Artifact.from_dict({**one, "seconds": 0.0}) for one in manifest["artifacts"]]
    run = next((one for one in artifacts if (one.stage, one.runtime) == ("run", runtime)), None)
    return Arm(
        name=text.rstrip("/"),
        runtime=runtime,
        files=found[:1] if runtime == "onnx" else found,
        inputs=directory / (PARITY_INTEGERS if integers else PARITY_INPUTS),
        sha256=file_sha256(found[0]),
        computed=run.computed if run else manifest["options"]["precision"],
        parity=run.parity if run else (),
        directory=directory,
        part=_part(found[0], runtime, part),
    )


def _part(file: Path, runtime: str, part: str) -> str:
    """Returns which of the file's programs is timed: the one named, else its first."""
    if runtime != WRITTEN:
        if part:
            raise InputError(f"{file.parent}:{part}: only files of {WRITTEN} have parts")
        return ""
    programs = [one.name for one in webgpu_program.read_document(file.parent).programs]
    if part and part not in programs:
        raise UnknownName(f"program of {file.parent}", part, programs)
    return part or str(programs[0])


def _of_onnx_file(
    text: str, path: Path, folder: Path, progress: Progress, options: Mapping[str, Any]
) -> Arm:
    """Returns the file with inputs as an export would make them."""
    known = {key: options[key] for key in ("inputs", "seed", "calib_data") if key in options}
    plan = make_plan(text, device=DEVICE, target_runtimes=["onnx"], **known)
    with Cache(default_root()) as cache, scratch_directory() as staging:
        captured = Flow(plan, cache, staging, progress).capture()
        inputs = folder / PARITY_INPUTS
        inputs.write_bytes((captured.entry.directory / PARITY_INPUTS).read_bytes())
    note = ("as the file is, without edgeport's passes",)
    return Arm(text, "onnx", (path,), inputs, file_sha256(path), notes=note)


def _of_tflite_file(
    text: str, path: Path, folder: Path, progress: Progress, options: Mapping[str, Any]
) -> Arm:
    """Returns the file with seeded inputs: Gaussian floats, integers over their whole range."""
    specs = run_in_child(
        f"{__name__}:tflite_inputs",
        {"file": str(path.resolve())},
        stage="inputs",
        workdir=folder,
        limits=Limits(120.0, 8 << 30),
    )
    rng = np.random.default_rng(options.get("seed", 0))
    feed = {}
    for name, dtype, shape in specs:
        kind = np.dtype(dtype)
        if kind.kind == "f":
            feed[name] = rng.standard_normal(shape).astype(kind)
        else:
            bounds = np.iinfo(kind) if kind.itemsize == 1 else None
            low, high = (bounds.min, bounds.max + 1) if bounds else (0, 2)
            feed[name] = rng.integers(low, high, shape).astype(kind)
    save_samples(folder / PARITY_INPUTS, [feed])
    note = ("as the file is; seeded inputs",)
    return Arm(text, "tflite", (path,), folder / PARITY_INPUTS, file_sha256(path), notes=note)


def tflite_inputs(file: str) -> list[tuple[str, str, list[int]]]:
    """Returns name, element type and shape of a .tflite file's inputs; for a child process."""
    import importlib

    from edgeport.places import runner

    (module,) = runner.modules_of("tflite")
    interpreter = importlib.import_module(module).Interpreter(model_path=file)
    return [
        (one["name"], np.dtype(one["dtype"]).name, [int(size) for size in one["shape"]])
        for one in interpreter.get_input_details()
    ]


def _check_runs_here(text: str, runtime: str, elsewhere: bool) -> None:
    if not elsewhere and not runs_here(runtime):
        raise InputError(
            f"{text}: {runtime} runs in an emulator here, whose times mean nothing: time it on a"
            " device (--on), or name another --target-runtime"
        )


def _on_same_inputs(arms: Sequence[Arm]) -> list[Arm]:
    """Returns the arms with the first one's inputs wherever theirs have the same specs."""
    first = _specs(arms[0].inputs)
    return [
        replace(arm, inputs=arms[0].inputs) if _specs(arm.inputs) == first else arm for arm in arms
    ]


def _specs(inputs: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    with np.load(inputs, allow_pickle=False) as arrays:
        first = [key for key in arrays.files if key.startswith("0:")]
        return [(key, arrays[key].dtype.name, arrays[key].shape) for key in first]
