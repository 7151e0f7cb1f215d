"""The runtime `qnn_dlc`: Qualcomm's deep learning container, a graph that no chip is named in.

onnxruntime's QNN provider asks the HTP's validator for every operator, as it does for a context
binary, and writes the graph that it would compile as a .dlc in place of compiling it. A phone's
QAIRT, or here the emulator, compiles it when it loads it. This module is the child process's.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport.errors import StageFailed
from edgeport.runtimes import CompileRequest, qnn_context_binary
from edgeport.runtimes.qnn_context_binary import EmulatedSession, compile_whole
from edgeport.types import NodeReport

if TYPE_CHECKING:
    import onnx

    from edgeport.runtimes.qnn_api import DlcGraph, DlcTensor

NAME = "qnn_dlc"
FILE = "model.dlc"
_HISTORY = "dlc.metadata.history"
_TIMESTAMP = re.compile(rb'(?<="timestamp": ")\d{4}-\d\d-\d\d \d\d:\d\d:\d\d')
_NO_TIME = b"1980-01-01 00:00:00"  # as in the archive's own headers
# Qnn_DataType_t (QnnTypes.h) -> the element type that onnx names so
_ELEMENTS = {
    0x0008: "INT8",
    0x0016: "INT16",
    0x0032: "INT32",
    0x0064: "INT64",
    0x0108: "UINT8",
    0x0116: "UINT16",
    0x0132: "UINT32",
    0x0164: "UINT64",
    0x0216: "FLOAT16",
    0x0232: "FLOAT",
    0x0308: "INT8",  # signed and unsigned fixed point: quantized
    0x0316: "INT16",
    0x0408: "UINT8",
    0x0416: "UINT16",
    0x0508: "BOOL",
}


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Writes `model.dlc`; returns the QAIRT version that wrote it.

    Raises StageFailed with the nodes that would land on the CPU, as for a context binary.
    """
    import onnxruntime_qnn

    directory = Path(request.directory)
    options = {
        "dump_qnn_ir_dlc": "1",
        "dump_qnn_ir_dlc_dir": str(directory),
        "qnn_ir_backend_path": str(Path(onnxruntime_qnn.LIB_DIR_FULL_PATH, "libQnnIr.so")),
    }
    compile_whole(request, {}, options, leftovers="*.dlc")
    written = sorted(directory.glob("*.dlc"))
    if len(written) != 1:
        raise StageFailed("lower", f"the graph was split into {len(written)} NPU graphs, not one")
    file = written[0].rename(directory / FILE)
    return {"qairt_version": settle(file)}


def load(directory: Path, device: Mapping[str, Any]) -> EmulatedSession:
    """Returns the .dlc in `directory`, compiled for the device's chip, to be run in its emulator.

    QNN composes and compiles the graph into a context binary; the provider runs that.
    """
    import onnx
    import onnxruntime_qnn

    from edgeport.runtimes.qnn_api import compile_dlc

    folder = Path(tempfile.mkdtemp())
    libraries = Path(onnxruntime_qnn.LIB_DIR_FULL_PATH)
    binary, wrapper = folder / qnn_context_binary.BINARY, folder / qnn_context_binary.WRAPPER
    graph = compile_dlc(directory / FILE, binary, libraries, int(device["soc_model"]))
    onnx.save(_wrapper(graph, binary.name), wrapper)
    return EmulatedSession(wrapper, device)


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns where the HTP's validator puts each operator of the model."""
    return qnn_context_binary.report_nodes(directory)


def settle(file: Path) -> str:
    """Replaces the times in the file's metadata, which differ every second; returns the version.

    The archive's entries are stored as they are, without checksums: bytes of the same length can
    stand in their place.
    """
    content = bytearray(file.read_bytes())
    version = ""
    with zipfile.ZipFile(file) as archive:
        entries = [one for one in archive.infolist() if one.filename.startswith("dlc.metadata")]
    for entry in entries:
        assert entry.compress_type == zipfile.ZIP_STORED and entry.CRC == 0, entry
        place = _place(entry, content)
        content[place] = text = _TIMESTAMP.sub(_NO_TIME, content[place])
        if entry.filename.startswith(_HISTORY):
            made = json.loads(text)["dlcGenerationInfo"][-1]["converterCommand"]
            version = str(made["converterVersion"])
    file.write_bytes(content)
    return version


def _place(entry: zipfile.ZipInfo, content: bytearray) -> slice:
    """Returns where the entry's bytes lie: behind its header, its name and its extra field."""
    lengths = struct.unpack_from("<HH", content, entry.header_offset + 26)
    start = entry.header_offset + 30 + sum(lengths)
    return slice(start, start + entry.file_size)


def _wrapper(graph: DlcGraph, binary: str) -> onnx.ModelProto:
    """Returns the ONNX model of one EPContext node that names the binary."""
    from onnx import helper

    node = helper.make_node(
        "EPContext",
        [tensor.name for tensor in graph.inputs],
        [tensor.name for tensor in graph.outputs],
        name=graph.name,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context=binary,
        partition_name=graph.name,
        source=qnn_context_binary.PROVIDER,
    )
    inputs, outputs = ([_value(one) for one in side] for side in (graph.inputs, graph.outputs))
    made = helper.make_graph([node], graph.name, inputs, outputs)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=versions, ir_version=10)


def _value(tensor: DlcTensor) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    element = TensorProto.DataType.Value(_ELEMENTS[tensor.data_type])
    return helper.make_tensor_value_info(tensor.name, element, tensor.shape)
