"""What an export's source itself computes inside: torch's values, or those of an ONNX file.

torch's exporter names a tensor for the node of the torch.export graph that gives it; that graph is
run node by node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from edgeport.boundary import Boundary
from edgeport.capture import Outputs, export_program, model_inputs, run_module
from edgeport.catalog import Source, find_source
from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.points import HostReference, Reference
from edgeport.sources import build
from edgeport.sources.onnx_file import open_onnx
from edgeport.subgraph import TensorType, Workbench
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

SAME_DB, SAME_HALF_DB = 60.0, 20.0
"""Two runs of one module on one machine are equal; on another one, their sums round otherwise. The
reference of a float16 module is its graph in float32."""


class TorchReference:
    """A module whose torch.export graph is run on one feed; `outputs` are the ONNX graph's names.

    Its values are those of torch's reference answer, which `outputs` give at the end.
    """

    nodes: Collection[str] = ()

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        feed: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
    ) -> None:
        self._module = program.module(check_guards=False)
        self._feed, self._outputs = feed, outputs
        self._types = {name: _type(array) for name, array in outputs.items()}
        self._run(lambda node, tensor: self._types.setdefault(node.name, _type(tensor)))

    def types(self) -> Mapping[str, TensorType]:
        """Returns the types of the tensors by their nodes' names, and of the outputs."""
        return self._types

    def values(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns the tensors of these names."""
        found = {name: self._outputs[name] for name in names if name in self._outputs}
        wanted = set(names) - set(found)

        def keep(node: Node, array: NDArray[Any]) -> None:
            if node.name in wanted:
                found[node.name] = np.array(array)

        if wanted:
            self._run(keep)
        return found

    def _run(self, visit: Any) -> None:
        import torch
        from torch.fx import Interpreter

        class Watched(Interpreter):
            def run_node(self, n: Node) -> Any:
                result = super().run_node(n)
                is_step = n.op == "call_function" and isinstance(result, torch.Tensor)
                if is_step and result.dtype not in (torch.bfloat16, torch.complex64):
                    visit(n, result.detach().numpy())
                return result

        tensors = [torch.from_numpy(np.array(array)) for array in self._feed.values()]
        with torch.no_grad():
            Watched(self._module).run(*tensors)


def source_reference(
    manifest: Mapping[str, Any],
    weights: Path | None,
    feed: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
) -> Reference:
    """Returns what an export's own source computes on a feed: torch's values, or an ONNX file's.

    The module is built anew, from the current directory as the export was. Raises InputError where
    the source is not found, or is another by now.
    """
    options, stated = manifest["options"], manifest["options"]["boundary"]
    boundary = Boundary(*(tuple(stated[key]) for key in ("channel_last", "mean", "std")))
    source = _find(manifest["source"], weights)
    if source.kind == "onnx":
        assert source.path is not None
        model = open_onnx(source.path, source.inputs)
        inner = boundary.to_inner(feed, model_inputs(model))
        found = HostReference(Workbench(ir.to_proto(model), inner, optimize=False))
        _check_same(source, tuple(found.values(list(outputs)).values()), outputs)
        return found
    built = build(source, options["seed"])
    inner = boundary.to_inner(feed, built.inputs)
    inner = {name: array.astype(_dtype(built.inputs, name)) for name, array in inner.items()}
    _check_same(source, run_module(built.module, [inner])[0], outputs)
    program = export_program(built.module, inner).exported_program
    assert program is not None
    return TorchReference(program, inner, outputs)


def _find(source: Mapping[str, Any], weights: Path | None) -> Source:
    if source["weights"] and weights is None:
        raise InputError(
            f"{source['name']} was exported with --weights {source['weights']}: add --weights with"
            " that file, so that torch's values can be computed"
        )
    recipe = source["kind"] == "recipe"
    try:
        return find_source(
            source["name"],
            inputs=() if recipe else [str(spec) for spec in source["inputs"]],
            weights=weights,
            variant=source["variant"] or None,
            options=source["options"] if recipe else None,
            pretrained=source["pretrained"],
        )
    except InputError as error:
        raise InputError(
            f"torch's values need the model's source: {error}; start where the export was started"
        ) from error


def _check_same(source: Source, now: Outputs, then: Mapping[str, NDArray[Any]]) -> None:
    pairs = list(zip(then.values(), now))
    same = len(now) == len(then) and all(one.shape == other.shape for one, other in pairs)
    least_db = SAME_HALF_DB if any(one.dtype == np.float16 for one in now) else SAME_DB
    if not same or min(sqnr_db(*pair) for pair in pairs) < least_db:
        raise InputError(
            f"{source.text} gives other answers than when it was exported: its code, its weights or"
            " a package has changed; export it again"
        )


def _dtype(specs: Sequence[TensorSpec], name: str) -> str:
    """Returns the type that the module takes: an export widens what was float16."""
    return next(spec.dtype for spec in specs if spec.name == name)


def _type(array: NDArray[Any]) -> TensorType:
    return TensorType(helper.np_dtype_to_tensor_dtype(array.dtype), tuple(array.shape))
