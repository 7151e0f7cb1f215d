"""Where in the user's code a node of an ONNX graph comes from: the module's path, the source line.

torch's exporter writes a stack trace with absolute paths and lines of source code beside each node.
Exports are published, so only `file.py:line` of the model's own code is kept, under SOURCE.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeport.types import Serialisable

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SOURCE = "edgeport.source"
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Origin(Serialisable):
    """The layer that a node came from: the module's path in the model, its class, and the line.

    "" where it is not known; `module` is "" in the model's own forward too.
    """

    module: str = ""
    kind: str = ""
    source: str = ""

    def __str__(self) -> str:
        """Returns the origin in words, "" where nothing is known."""
        layer = self.module or ("the model itself" if self.kind else "")
        named = f"{layer} ({self.kind.rpartition('.')[2]})" if self.kind else layer
        return ", ".join(filter(None, (named, self.source)))


def shorten_traces(model: ir.Model) -> None:
    """Replaces each node's stack trace by the file and line of the model's own code."""
    known: dict[str, str] = {}
    graphs = [*model.graphs(), *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph:
            trace = node.metadata_props.pop(_TRACE, None)
            if trace:
                if trace not in known:
                    known[trace] = source_line(trace)
                if known[trace]:
                    node.metadata_props[SOURCE] = known[trace]


def source_line(trace: str) -> str:
    """Returns `file.py:line` of the innermost frame that is not torch's own, "" where none is.

    The file is relative to the folder of its topmost package.
    """
    frames = [(Path(match["file"]), match["line"]) for match in _FRAME.finditer(trace)]
    own = [(file, line) for file, line in frames if not _is_torch(file)]
    return f"{_relative(own[-1][0])}:{own[-1][1]}" if own else ""


def _is_torch(file: Path) -> bool:
    return "torch" in file.parts and "site-packages" in file.parts


def _relative(file: Path) -> str:
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return file.relative_to(folder).as_posix()


def origin_of(node: onnx.NodeProto) -> Origin | None:
    """Returns where a node comes from, None for one that states nothing."""
    stated = {one.key: one.value for one in node.metadata_props}
    scopes, classes = _words(stated, _SCOPES), _words(stated, _CLASSES)
    if len(scopes) < 2 and SOURCE not in stated:
        return None
    # The last of each is the operator itself.
    module = scopes[-2] if len(scopes) > 1 else ""
    kind = classes[-2] if len(classes) > 1 else ""
    return Origin(module, kind, stated.get(SOURCE, ""))


def _words(stated: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Returns the list that the exporter wrote as Python text."""
    try:
        words = ast.literal_eval(stated.get(key, "[]"))
    except (ValueError, SyntaxError):
        return ()
    return tuple(map(str, words)) if isinstance(words, list) else ()
