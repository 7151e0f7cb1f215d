"""The runtime `qnn_context_binary`: compiled for one chip by Qualcomm's own HTP compiler.

The compiler and the NPU's emulator come in the onnxruntime-qnn wheel. Both run only in a child
process: they can abort, hang, or take all memory. This module is that child's.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeport.descriptors import redirected
from edgeport.errors import StageFailed
from edgeport.runtimes import CompileRequest
from edgeport.runtimes.onnx import REWRITES_FLOAT_LAYERS
from edgeport.runtimes.qnn_validator import read_reasons
from edgeport.types import NodeReport, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "qnn_context_binary"
BINARY, WRAPPER, PLACEMENT = "model.bin", "model_ctx.onnx", "placement.json"
PROVIDER = "QNNExecutionProvider"
_CONVERTERS = ("QuantizeLinear", "DequantizeLinear")


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Writes `model.bin` and its EPContext wrapper `model_ctx.onnx`; returns the QAIRT version.

    A float model is compiled as fp16. Fallback to the CPU is forbidden: raises StageFailed with
    the nodes that would land there.
    """
    wrapper = Path(request.directory, WRAPPER)
    entries = {
        "ep.context_enable": "1",
        "ep.context_file_path": str(wrapper),
        "ep.context_embed_mode": "0",
    }
    compile_whole(request, entries, leftovers=f"{wrapper.stem}*")
    return {"qairt_version": _adopt_binary(wrapper)}


def compile_whole(
    request: CompileRequest,
    entries: Mapping[str, str],
    options: Mapping[str, str] = MappingProxyType({}),
    *,
    leftovers: str,
) -> None:
    """Has the provider compile the model, all of it for the NPU, and writes placement.json.

    `entries` and `options` are the session's and the provider's own, beside those that every
    compilation has: they say what is written. `leftovers` is a pattern of the files to remove where
    a part of the graph was compiled and another was refused. Raises StageFailed.
    """
    provider = compiler_options(request.device, request.precision)
    record = {"session.record_ep_graph_assignment_info": "1"}
    strict = {**record, "session.disable_cpu_ep_fallback": "1"}
    directory = Path(request.directory)
    try:
        session = session_here(request.model, {**provider, **options}, {**strict, **entries})
    except Exception as error:  # onnxruntime's binding raises a class per status code
        if "MEM_ALLOC" in str(error):
            raise MemoryError(str(error)) from error
        if "fallback to CPU EP has been explicitly disabled" not in str(error):
            raise StageFailed("lower", _translate(str(error))) from error
        for part in directory.glob(leftovers):  # of what did land on the NPU
            part.unlink()
        nodes = explained_placement(request.model, directory, provider, record)
        raise StageFailed("lower", _fallback_sentence(nodes)) from error
    _write_placement(directory, _placement(session))


class EmulatedSession:
    """A context binary in the vendor's emulator."""

    def __init__(self, wrapper: Path, device: Mapping[str, Any]) -> None:
        entries = {"session.disable_cpu_ep_fallback": "1"}
        self._session = session_here(str(wrapper), provider_options(device), entries)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns the outputs in the graph's order."""
        return tuple(self._session.run(None, dict(feed)))


def load(directory: Path, device: Mapping[str, Any]) -> EmulatedSession:
    """Returns the context binary in `directory`, to be run in the emulator of the device's NPU."""
    return EmulatedSession(directory / WRAPPER, device)


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns where the compiler put each operator of the model."""
    placed = json.loads((directory / PLACEMENT).read_text(encoding="utf-8"))
    return [NodeReport(**node) for node in placed]


def compiler_options(device: Mapping[str, Any], precision: Precision) -> dict[str, str]:
    """Returns the provider's options with which a model is compiled for a device of these facts."""
    floats = precision == "float" or (precision == "auto" and device.get("fp16") is True)
    return {**provider_options(device), **({"enable_htp_fp16_precision": "1"} if floats else {})}


def provider_options(device: Mapping[str, Any]) -> dict[str, str]:
    """Returns the provider's options with which a compiled binary runs in the emulator."""
    return {
        # Without the chip's id the emulator computes in nearly fp32, and hides fp16's error.
        "soc_model": str(device["soc_model"]),
        "htp_arch": str(device["htp_arch"]),
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
    path = Path(model)
    # What is compiled has the graph's name in it, and that is made from the path as it is given:
    # of the folder, which differs from one export to the next, nothing may get in.
    with contextlib.chdir(path.parent):
        return ort.InferenceSession(path.name, options, disabled_optimizers=REWRITES_FLOAT_LAYERS)


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
    _write_placement(directory, nodes)
    return nodes


def _write_placement(directory: Path, nodes: list[dict[str, str]]) -> None:
    (directory / PLACEMENT).write_text(json.dumps(nodes, indent=2), encoding="utf-8")


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
    attributes = context_attributes(model)
    written = attributes["ep_cache_context"].s.decode()
    wrapper.with_name(written).rename(wrapper.with_name(BINARY))
    attributes["ep_cache_context"].s = BINARY.encode()
    onnx.save(model, wrapper)
    return compiled_with(attributes)


def context_attributes(model: Any) -> dict[str, Any]:
    """Returns the attributes of the one EPContext node of a wrapper, by name, to be changed."""
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if len(contexts) != 1:
        raise StageFailed("lower", f"the graph was split into {len(contexts)} NPU graphs, not one")
    return {attribute.name: attribute for attribute in contexts[0].attribute}


def compiled_with(attributes: Mapping[str, Any]) -> str:
    """Returns the QAIRT version that a wrapper's attributes state."""
    version = attributes.get("ep_sdk_version")
    return version.s.decode() if version is not None else ""
