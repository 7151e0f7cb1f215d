"""The runtime `tflite`: litert-torch converts, ai-edge-quantizer quantizes, LiteRT runs.

The graph is that of the passes, through `edgeport.runtimes.onnx_module`. The file's inputs and
outputs have the ONNX graph's names and order, in its signature and its subgraph alike, and stay
floats; 64-bit integers become 32-bit ones, which is what phones compute in.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeport.errors import InputError, StageFailed
from edgeport.runtimes import CompileRequest
from edgeport.runtimes.samples import load_samples
from edgeport.types import NodeReport, Precision

if TYPE_CHECKING:
    import onnx

NAME = "tflite"
FILE = "model.tflite"
SIGNATURE = "serving_default"  # the name that Android's and Python's interpreters look for
_TOOLS = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")
_INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_SLOW = (
    "neither XNNPACK nor the GPU delegate computes 16-bit activations: on the CPU, w8a16 runs in"
    " LiteRT's reference kernels, slower than float"
)
_NORMALISATIONS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")
_MODULE_PATH = re.compile(r"(?:[\w.]+/)?[\w.]*onnx_module\._Operator_")


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Writes `model.tflite`; returns its tensors as the app meets them, and the tools' versions.

    Raises InputError for an operator that does not reach torch, and StageFailed where the
    converter or the quantizer fails.
    """
    import onnx

    graph = onnx.load(request.model).graph
    held = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in held]
    content, operators = _converted(request.model, inputs)
    content = _signed(content, [one.name for one in inputs], [one.name for one in graph.output])
    if request.precision != "float":
        recipe = _recipe(request.precision, operators)
        content = _quantized(content, recipe, request.calibration)
    target = Path(request.directory, FILE)
    target.write_bytes(_named(content))
    session = LiteSession(target, 1)
    return {
        "tools": {tool: metadata.version(tool) for tool in _TOOLS},
        "signature": SIGNATURE,
        "inputs": session.inputs,
        "outputs": session.outputs,
        "notes": [_SLOW] if request.precision == "w8a16" else [],
    }


class LiteSession:
    """A .tflite file in LiteRT's interpreter, with XNNPACK."""

    def __init__(self, path: Path, threads: int) -> None:
        interpreter = _interpreter_class()
        try:
            self._interpreter = interpreter(model_path=str(path), num_threads=threads)
            self._runner = self._interpreter.get_signature_runner(SIGNATURE)
        except (RuntimeError, ValueError) as error:  # its binding's own: no model, or no such one
            line = next(iter(str(error).splitlines()), "")
            raise StageFailed("tflite", f"LiteRT cannot load {path.name}: {line[:200]}") from error
        self._takes = _in_order(
            self._runner.get_input_details(), self._interpreter.get_input_details()
        )
        self._gives = _in_order(
            self._runner.get_output_details(), self._interpreter.get_output_details()
        )

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns the outputs in the graph's order; integers are taken at the file's width."""
        given = {name: np.asarray(feed[name], one["dtype"]) for name, one in self._takes.items()}
        results = self._runner(**given)
        return tuple(results[name] for name in self._gives)

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The inputs in the graph's order: name, dtype and shape."""
        return [_tensor(name, one) for name, one in self._takes.items()]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs in the graph's order: name, dtype and shape."""
        return [_tensor(name, one) for name, one in self._gives.items()]


def load(directory: Path, device: Mapping[str, Any], threads: int = 0) -> LiteSession:
    """Returns the model in `directory`; `threads` of 0 takes as many as this process may use."""
    return LiteSession(directory / FILE, threads or len(os.sched_getaffinity(0)))


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns for each operator whether LiteRT's GPU delegate would take it, were it asked for."""
    from edgeport.runtimes.tflite_delegate import report_file

    return report_file(directory / FILE)


def _interpreter_class() -> Any:
    """Returns the Interpreter of ai-edge-litert, or of its predecessor on a board that has it."""
    for name in _INTERPRETERS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name).Interpreter
    raise InputError("no interpreter of LiteRT is here: pip install ai-edge-litert")


def _in_order(
    named: Mapping[str, Mapping[str, Any]], ordered: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Returns the signature's tensors by name, in the order of the subgraph, which is the graph's.

    The signature sorts them by name.
    """
    places = {one["index"]: place for place, one in reversed(list(enumerate(ordered)))}
    return dict(sorted(named.items(), key=lambda item: places[item[1]["index"]]))


def _tensor(name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    shape = [int(size) for size in details["shape"]]
    return {"name": name, "dtype": np.dtype(details["dtype"]).name, "shape": shape}


# Converting


def _converted(
    model: str, inputs: Sequence[onnx.ValueInfoProto]
) -> tuple[bytes, Mapping[str, str]]:
    """Returns the float file's content, as the converter names things, and each node's operator."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    import litert_torch
    import torch

    from edgeport.runtimes.onnx_module import onnx_module

    module = onnx_module(Path(model))
    examples = tuple(torch.from_numpy(_example(one)) for one in inputs)
    with torch.no_grad():
        module(*examples)  # what torch refuses of a graph is told of its node, not of a trace
        try:
            converted = litert_torch.convert(module, examples)
            return bytes(converted.model_content()), module.operators
        except Exception as error:  # torch.export's, the lowering's and MLIR's share no class
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise StageFailed("lower", f"litert-torch does not convert it: {line}") from error


def _example(value: onnx.ValueInfoProto) -> NDArray[Any]:
    """Returns zeros for an input; raises InputError where its shape is not static."""
    import onnx

    tensor = value.type.tensor_type
    sizes = [one.dim_value for one in tensor.shape.dim]
    if any(one.HasField("dim_param") or not one.HasField("dim_value") for one in tensor.shape.dim):
        raise InputError(f"input {value.name} has no static shape: give it with --input")
    return np.zeros(sizes, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _signed(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Returns the file with the graph's names and order in its signature."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    (signature,) = model.signatureDefs
    sides = ((signature.inputs, inputs, "args"), (signature.outputs, outputs, "output"))
    for entries, names, prefix in sides:
        places = {entry.name.decode(): entry for entry in entries}
        # As torch's flattened arguments are called; an app's buffers follow the entries' order.
        entries[:] = [places[f"{prefix}_{place}"] for place in range(len(names))]
        for entry, name in zip(entries, names, strict=True):
            entry.name = name.encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _named(content: bytes) -> bytes:
    """Returns the file with its signature's names for the tensors at its ends, the nodes' within.

    The converter writes each node's path in the module, and the quantizer appends what it did.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    (signature,) = model.signatureDefs
    subgraph = model.subgraphs[signature.subgraphIndex]  # others are bodies of composites
    ends = {entry.tensorIndex: entry.name for entry in (*signature.outputs, *signature.inputs)}
    taken = {name.decode() for name in ends.values()}
    for index, tensor in enumerate(subgraph.tensors):
        if index in ends:
            tensor.name = ends[index]
        else:
            name = _unique(_MODULE_PATH.sub("", tensor.name.decode()), taken)
            taken.add(name)
            tensor.name = name.encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _unique(name: str, taken: Container[str]) -> str:
    """Returns the name, numbered where it is taken: profilers and reports go by names."""
    numbered = (f"{name}_{number}" for number in count(1))
    return next(one for one in chain((name,), numbered) if one not in taken)


# Quantizing


def _quantized(
    content: bytes, recipe: Sequence[Mapping[str, Any]], calibration: str | None
) -> bytes:
    """Returns the file quantized; the ranges of static ones are the extremes of the feeds."""
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(bytearray(content), list(recipe))
    ranges = None
    if tool.need_calibration:
        assert calibration is not None
        ranges = _ranges(content, tool, calibration)
    try:
        return bytes(tool.quantize(ranges).quantized_model)
    except Exception as error:  # the quantizer's classes are Python's own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StageFailed("lower", f"ai-edge-quantizer refuses it: {line}") from error


def _recipe(precision: Precision, operators: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns ai-edge-quantizer's recipe for a precision; inputs and outputs stay as they are.

    Where activations are quantized, the parts that a normalisation was converted to stay floats,
    since it is one operator: between them DeiT-Tiny loses 14 dB in w8a16.
    """
    from ai_edge_quantizer import recipe

    recipes = {
        "w8a8": recipe.static_wi8_ai8,
        "w8a16": recipe.static_wi8_ai16,
        "w8-dynamic": recipe.dynamic_wi8_afp32,
        "w8": recipe.weight_only_wi8_afp32,
        "w4": recipe.weight_only_wi4_afp32,
    }
    everything: list[dict[str, Any]] = recipes[precision]()
    if precision == "w4":  # what has no 4-bit kernel, as depthwise convolutions, gets 8 bits
        return [*recipes["w8"](), *({**one, "regex": ".+"} for one in everything)]
    if precision not in ("w8a8", "w8a16"):
        return everything
    whole = [re.escape(name) for name, one in operators.items() if one in _NORMALISATIONS]
    parts = [_in_float(f"^{_MODULE_PATH.pattern}(?:{'|'.join(whole)});", "*")] if whole else []
    return [*everything, *parts, _in_float(".*", "INPUT"), _in_float(".*", "OUTPUT")]


def _in_float(tensors: str, operator: str) -> dict[str, Any]:
    return {
        "regex": tensors,
        "operation": operator,
        "algorithm_key": "no_quantize",
        "op_config": {},
    }


def _ranges(content: bytes, tool: Any, calibration: str) -> Any:
    """Returns the least and largest value of every tensor over the calibration feeds.

    The quantizer's own default is a moving average, which clips what it saw and depends on the
    order of the feeds.
    """
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    feeds = list(_as_taken(content, calibration))
    watcher = calibrator.Calibrator(
        content,
        num_threads=len(os.sched_getaffinity(0)),
        qsv_update_func=qsv_utils.min_max_update,
    )
    watcher.calibrate({SIGNATURE: feeds}, tool._recipe_manager)
    return watcher.get_model_qsvs()


def _as_taken(content: bytes, calibration: str) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the calibration feeds in the element types of the file."""
    runner = _interpreter_class()(model_content=content).get_signature_runner(SIGNATURE)
    takes = runner.get_input_details()
    for feed in load_samples(Path(calibration)):
        yield {name: np.asarray(feed[name], one["dtype"]) for name, one in takes.items()}
