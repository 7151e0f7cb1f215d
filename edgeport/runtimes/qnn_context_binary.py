"""The runtime `qnn_context_binary`: compiled for one chip by Qualcomm's own HTP compiler.

The compiler and the NPU's emulator come in the onnxruntime-qnn wheel. Both run only in a child
process: they can abort, hang, or take all memory. The functions named `_..._here` are that child's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.descriptors import redirected
from edgeport.errors import StageFailed
from edgeport.runtimes.onnx import REWRITES_FLOAT_LAYERS
from edgeport.runtimes.qnn_validator import read_reasons
from edgeport.runtimes.samples import Sample, load_samples, named_outputs, save_samples
from edgeport.runtimes.worker import Limits, run_in_child
from edgeport.types import Device, NodeReport, Precision

NAME = "qnn_context_binary"
BINARY, WRAPPER = "model.bin", "model_ctx.onnx"
PROVIDER = "QNNExecutionProvider"
_CONVERTERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Compiled:
    """What the compiler said: the node placement, and the QAIRT version inside the binary."""

    nodes: tuple[NodeReport, ...]
    qairt_version: str


def compile_model(
    model: Path, directory: Path, device: Device, precision: Precision, limits: Limits
) -> Compiled:
    """Writes `model.bin` and its EPContext wrapper `model_ctx.onnx` into `directory`.

    A float model is compiled as fp16. Fallback to the CPU is forbidden: raises StageFailed with
    the nodes that would land there, and RuntimeCrashed when the compiler aborts, hangs or takes
    more than its limits.
    """
    options = compiler_options(device, precision)
    report = run_in_child(
        f"{__name__}:_compile_here",
        {
            "model": str(model.resolve()),
            "directory": str(directory.resolve()),
            "provider": options,
        },
        stage="lower",
        workdir=directory,
        limits=limits,
    )
    nodes = tuple(NodeReport(**node) for node in report["nodes"])
    return Compiled(nodes, report["qairt_version"])


def run_emulated(
    compiled: Path, workdir: Path, inputs: Path, device: Device, limits: Limits
) -> list[Sample]:
    """Returns the outputs that the files in `compiled` give in the vendor's emulator.

    `inputs` is a file of `save_samples`. The numbers are the NPU's; the time it takes means
    nothing. Raises RuntimeCrashed.
    """
    outputs = workdir / "emulated_outputs.npz"
    run_in_child(
        f"{__name__}:_run_here",
        {
            "wrapper": str((compiled / WRAPPER).resolve()),
            "inputs": str(inputs.resolve()),
            "outputs": str(outputs.resolve()),
            "provider": provider_options(device),
        },
        stage="run",
        workdir=workdir,
        limits=limits,
    )
    return load_samples(outputs)


def compiler_options(device: Device, precision: Precision) -> dict[str, str]:
    """Returns the provider's options with which a model is compiled for the device."""
    floats = precision == "float" or (precision == "auto" and device.fact("fp16") is True)
    return {**provider_options(device), **({"enable_htp_fp16_precision": "1"} if floats else {})}


def provider_options(device: Device) -> dict[str, str]:
    """Returns the provider's options with which a compiled binary runs in the emulator."""
    return {
        # Without the chip's id the emulator computes in nearly fp32, and hides fp16's error.
        "soc_model": str(device.fact("soc_model")),
        "htp_arch": str(device.fact("htp_arch")),
        "htp_graph_finalization_optimization_mode": "3",
        # The graph's own QuantizeLinear and DequantizeLinear run on the NPU, not on the CPU.
        "offload_graph_io_quantization": "0",
    }


def session_here(
    model: str, provider: Mapping[str, str], entries: Mapping[str, str], *, verbose: bool = False
) -> Any:
    import onnxruntime as ort
    import onnxruntime_qnn

    if not any(device.ep_name == PROVIDER for device in ort.get_ep_devices()):  # once a process
        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    options = ort.SessionOptions()
    options.log_severity_level = 0 if verbose else 2
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices(devices, {**provider, **backend})
    return ort.InferenceSession(model, options, disabled_optimizers=REWRITES_FLOAT_LAYERS)


def _compile_here(model: str, directory: str, provider: dict[str, str]) -> dict[str, Any]:
    wrapper = Path(directory, WRAPPER)
    record = {"session.record_ep_graph_assignment_info": "1"}
    entries = {
        "session.disable_cpu_ep_fallback": "1",
        "ep.context_enable": "1",
        "ep.context_file_path": str(wrapper),
        "ep.context_embed_mode": "0",
    }
    try:
        session = session_here(model, provider, {**record, **entries})
    except Exception as error:  # onnxruntime's binding raises a class per status code
        if "MEM_ALLOC" in str(error):
            raise MemoryError(str(error)) from error
        if "fallback to CPU EP has been explicitly disabled" not in str(error):
            raise StageFailed("lower", _translate(str(error))) from error
        for part in Path(directory).glob(f"{wrapper.stem}*"):  # of what did land on the NPU
            part.unlink()
        nodes = explained_placement(model, Path(directory), provider, record)
        raise StageFailed("lower", _fallback_sentence(nodes)) from error
    return {"nodes": _placement(session), "qairt_version": _adopt_binary(wrapper)}


def _placement(session: Any) -> list[dict[str, str]]:
    """Returns a NodeReport's fields for every operator; Q and DQ count only on the CPU."""
    reports = []
    for subgraph in session.get_provider_graph_assignment_info():
        on_npu = subgraph.ep_name == PROVIDER
        for node in subgraph.get_nodes():
            if not on_npu or node.op_type not in _CONVERTERS:
                unit = "npu" if on_npu else "cpu"
                reports.append({"node": node.name, "op": node.op_type, "unit": unit})
    return reports


def explained_placement(
    model: str, directory: Path, provider: dict[str, str], record: dict[str, str]
) -> list[dict[str, str]]:
    """Returns the placement with the validator's reasons; also writes it to placement.json.

    Compiles once more, with the fallback allowed, only to learn which nodes would use it.
    """
    log = directory / "validator.log"
    with log.open("wb") as file, redirected(2, file.fileno()):
        session = session_here(model, provider, record, verbose=True)
    reasons = read_reasons(log.read_text(encoding="utf-8", errors="replace"))
    nodes = [{**node, "reason": reasons.get(node["node"], "")} for node in _placement(session)]
    (directory / "placement.json").write_text(json.dumps(nodes, indent=2), encoding="utf-8")
    return nodes


def _fallback_sentence(nodes: list[dict[str, str]]) -> str:
    fallen = [node for node in nodes if node["unit"] == "cpu"]
    # A refused operator takes its QuantizeLinear and DequantizeLinear with it.
    on_cpu = [node for node in fallen if node["op"] not in _CONVERTERS] or fallen
    counts = Counter((node["op"], node["reason"]) for node in on_cpu)
    causes = [
        f"{count} {operator}{f': {reason}' if reason else ''}"
        for (operator, reason), count in counts.most_common(3)
    ]
    more = f"; and {len(counts) - 3} more causes" if len(counts) > 3 else ""
    return (
        f"{len(on_cpu)} of {len(nodes)} ops would run on the CPU, which is forbidden"
        f" ({'; '.join(causes)}{more}; each node: placement.json); rewrite them, or export for"
        " --target-runtime onnx"
    )


def _translate(message: str) -> str:
    if "NHWC format" in message:  # a convolution was laid out for the NPU, which then refused it
        return (
            "the compiler refused a convolution: this chip does not compute it in this precision,"
            " or the compiler was short of memory (--memory); try w8a8 or w8a16"
        )
    return next(iter(message.splitlines()), "")


def _adopt_binary(wrapper: Path) -> str:
    """Renames the context that the provider wrote to model.bin; returns the QAIRT version in it."""
    import onnx

    if not wrapper.is_file():
        raise StageFailed("lower", "the compiler reported success and wrote no context binary")
    model = onnx.load(wrapper, load_external_data=False)
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if len(contexts) != 1:
        raise StageFailed("lower", f"the graph was split into {len(contexts)} NPU graphs, not one")
    attributes = {attribute.name: attribute for attribute in contexts[0].attribute}
    written = attributes["ep_cache_context"].s.decode()
    wrapper.with_name(written).rename(wrapper.with_name(BINARY))
    attributes["ep_cache_context"].s = BINARY.encode()
    onnx.save(model, wrapper)
    version = attributes.get("ep_sdk_version")
    return version.s.decode() if version is not None else ""


def _run_here(wrapper: str, inputs: str, outputs: str, provider: dict[str, str]) -> None:
    session = session_here(wrapper, provider, {"session.disable_cpu_ep_fallback": "1"})
    results = [named_outputs(session.run(None, dict(one))) for one in load_samples(Path(inputs))]
    save_samples(Path(outputs), results)
