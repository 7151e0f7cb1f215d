"""Checks that a .pt2 archive runs no code when it is loaded.

What torch 2.13 does with a file: `torch.export.load` unpickles the sample inputs, and weights and
constants that are marked so, without limits (the first only after weights_only failed); it
evaluates each shape expression as Python text, resolves each operator by its dotted name from the
`torch` module, imports modules that a tree's description names, and opens compiled libraries. All
of it is looked at first, through torch's own reader.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeport.errors import InputError

_NAMESPACES = "aten|prims|prim|higher_order|quantized_decomposed|torchvision"
_OPERATOR = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.(?!from_file)[a-zA-Z]\w*(\.[a-zA-Z]\w*)?"
    r"|torch\._?sym_[a-z_]+|math\.[a-z]\w*"
)
_ARITHMETIC = {
    "getitem", "index", "not_", "and_", "or_", "add", "sub", "mul", "truediv", "floordiv", "mod",
    "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge", "lshift", "rshift",
}  # fmt: skip
_EXPRESSION = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name,
    ast.Constant, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.keyword,
)  # fmt: skip
_FUNCTIONS = re.compile(r"[A-Z]\w*|floor|ceiling")  # sympy's classes and torch's own


def check_archive(path: Path) -> None:
    """Raises InputError when the file is no saved ExportedProgram, or would run code."""
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        texts = {name: reader.read_bytes(name) for name in names if name.endswith(".json")}
        documents = {name: json.loads(text) for name, text in texts.items()}
    except Exception as error:  # torch's reader raises RuntimeError and AssertionError
        line = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{path} is no program saved by torch.export.save: {line[:200]}"
        ) from error
    if "models/model.json" not in names:
        raise InputError(f"{path} holds no ExportedProgram named 'model'; use torch.export.save")
    compiled = [name for name in names if name.startswith(("data/aotinductor", "data/executorch"))]
    if compiled:
        raise InputError(f"{path} holds compiled code ({compiled[0]}); save the program alone")
    for name in _pickled(names, documents):
        _check_pickle(path, name, reader.read_bytes(name))
    for name, document in documents.items():
        _check_document(path, name, document)


def _pickled(names: list[str], documents: dict[str, Any]) -> Iterator[str]:
    """Yields the records that torch would unpickle."""
    for name in names:
        last = name.rpartition("/")[2]
        if name.endswith(".pt") or last.startswith(("custom_obj_", "opaque_obj_")):
            yield name
    for name, document in documents.items():
        if not name.endswith("_config.json"):
            continue
        for entry in document.get("config", {}).values():
            if entry.get("use_pickle"):
                yield f"{name.rpartition('/')[0]}/{entry['path_name']}"


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    import torch

    try:
        if content:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError: whatever it is, it is no tensor
        raise InputError(
            f"{path}: {name} is a pickle of more than tensors, which could run code; save the"
            " program with tensors only"
        ) from error


def _check_document(path: Path, name: str, value: Any) -> None:
    """Raises InputError for an operator, an expression or a tree that is not plain."""
    if isinstance(value, list):
        for item in value:
            _check_document(path, name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            plain = not isinstance(item, str) or _is_plain(key, item)
            if not plain:
                raise InputError(f"{path}: {name} holds {key} {item[:80]!r}, which could run code")
            _check_document(path, name, item)


def _is_plain(key: str, text: str) -> bool:
    if key == "target":
        if text.startswith("_operator."):
            return text.removeprefix("_operator.") in _ARITHMETIC
        return _OPERATOR.fullmatch(text) is not None
    if key == "expr_str":
        return is_arithmetic(text)
    if key in ("in_spec", "out_spec"):
        return "default_factory_module" not in text and "__enum__" not in text
    return True


def is_arithmetic(text: str) -> bool:
    """Returns whether an expression has but numbers, symbols, operators and sympy's functions."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _EXPRESSION) and _is_number(node) for node in ast.walk(tree))


def _is_number(node: ast.AST) -> bool:
    """Returns whether a node is a number, a plain name, a name in quotes, or a call of sympy's."""
    if isinstance(node, ast.Constant):
        symbol = isinstance(node.value, str) and node.value.isidentifier()
        return symbol or isinstance(node.value, (int, float))
    if isinstance(node, ast.Name):
        return not node.id.startswith("__")
    if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        return _FUNCTIONS.fullmatch(called) is not None
    return True
