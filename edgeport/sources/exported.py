"""Loads a saved torch.export.ExportedProgram (.pt2), with the inputs that it was exported for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from edgeport.catalog import Source
from edgeport.errors import InputError, UnknownName
from edgeport.sources import Built
from edgeport.sources.archive import check_archive
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

_CASTS = ("_to_copy", "to", "clone", "alias", "contiguous")


class ExportedModule(nn.Module):
    """Calls an exported program with its tensor inputs alone, in order; the rest is as exported."""

    def __init__(self, program: ExportedProgram, leaves: Sequence[Any], places: list[int]) -> None:
        super().__init__()
        # The guards are Python text from the file; and the shapes are compared with the spec.
        self.program = program.module(check_guards=False)
        self._spec = program.call_spec.in_spec
        self._leaves, self._places = list(leaves), places

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        arguments, keywords = _pytree.tree_unflatten(leaves, self._spec)
        return self.program(*arguments, **keywords)


def load_exported(source: Source) -> Built:
    """Returns the program as a module; its inputs are its example inputs, or --input.

    Raises InputError for a file that is no such program or could run code, and for open axes
    without example inputs.
    """
    assert source.path is not None
    check_archive(source.path)
    try:
        with _quiet():
            program = torch.export.load(source.path)
            examples = _examples(program)
            module, specs, ranges = _wrap(program, examples)
    except InputError:
        raise
    except Exception as error:  # torch's deserializer raises whatever a field's reader raises
        line = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{source.path} cannot be loaded by this torch: {type(error).__name__}: {line}"
        ) from error
    given = {spec.name: spec for spec in source.inputs}
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            raise UnknownName(f"input of {source.text}", name, names)
    specs = [_pinned(source, spec, given.get(spec.name)) for spec in specs]
    return Built(module, tuple(specs), ranges, model=module.program)


def _examples(program: ExportedProgram) -> list[Any]:
    """Returns the flat example inputs, or what the graph says of each where none were saved."""
    if program.example_inputs is not None:
        return list(_pytree.tree_leaves(program.example_inputs))
    return [node.meta.get("val") for node in _placeholders(program)]


def _placeholders(program: ExportedProgram) -> list[torch.fx.Node]:
    wanted = [str(name) for name in program.graph_signature.user_inputs]
    found = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [found[name] for name in wanted if name in found]


def _wrap(
    program: ExportedProgram, examples: list[Any]
) -> tuple[ExportedModule, list[TensorSpec], dict[str, tuple[int, int]]]:
    nodes = _placeholders(program)
    if len(nodes) != len(examples):
        raise InputError("its example inputs do not fit its graph; export it again")
    places = [i for i, example in enumerate(examples) if isinstance(example, torch.Tensor)]
    specs, ranges = [], {}
    for place in places:
        node, example = nodes[place], examples[place]
        shape = tuple(size if isinstance(size, int) else -1 for size in example.shape)
        specs.append(TensorSpec(node.name, str(example.dtype).removeprefix("torch."), shape))
        if (pair := _range(node, example)) is not None:
            ranges[node.name] = pair
    return ExportedModule(program, examples, places), specs, ranges


def _range(node: torch.fx.Node, example: torch.Tensor) -> tuple[int, int] | None:
    """Returns the rows of the table that ids go to, else the example's own range."""
    if example.is_floating_point():
        return None
    for user in node.users:
        while user.users and any(cast in str(user.target) for cast in _CASTS):
            user = next(iter(user.users))
        if "aten.embedding" in str(user.target):
            table = user.args[0]
            assert isinstance(table, torch.fx.Node)
            return (0, int(table.meta["val"].shape[0]))
    if hasattr(example, "fake_mode") or not example.numel():
        return None
    return (int(example.min()), int(example.max()) + 1)


def _pinned(source: Source, spec: TensorSpec, given: TensorSpec | None) -> TensorSpec:
    if given is None:
        if -1 in spec.shape:
            open_axes = ", ".join(str(i) for i, size in enumerate(spec.shape) if size < 0)
            raise InputError(
                f"{source.text}: input {spec.name} has open axes ({open_axes}) and no example;"
                f" add --input {spec.name}:{spec.dtype}"
                f"[{','.join('N' if s < 0 else str(s) for s in spec.shape)}] with numbers for N"
            )
        return spec
    if given.dtype != spec.dtype or len(given.shape) != len(spec.shape):
        raise InputError(f"{source.text}: --input {given} does not fit the program's {spec}")
    return given


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch.export's remarks on a file that it then refuses off stderr."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
