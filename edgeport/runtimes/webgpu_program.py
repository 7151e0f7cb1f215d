"""Reads program.json, a frame of GPU work as data, and checks all of it before a GPU sees it.

The format "edgeport.webgpu/1" names buffers, textures, shaders and, for each program, its compute
and draw passes in order. A browser runs the same file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport.errors import InputError

FORMAT = "edgeport.webgpu/1"
FILE = "program.json"
INPUT_FLOATS = {"frame": 4, "view": 16, "intrinsics": 4}
"""What a uniform buffer can hold, in 32-bit floats: "frame" is (width, height, 0, 0)."""
PIXEL_BYTES = {"rgba8unorm": 4, "rgba16float": 8, "rgba32float": 16}
USAGES = ("storage", "uniform", "indirect", "copy_dst")
BLENDS = ("none", "add", "over")
TOPOLOGIES = ("triangle-strip", "triangle-list")
_MOST_PASSES, _MOST_BYTES = 256, 1 << 32  # of one program, of one buffer


@dataclass(frozen=True)
class Buffer:
    """`bytes` of GPU memory: zeros, the content of `file`, `values` or the `uniform` inputs."""

    name: str
    bytes: int
    usage: tuple[str, ...]
    file: Path | None = None
    values: tuple[float, ...] = ()
    uniform: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compute:
    """A dispatch of `workgroups`."""

    label: str
    shader: Path
    entry: str
    constants: Mapping[str, float]
    bindings: Mapping[int, str]
    workgroups: tuple[int, int, int]


@dataclass(frozen=True)
class Draw:
    """A render pass of one draw call into `target`; `clear` is None where its content is kept."""

    label: str
    shader: Path
    vertex: str
    fragment: str
    constants: Mapping[str, float]
    bindings: Mapping[int, str]
    topology: str
    vertices: int
    instances: int
    indirect: str | None
    target: str
    blend: str
    clear: tuple[float, ...] | None


@dataclass(frozen=True)
class Program:
    """Passes in order; what they leave in the texture `output` is the image."""

    name: str
    passes: tuple[Compute | Draw, ...]
    output: str

    def uses(self) -> set[str]:
        """Returns the names of the buffers and textures that its passes touch."""
        names = {self.output}
        for one in self.passes:
            names.update(one.bindings.values())
            if isinstance(one, Draw):
                names.update(filter(None, (one.target, one.indirect)))
        return names


@dataclass(frozen=True)
class Document:
    """A checked program.json; `textures` maps a name to its format, all as large as the frame."""

    directory: Path
    frame: tuple[int, int]
    buffers: Mapping[str, Buffer]
    textures: Mapping[str, str]
    programs: tuple[Program, ...]
    facts: Mapping[str, Any]

    def bytes_of(self, program: Program) -> int:
        """Returns the bytes of the buffers and textures that one program needs."""
        pixels = self.frame[0] * self.frame[1]
        return sum(
            self.buffers[name].bytes
            if name in self.buffers
            else PIXEL_BYTES[self.textures[name]] * pixels
            for name in program.uses()
        )


class _Table:
    """A JSON object at a place in the file, whose values are taken by the type they must have."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            self.refuse("", "expected an object")
        self.value: dict[str, Any] = value

    def refuse(self, key: str, what: str) -> Any:
        place = f"{self.where}.{key}" if key else self.where
        raise InputError(f"{place}: {what}: export the folder again")

    def get(self, key: str, kind: type | tuple[type, ...], what: str, default: Any = None) -> Any:
        found = self.value.get(key, default)
        if not isinstance(found, kind) or isinstance(found, bool):
            self.refuse(key, f"expected {what}, not {_shown(found)}")
        return found

    def text(self, key: str, known: tuple[str, ...] = ()) -> str:
        found = str(self.get(key, str, "a text"))
        if known and found not in known:
            self.refuse(key, f"expected one of {', '.join(known)}, not {_shown(found)}")
        return found

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        found = int(self.get(key, int, "a whole number", default))
        if not least <= found <= _MOST_BYTES:
            self.refuse(key, f"expected {least} to {_MOST_BYTES}, not {found}")
        return found

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        found = self.get(key, list, "a list of numbers")
        right = all(_is_number(one) for one in found) and count in (None, len(found))
        if not right:
            self.refuse(key, f"expected {count or 'finite'} numbers, not {_shown(found)}")
        return tuple(float(one) for one in found)

    def counts(self, key: str, count: int) -> tuple[int, ...]:
        found = self.get(key, list, "a list of whole numbers")
        right = len(found) == count and all(type(one) is int and one > 0 for one in found)
        if not right:
            self.refuse(key, f"expected {count} whole numbers above 0, not {_shown(found)}")
        return tuple(found)

    def name(self, key: str, known: Mapping[str, Any], kind: str) -> str:
        found = self.text(key)
        if found not in known:
            self.refuse(key, f"there is no {kind} {_shown(found)}")
        return found

    def table(self, key: str, default: Mapping[str, Any] | None = None) -> _Table:
        return _Table(self.value.get(key, default), f"{self.where}.{key}")

    def file(self, key: str, directory: Path) -> Path:
        """Returns a file inside the directory: no absolute path, no "..", no link out of it."""
        name = self.text(key)
        path = directory / name
        if "\\" in name or ".." in Path(name).parts or Path(name).is_absolute():
            self.refuse(key, f"{_shown(name)} is not a path inside the folder")
        if not path.resolve().is_relative_to(directory.resolve()):
            self.refuse(key, f"{_shown(name)} leads out of the folder")
        if not path.is_file():
            self.refuse(key, f"{_shown(name)} is not there")
        return path


def read_document(directory: Path, frame: tuple[int, int] | None = None) -> Document:
    """Returns the checked program.json of a folder, for a frame of another size if one is given.

    Raises InputError, which names the place in the file, what is wrong and what to do.
    """
    file = directory / FILE
    try:
        root = _Table(json.loads(file.read_text(encoding="utf-8")), FILE)
    except FileNotFoundError as error:
        raise InputError(f"{directory}: no {FILE} here: name the folder of an export") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}): export the folder again") from error
    root.text("format", (FORMAT,))
    own = root.counts("frame", 2)
    _check_inputs(root)
    buffers = _named(root, "buffers", lambda name, one: _buffer(name, one, directory))
    textures = _named(root, "textures", _texture)
    if both := sorted(buffers.keys() & textures.keys()):
        root.refuse("textures", f"{_shown(both[0])} is a buffer's name too")
    programs = _named(
        root, "programs", lambda name, one: _program(name, one, buffers, textures, directory)
    )
    facts = root.table("facts", {}).value
    size = frame or (own[0], own[1])
    return Document(directory, size, buffers, textures, _in_order(root, programs), facts)


def _named(root: _Table, key: str, make: Callable[[str, _Table], Any]) -> dict[str, Any]:
    tables = root.table(key)
    if not tables.value:
        root.refuse(key, "expected one at the least")
    return {name: make(name, tables.table(name)) for name in tables.value}


def _check_inputs(root: _Table) -> None:
    wanted = [("view", [4, 4]), ("intrinsics", [4])]
    found = [_Table(one, f"{FILE}.inputs") for one in root.get("inputs", list, "a list")]
    if [(one.text("name"), one.value.get("shape")) for one in found] != wanted:
        root.refuse("inputs", "expected view [4, 4] and intrinsics [4]")


def _in_order(root: _Table, programs: Mapping[str, Program]) -> tuple[Program, ...]:
    """Returns the programs in the order of the outputs, which are named for them."""
    listed = [_Table(one, f"{FILE}.outputs") for one in root.get("outputs", list, "a list")]
    names = [one.name("name", programs, "program") for one in listed]
    if sorted(names) != sorted(programs):
        root.refuse("outputs", "expected each program once")
    return tuple(programs[name] for name in names)


def _buffer(name: str, table: _Table, directory: Path) -> Buffer:
    usage = tuple(str(one) for one in table.get("usage", list, "a list", ["storage"]))
    if unknown := [one for one in usage if one not in USAGES]:
        table.refuse("usage", f"expected some of {', '.join(USAGES)}, not {_shown(unknown[0])}")
    kinds = [key for key in ("file", "bytes", "values", "uniform") if key in table.value]
    if len(kinds) != 1:
        table.refuse("", "expected one of file, bytes, values or uniform")
    if "file" in kinds:
        file = table.file("file", directory)
        return Buffer(name, _whole_words(table, "file", file.stat().st_size), usage, file)
    if "bytes" in kinds:
        return Buffer(name, _whole_words(table, "bytes", table.count("bytes")), usage)
    if "values" in kinds:
        values = table.numbers("values")
        return Buffer(name, _whole_words(table, "values", 4 * len(values)), usage, values=values)
    inputs = tuple(str(one) for one in table.get("uniform", list, "a list"))
    if unknown := [one for one in inputs if one not in INPUT_FLOATS]:
        table.refuse("uniform", f"there is no input {_shown(unknown[0])}")
    size = 4 * sum(INPUT_FLOATS[one] for one in inputs)
    return Buffer(name, _whole_words(table, "uniform", size), usage, uniform=inputs)


def _whole_words(table: _Table, key: str, size: int) -> int:
    if size == 0 or size % 4:
        table.refuse(key, f"{size} bytes: a buffer holds 4-byte words, and one at the least")
    return size


def _texture(name: str, table: _Table) -> str:
    table.text("size", ("frame",))
    return table.text("format", tuple(PIXEL_BYTES))


def _program(
    name: str,
    table: _Table,
    buffers: Mapping[str, Buffer],
    textures: Mapping[str, str],
    directory: Path,
) -> Program:
    passes = table.get("passes", list, "a list")
    if not 1 <= len(passes) <= _MOST_PASSES:
        table.refuse("passes", f"expected 1 to {_MOST_PASSES} passes, not {len(passes)}")
    made = []
    for index, one in enumerate(passes):
        step = _Table(one, f"{table.where}.passes[{index}]")
        made.append(_pass(step, buffers, textures, directory))
    return Program(name, tuple(made), table.name("output", textures, "texture"))


def _pass(
    table: _Table,
    buffers: Mapping[str, Buffer],
    textures: Mapping[str, str],
    directory: Path,
) -> Compute | Draw:
    label, constants = table.text("label"), table.table("constants", {})
    numbers = {name: constants.get(name, (int, float), "a number") for name in constants.value}
    if unusable := [name for name, one in numbers.items() if not math.isfinite(one)]:
        constants.refuse(unusable[0], "expected a finite number")
    bindings = _bindings(table.table("bindings", {}), {**buffers, **textures})
    if ("compute" in table.value) == ("draw" in table.value):
        table.refuse("", "expected either compute or draw")
    if "compute" in table.value:
        groups = table.counts("workgroups", 3)
        shader = table.file("compute", directory)
        entry = table.text("entry")
        return Compute(label, shader, entry, numbers, bindings, (groups[0], groups[1], groups[2]))
    indirect = table.name("indirect", buffers, "buffer") if "indirect" in table.value else None
    if indirect and "indirect" not in buffers[indirect].usage:
        table.refuse("indirect", f"buffer {_shown(indirect)} has no usage indirect")
    target = table.name("target", textures, "texture")
    if target in bindings.values():
        table.refuse("target", f"{_shown(target)} is bound in the pass that draws into it")
    return Draw(
        label,
        table.file("draw", directory),
        table.text("vertex"),
        table.text("fragment"),
        numbers,
        bindings,
        table.text("topology", TOPOLOGIES),
        table.count("vertices") if indirect is None else 0,
        table.count("instances", 1) if indirect is None else 0,
        indirect,
        target,
        table.text("blend", BLENDS),
        table.numbers("clear", 4) if "clear" in table.value else None,
    )


def _bindings(table: _Table, known: Mapping[str, Any]) -> dict[int, str]:
    for key in table.value:
        if not (key.isascii() and key.isdecimal() and len(key) < 4):
            table.refuse(key, "a binding's key is its number")
    return {int(key): table.name(key, known, "buffer or texture") for key in table.value}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
