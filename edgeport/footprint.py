"""What an export depends on before its first step: packages, edgeport's own code, local files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import edgeport
from edgeport.cache import Cache
from edgeport.catalog import Source
from edgeport.fingerprint import (
    SourceTracker,
    environment_digest,
    file_sha256,
    tree_sha256,
    unchanged,
)

if TYPE_CHECKING:
    from edgeport.sources import Built


def base_key() -> dict[str, str]:
    """Returns what every step depends on: the pins, edgeport's own source and the recipes'."""
    import edgeport_recipes

    return {
        "environment": environment_digest(),
        "edgeport": tree_sha256(Path(edgeport.__file__).parent),
        "recipes": tree_sha256(Path(next(iter(edgeport_recipes.__path__)))),
    }


def shortened(digests: Mapping[str, str]) -> dict[str, str]:
    """Returns name -> sha256, by the shortest ends of the paths that tell the files apart.

    A manifest is published: where on this disk the files lie is nobody's business.
    """
    absolute = {os.path.abspath(path): sha256 for path, sha256 in digests.items()}
    parts = {path: Path(path).parts for path in absolute}
    length = 1
    while len({ends[-length:] for ends in parts.values()}) < len(parts):
        length += 1
    return {"/".join(parts[path][-length:]): absolute[path] for path in sorted(absolute)}


class SourceFiles:
    """The local files that a source was built from, and the module where it had to be built.

    What a factory reads is known only after it ran: the list of its last run is remembered, and
    where a file on it changed the factory runs again, for a new list. The library of a timm or hf
    model is in the base key, by its version.
    """

    def __init__(self, source: Source, seed: int, progress: Callable[[str], None]) -> None:
        self.source, self.seed, self.progress = source, seed, progress
        self.built: Built | None = None

    def digests(self, cache: Cache, base: Mapping[str, str]) -> Mapping[str, str]:
        """Returns path -> sha256."""
        source = self.source
        own = {str(path): file_sha256(path) for path in source.files()}
        if source.kind not in ("factory", "onnx") and source.folder is None:
            return own
        key = {"base": base, "path": str(source.path), "source": source.describe()}
        known = cache.recall("sources", key)
        if known is not None and unchanged(known["files"]):
            return {**known["files"], **own}
        files = _external_data(source) if source.kind == "onnx" else self._build_tracked()
        cache.remember("sources", key, {"files": files})
        return {**files, **own}

    def _build_tracked(self) -> Mapping[str, str]:
        from edgeport.sources import build

        self.progress("build")
        with SourceTracker() as used:
            self.built = build(self.source, self.seed)
        unseen: set[Path] = set()
        if "safetensors" in sys.modules:
            # Opened by native code, which the tracker does not see: all that lie where the
            # factory would look count as read.
            for folder in (self.source.folder or Path.cwd(), Path.cwd()):
                unseen.update(folder.glob("*.safetensors"))
        return {**used.files, **{str(file): file_sha256(file) for file in sorted(unseen)}}


def _external_data(source: Source) -> dict[str, str]:
    """Returns path -> sha256 of the files beside an ONNX model that hold its weights."""
    from edgeport.capture import external_data_files

    assert source.path is not None
    return {str(file): file_sha256(file) for file in external_data_files(source.path)}
