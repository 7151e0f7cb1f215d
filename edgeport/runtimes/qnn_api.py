"""QNN's own C interface, through ctypes: from a .dlc to a context binary for one chip.

onnxruntime's provider writes a .dlc and cannot read one. The libraries it ships can: libQnnSystem
reads the file and composes its graphs on a backend, here libQnnHtp, which compiles them. Only the
child process may call this.

Order of functions and layout of structures: QnnInterface.h (core API 2), QnnSystemInterface.h
(system API 1), QnnTypes.h, QnnDevice.h and QnnHtpDevice.h of the QAIRT SDK. Both tables of
functions only ever grow at their end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from ctypes import Structure, addressof, byref, c_char_p, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.errors import StageFailed

_CORE = {
    "backendCreate": 1,
    "backendFree": 8,
    "contextCreate": 9,
    "contextGetBinarySize": 11,
    "contextGetBinary": 12,
    "contextFree": 14,
    "graphFinalize": 19,
    "graphRetrieve": 20,
    "deviceCreate": 40,
    "deviceFree": 43,
}
_SYSTEM = {
    "systemDlcCreateFromFile": 8,
    "systemDlcComposeGraphs": 10,
    "systemDlcFree": 12,
    "systemDlcGetComposableGraphInfoHandles": 27,
    "systemDlcGetComposableGraphInfoGraphName": 31,
    "systemDlcGetComposableGraphInfoNumInputTensors": 32,
    "systemDlcGetComposableGraphInfoNumOutputTensors": 33,
    "systemDlcGetGraphInfoInputTensorInfo": 34,
    "systemDlcGetGraphInfoOutputTensorInfo": 35,
    "systemDlcGetTensorInfoName": 36,
    "systemDlcGetTensorInfoDataType": 40,
    "systemDlcGetTensorInfoRank": 41,
    "systemDlcGetTensorInfoDimensions": 42,
}
_SYSTEM_MINOR = 15  # of libQnnSystem 2.51, which has all of these
_CORE_FUNCTIONS = 75  # of core API 2.40, which libQnnHtp 2.51 has
_GRAPH_INFO_VERSION = 1


class _Interface(Structure):
    """QnnInterface_t: an id, a name, two versions of three numbers, and the table of functions."""

    _fields_ = (
        ("backend_id", c_uint32),
        ("name", c_char_p),
        ("core_version", c_uint32 * 3),
        ("backend_version", c_uint32 * 3),
        ("functions", c_void_p * _CORE_FUNCTIONS),
    )


class _SystemInterface(Structure):
    """QnnSystemInterface_t, with the functions that are used here."""

    _fields_ = (
        ("backend_id", c_uint32),
        ("name", c_char_p),
        ("version", c_uint32 * 3),
        ("functions", c_void_p * (max(_SYSTEM.values()) + 1)),
    )


class _Option(Structure):
    """QnnDevice_Config_t and QnnHtpDevice_CustomConfig_t: an option's number, and its value.

    Those used here, CUSTOM and SOC, are both number 0.
    """

    _fields_ = (("option", c_uint32), ("value", c_uint64))


class _Library:
    """A table of QNN functions, called by name; raises StageFailed for an error code."""

    def __init__(self, path: Path, providers: str, layout: Any, places: Mapping[str, int]) -> None:
        get = getattr(ctypes.CDLL(str(path)), providers)
        get.restype = c_uint64
        found, count = c_void_p(), c_uint32()
        if get(byref(found), byref(count)) or not count.value or not found.value:
            raise StageFailed("run", f"{path.name} provides no QNN interface")
        self.name, self._places = path.name, places
        self.interface = layout.from_address(c_void_p.from_address(found.value).value)

    def function(self, name: str) -> int:
        """Returns the function's address; raises StageFailed where this library has it not."""
        address: int | None = self.interface.functions[self._places[name]]
        if not address:
            raise StageFailed("run", f"{self.name} has no {name}")
        return address

    def __call__(self, name: str, *arguments: Any) -> None:
        check(name, ctypes.CFUNCTYPE(c_uint64)(self.function(name))(*arguments))


def check(name: str, code: int) -> None:
    """Raises StageFailed where QNN's function `name` gave an error code."""
    if code:
        raise StageFailed("run", f"QNN's {name} failed with error {code & 0xFFFF}")


@dataclass(frozen=True)
class DlcTensor:
    """An input or output of a graph: its QNN data type (`Qnn_DataType_t`) and its shape."""

    name: str
    data_type: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DlcGraph:
    """A .dlc's graph, in the order of the model that it was made from."""

    name: str
    inputs: tuple[DlcTensor, ...]
    outputs: tuple[DlcTensor, ...]


def compile_dlc(dlc: Path, binary: Path, libraries: Path, soc_model: int) -> DlcGraph:
    """Compiles the only graph of a .dlc for a chip, into the context binary `binary`.

    `libraries` is the folder of libQnnHtp and libQnnSystem. Raises StageFailed, with QNN's error
    code, where they do not take the file.
    """
    core = _Library(libraries / "libQnnHtp.so", "QnnInterface_getProviders", _Interface, _CORE)
    system = _Library(
        libraries / "libQnnSystem.so", "QnnSystemInterface_getProviders", _SystemInterface, _SYSTEM
    )
    if tuple(system.interface.version[:2]) < (1, _SYSTEM_MINOR):
        raise StageFailed("run", "libQnnSystem is too old: pip install -U onnxruntime-qnn")
    chip = _Option(0, soc_model)
    custom = _Option(0, addressof(chip))
    options = (c_void_p * 2)(addressof(custom), None)
    file, backend, device, context = (c_void_p() for _ in range(4))
    with ExitStack() as stack:
        core("backendCreate", None, None, byref(backend))
        stack.callback(core, "backendFree", backend)
        core("deviceCreate", None, options, byref(device))
        stack.callback(core, "deviceFree", device)
        core("contextCreate", backend, device, None, byref(context))
        stack.callback(core, "contextFree", context, None)
        system("systemDlcCreateFromFile", None, str(dlc).encode(), byref(file))
        stack.callback(system, "systemDlcFree", file)
        graph = _only_graph(system, file)
        _compose(core, system, file, backend, context)
        composed = c_void_p()
        core("graphRetrieve", context, graph.name.encode(), byref(composed))
        core("graphFinalize", composed, None, None)
        binary.write_bytes(_context_binary(core, context))
    return graph


def _compose(
    core: _Library, system: _Library, file: c_void_p, backend: c_void_p, context: c_void_p
) -> None:
    """Adds the graphs of the .dlc to the context, with the backend's own default settings.

    QnnInterface_t goes by value. A later version is longer; where structures lie on the stack, as
    on x86-64, what follows would then be read further on. So the last two arguments, pointers to
    where the graphs and their number go, are followed by more of their kind.
    """
    places = [(c_uint64 * 2)() for _ in range(16)]
    kinds = (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, _Interface, c_uint32)
    call = ctypes.CFUNCTYPE(c_uint64, *kinds, *[c_void_p] * len(places))
    name = "systemDlcComposeGraphs"
    code = call(system.function(name))(
        file,
        None,
        0,
        backend,
        context,
        core.interface,
        _GRAPH_INFO_VERSION,
        *map(addressof, places),
    )
    check(name, code)


def _only_graph(system: _Library, file: c_void_p) -> DlcGraph:
    handles, count = c_void_p(), c_uint32()
    system("systemDlcGetComposableGraphInfoHandles", file, byref(handles), byref(count))
    if count.value != 1 or not handles.value:
        raise StageFailed("run", f"the .dlc holds {count.value} graphs, not one")
    graph = c_void_p(c_void_p.from_address(handles.value).value)
    name = c_char_p()
    system("systemDlcGetComposableGraphInfoGraphName", graph, byref(name))
    inputs, outputs = (_tensors(system, graph, kind) for kind in ("Input", "Output"))
    return DlcGraph((name.value or b"").decode(), inputs, outputs)


def _tensors(system: _Library, graph: c_void_p, kind: str) -> tuple[DlcTensor, ...]:
    """Returns the graph's tensors of a kind, "Input" or "Output"."""
    count = c_uint32()
    system(f"systemDlcGetComposableGraphInfoNum{kind}Tensors", graph, byref(count))
    tensors = []
    for index in range(count.value):
        tensor, name, data_type, rank = c_void_p(), c_char_p(), c_uint32(), c_uint32()
        system(f"systemDlcGetGraphInfo{kind}TensorInfo", graph, c_uint32(index), byref(tensor))
        system("systemDlcGetTensorInfoName", tensor, byref(name))
        system("systemDlcGetTensorInfoDataType", tensor, byref(data_type))
        system("systemDlcGetTensorInfoRank", tensor, byref(rank))
        shape = (c_uint32 * rank.value)()
        system("systemDlcGetTensorInfoDimensions", tensor, shape)
        tensors.append(DlcTensor((name.value or b"").decode(), data_type.value, tuple(shape)))
    return tuple(tensors)


def _context_binary(core: _Library, context: c_void_p) -> bytes:
    size, written = c_uint64(), c_uint64()
    core("contextGetBinarySize", context, byref(size))
    content = (ctypes.c_char * size.value)()
    core("contextGetBinary", context, content, size, byref(written))
    return content.raw[: written.value]
