"""Splat scenes as files: the .ply of 3DGS, and the 32-byte records of .splat.

A scene of a weighted sum keeps its view-dependent opacity in properties opacity_sh_0.. and what
all splats share in comments of the header, so that other viewers still open the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from edgeport_recipes._shared.files import read_bytes, write_bytes
from edgeport_recipes.wsr_splatting.harmonics import C0
from edgeport_recipes.wsr_splatting.splats import RULES, Blend, Splats, checked
from numpy.typing import NDArray
from torch import Tensor

from edgeport.errors import InputError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_DEGREES = {0: 0, 9: 1, 24: 2, 45: 3}  # how many f_rest there are
_COMMENT = "edgeport splats"
_RECORD = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)
_MOST_HEADER = 1 << 16


@dataclass(frozen=True)
class Header:
    """What a .ply says of itself: the byte order or "ascii", each element's count and fields."""

    form: str
    elements: tuple[tuple[str, int, tuple[tuple[str, str], ...]], ...]
    comments: tuple[str, ...]
    length: int


def load_scene(path: Path) -> tuple[Splats, Blend]:
    """Returns the splats of a .ply or .splat file; raises InputError for others."""
    loaders = {".ply": load_ply, ".splat": load_splat}
    if path.suffix.lower() not in loaders:
        raise InputError(f"{path}: no splat file; give a .ply or a .splat.")
    return loaders[path.suffix.lower()](path)


def load_ply(path: Path) -> tuple[Splats, Blend]:
    """Returns the splats of a 3DGS .ply; raises InputError for one without its properties, with a
    truncated body, or with splats that cannot be drawn."""
    data = read_bytes(path)
    header = _read_header(data, path)
    vertex = _read_vertices(data, header, path)
    return checked(_splats_of(vertex, path), str(path)), _blend_of(header, path)


def _read_header(data: bytes, path: Path) -> Header:
    end = re.search(rb"(?m)^end_header[ \t]*\r?\n", data[:_MOST_HEADER])
    if not data.startswith(b"ply") or end is None:
        raise InputError(f"{path}: no .ply file (no header); give one that 3DGS wrote.")
    lines = data[: end.start()].decode("latin-1").splitlines()
    try:
        return _parse_header(lines, end.end())
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: a .ply header that cannot be read ({error}).") from error


def _parse_header(lines: list[str], length: int) -> Header:
    form, comments = "", []
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines[1:]:
        words = line.split()
        match words:
            case ["format", form, *_]:
                pass
            case ["element", name, count]:
                elements.append((name, int(count), []))
            case ["property", "list", *_]:
                elements[-1][2].append((words[-1], "list"))
            case ["property", kind, name]:
                elements[-1][2].append((name, _TYPES[kind]))
            case ["comment", *text]:
                comments.append(" ".join(text))
    if form not in _ORDERS:
        raise ValueError(f"format {form!r}")
    if any(count < 0 for _, count, _ in elements):
        raise ValueError("an element has a negative count")
    kept = tuple((name, count, tuple(fields)) for name, count, fields in elements)
    return Header(form, kept, tuple(comments), length)


def _read_vertices(data: bytes, header: Header, path: Path) -> NDArray[np.void]:
    """Returns the rows of the element `vertex`; elements before it are passed over."""
    skipped = 0
    for name, count, fields in header.elements:
        if any(kind == "list" for _, kind in fields):
            raise InputError(f"{path}: a mesh, not splats (lists in {name!r}); give a 3DGS .ply.")
        row = np.dtype([(field, _ORDERS[header.form] + kind) for field, kind in fields])
        if name == "vertex":
            return _rows(data[header.length :], header.form, row, skipped, count, path)
        skipped += count * (1 if header.form == "ascii" else row.itemsize)
    raise InputError(f"{path}: has no element 'vertex'; give a .ply that 3DGS wrote.")


def _rows(
    body: bytes, form: str, row: np.dtype[np.void], skipped: int, count: int, path: Path
) -> NDArray[np.void]:
    if form == "ascii":
        lines = body.decode("latin-1").splitlines()[skipped:][:count]
        try:
            values = np.array([line.split() for line in lines], dtype=np.float64)
            rows = np.zeros(len(lines), row)
            for index, name in enumerate(row.names or ()):
                rows[name] = values[:, index]
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: a row of numbers is broken ({error}).") from error
    else:
        whole = min(count, max(0, len(body) - skipped) // max(1, row.itemsize))
        rows = np.frombuffer(body, row, count=whole, offset=min(skipped, len(body)))
    if len(rows) < count:
        raise InputError(
            f"{path}: truncated: {len(rows)} of {count} splats are there; copy the file again."
        )
    return rows


def _splats_of(vertex: NDArray[np.void], path: Path) -> Splats:
    names = vertex.dtype.names or ()
    rest = [name for name in names if re.fullmatch(r"f_rest_\d+", name)]
    missing = [name for name in _names(len(rest), 0) if name not in names and name[0] != "n"]
    if missing:
        raise InputError(
            f"{path}: no 3DGS .ply: it lacks {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}; give one that holds splats."
        )
    if len(rest) not in _DEGREES:
        raise InputError(f"{path}: {len(rest)} f_rest properties; 0, 9, 24 or 45 make a degree.")
    count = (_DEGREES[len(rest)] + 1) ** 2
    opacity_sh = [f"opacity_sh_{index}" for index in range(count)]
    present = [name in names for name in opacity_sh]
    if any(present) and not all(present):
        raise InputError(f"{path}: some of opacity_sh_0..{count - 1} are missing; save it again.")
    sh = _columns(vertex, [f"f_dc_{channel}" for channel in range(3)])[:, None]
    if rest:  # all of red's coefficients first, then green's and blue's
        more = _columns(vertex, [f"f_rest_{index}" for index in range(len(rest))])
        sh = torch.cat([sh, more.view(len(more), 3, count - 1).transpose(1, 2)], 1)
    return Splats(
        positions=_columns(vertex, ["x", "y", "z"]),
        log_scales=_columns(vertex, [f"scale_{axis}" for axis in range(3)]),
        rotations=_columns(vertex, [f"rot_{part}" for part in range(4)]),
        opacity_logits=_columns(vertex, ["opacity"])[:, 0],
        sh=sh.contiguous(),
        opacity_sh=_columns(vertex, opacity_sh) if all(present) else None,
    )


def _columns(vertex: NDArray[np.void], names: list[str]) -> Tensor:
    columns = [vertex[name].astype(np.float32) for name in names]
    return torch.from_numpy(np.stack(columns, 1))


def _names(rest: int, opacity_sh: int) -> list[str]:
    """Returns the properties in the order that 3DGS writes them, ours at the end."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{channel}" for channel in range(3)),
        *(f"f_rest_{index}" for index in range(rest)),
        "opacity",
        *(f"scale_{axis}" for axis in range(3)),
        *(f"rot_{part}" for part in range(4)),
        *(f"opacity_sh_{index}" for index in range(opacity_sh)),
    ]


def save_ply(path: Path, splats: Splats, blend: Blend) -> None:
    """Replaces the file `path` by a binary little-endian .ply of these splats."""
    splats = checked(splats, "the splats to save").map(lambda one: one.detach().cpu().float())
    zeros = torch.zeros(splats.count, 3)
    opacity_sh = zeros[:, :0] if splats.opacity_sh is None else splats.opacity_sh
    parts = [
        *(splats.positions, zeros, splats.sh[:, 0], splats.sh[:, 1:].transpose(1, 2).flatten(1)),
        *(splats.opacity_logits[:, None], splats.log_scales, splats.rotations, opacity_sh),
    ]
    table = torch.cat(parts, 1).numpy().astype("<f4")
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {_COMMENT} {key} {value}" for key, value in _facts(blend)),
        f"element vertex {splats.count}",
        *(f"property float {name}" for name in _names(parts[3].shape[1], opacity_sh.shape[1])),
        "end_header\n",
    ]
    write_bytes(path, "\n".join(lines).encode() + table.tobytes())


def _facts(blend: Blend) -> Iterator[tuple[str, str]]:
    yield "rule", blend.rule
    for name in ("sigma", "beta", "background_weight"):
        yield name, repr(float(getattr(blend, name)))
    yield "background", " ".join(repr(float(value)) for value in blend.background)


def _blend_of(header: Header, path: Path) -> Blend:
    """Returns what the comments say; a file without them is a sorted scene on black."""
    words = [one.removeprefix(_COMMENT).split() for one in header.comments if _COMMENT in one]
    facts: Mapping[str, list[str]] = {key: values for key, *values in words}
    if not facts:
        return Blend()
    try:
        red, green, blue = (float(value) for value in facts["background"])
        numbers = {key: float(facts[key][0]) for key in ("sigma", "beta", "background_weight")}
        (rule,) = (known for known in RULES if [known] == facts["rule"])
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path}: a broken comment of ours ({error}); save it again.") from error
    return Blend(rule, background=(red, green, blue), **numbers)


def load_splat(path: Path) -> tuple[Splats, Blend]:
    """Returns the splats of a .splat file: degree 0, and a sorted scene on black.

    A record is position and scale (3 floats each), RGBA and the quaternion w, x, y, z (4 bytes
    each; a byte b is (b - 128) / 128 of the quaternion).
    """
    data = read_bytes(path)
    if len(data) % _RECORD.itemsize:
        raise InputError(f"{path}: truncated: no multiple of 32 bytes; copy the file again.")
    rows = np.frombuffer(data, _RECORD)
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32)) / 255
    opacity = rgba[:, 3].clamp(0.5 / 255, 1 - 0.5 / 255)  # 0 and 255 have no finite logit
    splats = Splats(
        positions=torch.from_numpy(rows["position"].astype(np.float32)),
        log_scales=torch.from_numpy(rows["scale"].astype(np.float32)).clamp(min=1e-12).log(),
        rotations=(torch.from_numpy(rows["rotation"].astype(np.float32)) - 128) / 128,
        opacity_logits=torch.logit(opacity),
        sh=((rgba[:, :3] - 0.5) / C0)[:, None],
    )
    return checked(splats, str(path)), Blend()


def save_splat(path: Path, splats: Splats) -> None:
    """Replaces the file `path` by 32-byte records; harmonics above degree 0 have no room there.

    Raises InputError for splats with view-dependent opacity, which would not be the same scene.
    """
    if splats.opacity_sh is not None:
        raise InputError(f"{path}: a .splat has no room for view-dependent opacity; use a .ply.")
    splats = checked(splats, "the splats to save").map(lambda one: one.detach().cpu().float())
    rows = np.zeros(splats.count, _RECORD)
    rows["position"] = splats.positions.numpy()
    rows["scale"] = splats.log_scales.exp().numpy()
    colours = splats.sh[:, 0] * C0 + 0.5
    opacity = torch.sigmoid(splats.opacity_logits)[:, None]
    rows["rgba"] = (torch.cat([colours, opacity], 1) * 255).round().clamp(0, 255).byte().numpy()
    unit = torch.nn.functional.normalize(splats.rotations, dim=-1)
    rows["rotation"] = (unit * 128 + 128).round().clamp(0, 255).byte().numpy()
    write_bytes(path, rows.tobytes())
