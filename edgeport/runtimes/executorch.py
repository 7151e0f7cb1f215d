"""The runtime `executorch`: a .pte, whose operators XNNPACK takes where it can, run on the CPU.

The model reaches torch through `onnx_module`, so the passes that made the ONNX graph fit a phone
hold here too. Quantized is what ExecuTorch's own quantizer for XNNPACK makes of it: int8 weights
per output channel, and activations per tensor, calibrated or measured while the model runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeport.errors import StageFailed
from edgeport.runtimes import CompileRequest
from edgeport.runtimes.samples import load_samples
from edgeport.types import NodeReport

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

NAME = "executorch"
FILE, PLACEMENT = "model.pte", "placement.json"
INPUT_NAMES = "input_names"  # a method of the file that gives them, separated by newlines
_IN_XNNPACK, _PORTABLE = "in XNNPACK", "portable kernel, outside XNNPACK"
# What divides: which of its operands. What adds up: the walk back from there ends at any other.
_DIVISORS = {"sqrt": 0, "rsqrt": 0, "reciprocal": 0, "div": 1}
_SUMS = ("add", "mul", "pow", "mean", "sum")
_CONVOLUTIONS = ("conv2d", "conv_transpose2d", "convolution")
# What gives a result in the order of the graph, whatever the layout of its inputs in memory.
_ORDERED = ("view", "reshape", "flatten", "permute", "transpose", "matmul", "bmm", "linear")
_CONVERSIONS = ("quantize_per", "dequantize_per", "choose_qparams")


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Writes `model.pte`; returns how many operators XNNPACK takes, and a note on the others.

    Raises InputError where an operator has no translation to torch.
    """
    import executorch.kernels.quantized  # noqa: F401  the conversions outside XNNPACK
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from edgeport.runtimes.onnx_module import onnx_module

    zeros = _zeros(request.model)
    examples, names = tuple(zeros.values()), tuple(zeros)
    program = torch.export.export(onnx_module(Path(request.model)), examples)
    _view_before_softmax(program.graph)
    if request.precision != "float":
        seen = _calibration(request, names) or [examples]
        quantized = _quantized(program.module(), request.precision == "w8-dynamic", seen)
        program = torch.export.export(quantized, examples)
    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={INPUT_NAMES: "\n".join(names)},
    )
    nodes = _placed(lowered.exported_program())
    directory = Path(request.directory)
    (directory / PLACEMENT).write_text(json.dumps(nodes, indent=2), encoding="utf-8")
    (directory / FILE).write_bytes(lowered.to_executorch().buffer)
    return _facts(nodes)


class ProgramSession:
    """A loaded .pte."""

    def __init__(self, path: Path) -> None:
        import executorch.kernels.quantized  # noqa: F401
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        self._forward = self._program.load_method("forward")
        (names,) = self._program.load_method(INPUT_NAMES).execute([])
        self._names = names.split("\n")

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns the outputs in the graph's order."""
        import torch

        inputs = [torch.from_numpy(feed[name]).contiguous() for name in self._names]
        return tuple(output.numpy().copy() for output in self._forward.execute(inputs))


def load(directory: Path, device: Mapping[str, Any]) -> ProgramSession:
    """Returns the .pte in `directory`, run by ExecuTorch's Python runtime on this machine's CPU."""
    return ProgramSession(directory / FILE)


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns every operator: all run on the CPU; the reason says in whose kernel."""
    placed = json.loads((directory / PLACEMENT).read_text(encoding="utf-8"))
    return [NodeReport(**node) for node in placed]


def _zeros(model: str) -> dict[str, torch.Tensor]:
    """Returns a tensor of zeros for each input: an export reads shapes and types only."""
    import torch

    from edgeport.runtimes.onnx import Session

    return {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in Session(Path(model)).inputs()
    }


def _calibration(request: CompileRequest, names: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
    """Returns the inputs to calibrate on; none where activations are quantized as they come."""
    import torch

    if request.calibration is None:
        return []
    samples = load_samples(Path(request.calibration))
    return [tuple(torch.from_numpy(sample[name]) for name in names) for sample in samples]


def _view_before_softmax(graph: Any) -> None:
    """Puts a view of rank 2 before a softmax whose input a convolution may have laid out, and back.

    XNNPACK keeps a convolution's result with channels last, and its softmax takes the last axis in
    memory for the last of the graph: the sums would be over the channels.
    """
    import torch

    view = torch.ops.aten.view.default
    for node in list(graph.nodes):
        if _operator(node) != "softmax" or not _laid_out_by_convolution(node.args[0]):
            continue
        source, axis = node.args[:2]
        shape = list(source.meta["val"].shape)
        if len(shape) != 4 or axis not in (-1, 3):
            continue
        with graph.inserting_before(node):
            flat = graph.call_function(view, (source, [-1, shape[-1]]))
        flat.meta = {**source.meta, "val": source.meta["val"].flatten(0, -2)}
        with graph.inserting_after(node):
            back = graph.call_function(view, (node, shape))
        back.meta = dict(node.meta)
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        node.meta = {**node.meta, "val": node.meta["val"].flatten(0, -2)}
        node.args = (flat, -1, *node.args[2:])


def _laid_out_by_convolution(node: Any) -> bool:
    """Returns whether a convolution's layout may have reached a node's result."""
    seen, wanted = set(), [node]
    while wanted:
        one = wanted.pop()
        if _operator(one) in _CONVOLUTIONS:
            return True
        if _operator(one) not in _ORDERED and one not in seen:
            seen.add(one)
            wanted += one.all_input_nodes
    return False


def _quantized(graph: Any, dynamic: bool, seen: Iterable[tuple[torch.Tensor, ...]]) -> Any:
    """Returns the exported graph with int8 weights; the weights' ranges too are found by a run."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    _give_each_its_own(graph)
    floats = _divisors(graph)
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic))
    quantizer.set_filter_function(lambda node: node.name not in floats)
    prepared = prepare_pt2e(graph, quantizer)
    for inputs in seen:
        prepared(*inputs)
    return convert_pt2e(prepared)


def _give_each_its_own(module: Any) -> None:
    """Replaces a constant that several operators read with one for each.

    Of two convolutions with one bias, XNNPACK's quantizer takes only the first, and its serializer
    gives the second the bias in the first's scale.
    """
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        for index, user in enumerate(list(node.users)[1:]):
            name = f"{node.target.replace('.', '_')}_of_user_{index}"
            module.register_buffer(name, attrgetter(node.target)(module).detach().clone())
            with module.graph.inserting_before(node):
                copied = module.graph.get_attr(name)
            copied.meta = dict(node.meta)
            user.replace_input_with(node, copied)
    module.recompile()


def _divisors(module: Any) -> set[str]:
    """Returns the names of the nodes that make what is divided by: a variance, a sum.

    They stay in float: in int8 most variances are zero, once the largest has its place.
    """
    roots = [
        node.args[operand]
        for node in module.graph.nodes
        if (operand := _DIVISORS.get(_operator(node))) is not None
    ]
    found: set[str] = set()
    while roots:
        node = roots.pop()
        if _operator(node) in _SUMS and node.name not in found:
            found.add(node.name)
            roots += node.all_input_nodes
    return found


def _operator(node: Any) -> str:
    """Returns the name of aten's operator, as "add"; empty for what is none."""
    parts = str(getattr(node, "target", "")).split(".")
    return parts[1] if getattr(node, "op", "") == "call_function" and len(parts) > 1 else ""


def _placed(program: Any) -> list[dict[str, str]]:
    """Returns a NodeReport's fields for every operator; conversions count only outside XNNPACK."""
    nodes = []
    for node in program.graph.nodes:
        if node.op == "get_attr":
            delegated = getattr(program.graph_module, node.target).original_module.graph.nodes
            inside = [_report(one, _IN_XNNPACK) for one in delegated if _is_operator(one)]
            nodes += [one for one in inside if not one["op"].startswith(_CONVERSIONS)]
        elif _is_operator(node):
            nodes.append(_report(node, _PORTABLE))
    return nodes


def _is_operator(node: Any) -> bool:
    """Returns whether a node of the graph computes: a delegate's call and its parts do not."""
    return node.op == "call_function" and hasattr(node.target, "_op")


def _report(node: Any, reason: str) -> dict[str, str]:
    """Returns the report of a node under the name of the ONNX node that it came from."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    origin = paths[-1].rpartition(".")[2] if paths else ""
    operator = str(node.target._op).split(".")[1]
    return {"node": origin or node.name, "op": operator, "unit": "cpu", "reason": reason}


def _facts(nodes: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    outside = [node["op"] for node in nodes if node["reason"] == _PORTABLE]
    if len(outside) == len(nodes):
        raise StageFailed("lower", "XNNPACK took none of the operators")
    counts = ", ".join(f"{count} {name}" for name, count in Counter(outside).most_common(4))
    note = f"{len(outside)} of {len(nodes)} ops run outside XNNPACK, in portable kernels: {counts}"
    return {"delegated": len(nodes) - len(outside), "notes": [note] if outside else []}
