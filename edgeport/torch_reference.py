"""torch's own values inside a module, by the names that its ONNX graph has for them.

The exporter names a tensor for the node of the torch.export graph that gives it; that graph is run
node by node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgeport.capture import Outputs, export_program, run_module
from edgeport.catalog import Source, find_source
from edgeport.compare import sqnr_db
from edgeport.errors import InputError
from edgeport.sources import build
from edgeport.subgraph import TensorType
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

SAME_DB = 60.0
"""Two runs of one module on one machine are equal; on another one, their sums round otherwise."""


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


def rebuild_reference(
    source: Mapping[str, Any],
    options: Mapping[str, Any],
    weights: Path | None,
    feed: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
) -> TorchReference:
    """Returns torch's values; `source` and `options` are those of an export's manifest.

    The module is built anew, from the current directory as the export was. Raises InputError where
    the source is not found, or is another by now.
    """
    from edgeport.boundary import Boundary

    found = _find(source, weights)
    built = build(found, options["seed"])
    stated = options["boundary"]
    boundary = Boundary(*(tuple(stated[key]) for key in ("channel_last", "mean", "std")))
    inner = boundary.to_inner(feed, built.inputs)
    inner = {name: array.astype(_dtype(built.inputs, name)) for name, array in inner.items()}
    _check_same(found, run_module(built.module, [inner])[0], outputs)
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
    if not same or min(sqnr_db(*pair) for pair in pairs) < SAME_DB:
        raise InputError(
            f"{source.text} gives other answers than when it was exported: its code, its weights or"
            " a package has changed; export it again"
        )


def _dtype(specs: Sequence[TensorSpec], name: str) -> str:
    """Returns the type that the module takes: an export widens what was float16."""
    return next(spec.dtype for spec in specs if spec.name == name)


def _type(array: NDArray[Any]) -> TensorType:
    return TensorType(helper.np_dtype_to_tensor_dtype(array.dtype), tuple(array.shape))
