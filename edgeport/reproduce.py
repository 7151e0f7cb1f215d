"""Makes an export again from its manifest, and says which file differs and since which stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.feeds import PARITY_INPUTS, PARITY_INTEGERS, PARITY_OUTPUTS
from edgeport.fingerprint import file_sha256
from edgeport.pipeline import export
from edgeport.places import JOURNAL
from edgeport.private import scratch_directory
from edgeport.running import load_manifest
from edgeport.runtimes import RUNTIMES
from edgeport.types import Serialisable

REPORT = "report"
# Files that a stage leaves beside its artifact.
_BESIDE = {"capture": (PARITY_INPUTS, PARITY_OUTPUTS), "quantize": (PARITY_INTEGERS,)}
# "run" depends on when and where it ran; the others are compared on their own.
_TOLD = ("run", "files", "tools", "read", "request")


@dataclass(frozen=True)
class FileMatch(Serialisable):
    """One file of the export: the stage that made it, and whether it came out the same."""

    file: str
    stage: str
    same: bool
    edited: bool = False


@dataclass(frozen=True)
class Reproduction(Serialisable):
    """Every file in the order of the stages, and what else differs.

    `causes` are tools and source files that are not what they were; `fields` the manifest's other
    entries that differ, as paths such as "artifacts[1].parity[0].value".
    """

    files: tuple[FileMatch, ...]
    causes: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every file has the same bytes and the manifest the same entries."""
        return all(one.same and not one.edited for one in self.files) and not self.fields

    @property
    def since(self) -> str:
        """The first stage with a file that differs; nothing where none does."""
        return next((one.stage for one in self.files if not one.same), "")


def reproduce(
    directory: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Reproduction:
    """Returns how an export made anew from `directory`'s manifest differs from the one there.

    Nothing comes from the cache. `overrides` replace entries of the request, such as a source that
    lies elsewhere by now. Raises InputError for a directory that is no export or a source that is
    not to be had, and what `export` raises.
    """
    manifest = load_manifest(directory)
    request = {**manifest["request"], **(overrides or {})}
    with scratch_directory() as folder:
        made = export(
            request.pop("source"),
            output_dir=folder / "again",
            cache_dir=folder / "cache",
            progress=progress,
            **request,
        )
    again = json.loads(json.dumps(dict(made.manifest)))
    return Reproduction(
        _matches(directory, manifest, again),
        tuple(_causes(manifest, again)),
        tuple(_differences(_lasting(manifest), _lasting(again))),
    )


def _matches(
    directory: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[FileMatch, ...]:
    """Returns a match for every file but the journal, in the order of the stages."""
    makers = _makers(before)
    order = [*dict.fromkeys([*makers.values(), REPORT])]
    names = [name for name in {**before["files"], **after["files"]} if name != JOURNAL]
    found = [
        FileMatch(
            name,
            makers.get(name.removesuffix(".data"), REPORT),
            _sha(before, name) == _sha(after, name),
            _is_edited(directory / name, _sha(before, name)),
        )
        for name in names
    ]
    return tuple(sorted(found, key=lambda one: (order.index(one.stage), one.file)))


def _makers(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns file -> the stage that made it, in the order of the stages."""
    made: dict[str, str] = {}
    for artifact in manifest["artifacts"]:
        stage = f"{artifact['stage']} {artifact['runtime']}".rstrip()
        made.setdefault(artifact["path"], stage)
        for name in _BESIDE.get(stage, ()):
            made.setdefault(name, stage)
        if artifact["stage"] == "lower":
            made.update(dict.fromkeys(RUNTIMES[artifact["runtime"]].files, stage))
    return made


def _sha(manifest: Mapping[str, Any], name: str) -> str:
    return str(manifest["files"].get(name, {}).get("sha256", ""))


def _is_edited(path: Path, sha256: str) -> bool:
    return bool(sha256) and file_sha256(path) != sha256


def _causes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yields in words which tools and which files that were read are not what they were."""
    for tool, version in before["tools"].items():
        if after["tools"].get(tool) != version:
            yield f"{tool} was {version}, here it is {after['tools'].get(tool, 'not known')}"
    for name, sha256 in before["read"].items():
        if after["read"].get(name) != sha256:
            yield f"{name} was changed" if name in after["read"] else f"{name} is not read any more"
    for name in after["read"]:
        if name not in before["read"]:
            yield f"{name} was not read before"


def _lasting(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what two runs have in common: neither the run itself, nor what is told elsewhere."""
    return {key: value for key, value in manifest.items() if key not in _TOLD}


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of the entries that differ; a whole list where its length does."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(before.get(key), after.get(key), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after)):
            yield from _differences(one, other, f"{path}[{index}]")
    elif before != after:
        yield path
