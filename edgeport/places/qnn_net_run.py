"""Qualcomm's `qnn-net-run` on a phone: it runs a context binary or a .dlc on raw files.

Source of flags and formats: Qualcomm's AI Engine Direct documentation, "Tools", qnn-net-run and
qnn-profile-viewer. Inputs are listed a sample a line; the outputs of sample i are
Result_i/NAME.raw, with `_native` in the name where they are not floats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import InputError, StageFailed
from edgeport.runtimes.samples import Sample, load_samples, named_outputs
from edgeport.types import Measurement, Provenance, TensorSpec

INPUTS, LIST, OUTPUTS, TIMED = "in", "input_list.txt", "out", "timed"
PROFILE = "qnn-profiling-data_0.log"
TIMED_RUNS = 50
_EVENT = re.compile(r"^\s+(\S.*?):\s*(\d[\d.]*)\s+us\s*$")
_SECTION = re.compile(r"^(\S.*?) Stats(?: \((\w+)\))?:\s*$")
_DSP = "/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/system/lib/rfsa/adsp;/dsp"


def sdk_files(tool: Path, htp_arch: int | None, dlc: bool) -> list[Path]:
    """Returns what `qnn-net-run` of an unpacked SDK needs beside it on the phone.

    Raises InputError naming the file that the SDK lacks.
    """
    if htp_arch is None:
        raise InputError("the device has no htp_arch: name a qnn-net-run that is on the phone")
    root, kind = tool.resolve().parents[2], tool.resolve().parent.name
    names = ["libQnnHtp.so", f"libQnnHtpV{htp_arch}Stub.so", "libQnnSystem.so"]
    names += ["libQnnHtpPrepare.so", "libQnnModelDlc.so"] if dlc else []
    found = [root / "lib" / kind / name for name in names]
    skel = f"libQnnHtpV{htp_arch}Skel.so"
    found.append(root / "lib" / f"hexagon-v{htp_arch}" / "unsigned" / skel)
    for file in found:
        if not file.is_file():
            raise InputError(f"{tool} is not in an unpacked QNN SDK: there is no {file}")
    return found


def write_inputs(inputs: Path, folder: Path) -> bool:
    """Writes the samples as raw files with their list; returns whether they are other than float32.

    `inputs` is a file of `save_samples`.
    """
    (folder / INPUTS).mkdir()
    lines, native = [], False
    for i, sample in enumerate(load_samples(inputs)):
        words = []
        for j, (name, array) in enumerate(sample.items()):
            file = f"{INPUTS}/{i}_{j}.raw"
            array.tofile(folder / file)
            words.append(f"{name}:={file}")
            native |= array.dtype != np.float32
        lines.append(" ".join(words))
    (folder / LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return native


def command(tool: str, directory: str, model: str, native: bool, timed: bool) -> list[str]:
    """Returns the words that run a model's file in `directory`, where the inputs are.

    `timed` runs it often and profiles it; the outputs of the other run are those to compare.
    """
    beside = tool.rpartition("/")[0]
    libraries = f"LD_LIBRARY_PATH={beside}:{directory}:/vendor/lib64"
    skeletons = f"ADSP_LIBRARY_PATH={beside};{directory};{_DSP}"
    kind = ["--retrieve_context", model]
    if model.endswith(".dlc"):
        kind = ["--model", "libQnnModelDlc.so", "--dlc_path", model]
    words = ["env", libraries, skeletons, tool, "--backend", "libQnnHtp.so", *kind]
    words += ["--input_list", LIST, "--output_dir", TIMED if timed else OUTPUTS]
    words += ["--perf_profile", "burst"]
    if native:
        words += ["--use_native_input_files", "--use_native_output_files"]
    if timed:
        words += ["--num_inferences", str(TIMED_RUNS), "--keep_num_outputs", "1"]
        words += ["--profiling_level", "basic"]
    return words


def read_outputs(folder: Path, specs: Sequence[TensorSpec], count: int) -> list[Sample]:
    """Returns the outputs of `count` samples; raises StageFailed where a file is not as expected.

    `specs` are the model's outputs in order.
    """
    return [
        named_outputs([_read(folder / f"Result_{i}", spec, specs) for spec in specs])
        for i in range(count)
    ]


def output_specs(model: Path, native: bool) -> tuple[TensorSpec, ...]:
    """Returns the outputs that the ONNX file states; all are float32 unless `native`."""
    import onnx
    from onnx import helper

    graph = onnx.load(model, load_external_data=False).graph
    specs = []
    for value in graph.output:
        tensor = value.type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if native else np.float32
        shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
        specs.append(TensorSpec(value.name, np.dtype(kind).name, shape))
    return tuple(specs)


def _read(folder: Path, spec: TensorSpec, specs: Sequence[TensorSpec]) -> NDArray[Any]:
    plain = re.sub(r"\W", "_", spec.name)
    names = (f"{one}{end}.raw" for one in (spec.name, plain) for end in ("", "_native"))
    written = sorted(folder.glob("**/*.raw"))
    only = written[0] if len(written) == len(specs) == 1 else None
    file = next((folder / name for name in names if (folder / name).is_file()), only)
    if file is None:
        listed = ", ".join(one.name for one in written) or "nothing"
        raise StageFailed("run", f"qnn-net-run wrote no {plain}.raw into {folder.name}: {listed}")
    flat = np.fromfile(file, spec.dtype)
    if flat.size != np.prod(spec.shape, dtype=int) or flat.nbytes != file.stat().st_size:
        raise StageFailed(
            "run", f"{file.name} has {file.stat().st_size} bytes, not those of {spec}"
        )
    return flat.reshape(spec.shape)


def parse_profile(text: str) -> dict[str, dict[str, float]]:
    """Returns, per section of qnn-profile-viewer's text, each event's microseconds.

    Sections are such as "Init" and "Execute (Average)"; of several graphs the last one counts.
    """
    sections: dict[str, dict[str, float]] = {}
    events: dict[str, float] = {}
    for line in text.splitlines():
        if found := _SECTION.match(line):
            name = f"{found[1]} ({found[2]})" if found[2] else found[1]
            events = sections.setdefault(name, {})
        elif found := _EVENT.match(line):
            events[found[1]] = float(found[2])
    return sections


def measurements(
    text: str, provenance: Provenance, environment: Mapping[str, str]
) -> tuple[Measurement, ...]:
    """Returns what the profile says: means over the runs, the phone's call and its NPU alone.

    Raises StageFailed where it holds no execution.
    """
    sections = parse_profile(text)
    executed = sections.get("Execute (Average)", {})
    if "NetRun" not in executed:
        raise StageFailed("run", "qnn-profile-viewer shows no execution in the profile")
    surroundings = {**environment, "tool": "qnn-net-run", "runs": str(TIMED_RUNS)}
    values = {
        "latency_mean_ms": executed["NetRun"],
        "accelerator_mean_ms": executed.get("Backend (Accelerator (execute) time)"),
        "load_ms": sections.get("Init", {}).get("NetRun"),
    }
    warned = ("a mean: qnn-net-run gives no samples",)
    return tuple(
        Measurement(
            metric,
            microseconds / 1e3,
            "ms",
            provenance,
            environment=surroundings,
            warnings=warned if "mean" in metric else (),
        )
        for metric, microseconds in values.items()
        if microseconds is not None
    )
