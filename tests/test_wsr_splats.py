"""Splat files: what is read back, what other tools wrote, and what is refused in one line."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeport_recipes.wsr_splatting.ply import (
    load_ply,
    load_scene,
    load_splat,
    save_ply,
    save_splat,
)
from edgeport_recipes.wsr_splatting.splats import Blend, Splats
from wsr_scene import PARAMETERS, random_splats

from edgeport.errors import InputError

BLEND = Blend("exp", 3.5, 0.7, (0.1, 0.2, 0.3), 0.4)


def splats_of(degree: int = 3, count: int = 9, **changes: object) -> Splats:
    splats = random_splats(count, degree, dtype=torch.float32)
    unit = torch.nn.functional.normalize(splats.rotations, dim=1)
    return replace(splats, **{"rotations": unit, **changes})


def check_equal(found: Splats, wanted: Splats, **tolerance: float) -> None:
    for name in PARAMETERS:
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, **(tolerance or {"atol": 1e-6, "rtol": 0}))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("view_opacity", [True, False])
def test_a_ply_is_read_back(tmp_path: Path, degree: int, view_opacity: bool) -> None:
    splats = splats_of(degree)
    if not view_opacity:
        splats = replace(splats, opacity_sh=None)
    save_ply(tmp_path / "a.ply", splats, BLEND)
    found, blend = load_scene(tmp_path / "a.ply")
    assert blend == BLEND
    check_equal(found, splats)


def header_of(path: Path) -> tuple[str, bytes]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    return header.decode(), body


def test_other_viewers_find_the_usual_layout(tmp_path: Path) -> None:
    splats = splats_of(1, 2)
    save_ply(tmp_path / "a.ply", splats, BLEND)
    header, body = header_of(tmp_path / "a.ply")
    names = re.findall(r"property float (\w+)", header)
    assert names[:10] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "f_rest_0"]
    assert names[17:27] == [
        *("f_rest_8", "opacity", "scale_0", "scale_1", "scale_2"),
        *("rot_0", "rot_1", "rot_2", "rot_3", "opacity_sh_0"),
    ]
    table = np.frombuffer(body, "<f4").reshape(2, len(names))
    # all three coefficients of red, then those of green and of blue
    wanted = splats.sh[:, 1:].permute(0, 2, 1).reshape(2, 9).numpy()
    np.testing.assert_array_equal(table[:, 9:18], wanted)


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian"])
def test_ascii_and_big_endian_are_read(tmp_path: Path, form: str) -> None:
    splats = splats_of(2)
    save_ply(tmp_path / "a.ply", splats, BLEND)
    header, body = header_of(tmp_path / "a.ply")
    table = np.frombuffer(body, "<f4").reshape(splats.count, -1)
    if form == "ascii":
        new = "\n".join(" ".join(f"{x:.9g}" for x in row) for row in table).encode() + b"\n"
    else:
        new = table.astype(">f4").tobytes()
    header = header.replace("binary_little_endian", form)
    (tmp_path / "b.ply").write_bytes(header.encode() + b"end_header\n" + new)
    check_equal(load_ply(tmp_path / "b.ply")[0], splats)


def test_other_elements_types_and_properties_are_passed_over(tmp_path: Path) -> None:
    names = [
        *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
        *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    lines = ["ply", "format binary_little_endian 1.0", "comment made by hand"]
    lines += ["element camera 2", "property double f", "property uchar used", "element vertex 2"]
    lines += ["property uchar label", *(f"property double {name}" for name in names)]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header\n"]
    rows = [[*range(10), 2.0, 0, 0, 0], [0.5] * 14]
    body = b"".join(struct.pack("<dB", 1.5, 1) for _ in range(2))
    body += b"".join(struct.pack("<B14d", 7, *row) for row in rows)
    (tmp_path / "a.ply").write_bytes("\n".join(lines).encode() + body + b"\0" * 5)
    splats, blend = load_ply(tmp_path / "a.ply")
    assert blend == Blend() and splats.degree == 0 and splats.opacity_sh is None
    assert splats.positions.tolist() == [[0, 1, 2], [0.5] * 3]
    assert splats.opacity_logits.tolist() == [6, 0.5]
    assert splats.rotations.tolist() == [[1, 0, 0, 0], [0.5] * 4]  # of length 2 before


def test_a_splat_file_is_read_back_to_a_byte(tmp_path: Path) -> None:
    splats = splats_of(0, 50, opacity_sh=None)
    path = tmp_path / "a.splat"
    save_splat(path, splats)
    assert path.stat().st_size == 32 * 50
    found, blend = load_scene(path)
    assert blend.rule == "sorted"
    torch.testing.assert_close(found.positions, splats.positions)
    torch.testing.assert_close(found.log_scales, splats.log_scales, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.rotations, splats.rotations, atol=0.02, rtol=0)
    opacities = torch.sigmoid(splats.opacity_logits)
    torch.testing.assert_close(torch.sigmoid(found.opacity_logits), opacities, atol=0.003, rtol=0)
    colours = (splats.sh * 0.28209479).clamp(-0.5, 0.5)
    torch.testing.assert_close(found.sh * 0.28209479, colours, atol=0.002, rtol=0)
    save_splat(tmp_path / "b.splat", found)
    before, after = (np.fromfile(file, "u1") for file in (path, tmp_path / "b.splat"))
    rest = np.arange(len(before)) % 32 >= 24  # the bytes after the floats
    assert np.abs(before[rest].astype(int) - after[rest]).max() <= 1


def test_a_splat_file_has_no_room_for_opacity_by_direction(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no room .*use a \.ply"):
        save_splat(tmp_path / "a.splat", splats_of(0))
    assert not list(tmp_path.iterdir())


def sample() -> Path:
    data = os.environ.get("EDGEPORT_DATA")
    if not data:
        pytest.skip("needs EDGEPORT_DATA: the folder of evaluation data")
    return Path(data) / "gs" / "ply_sample" / "pc_short.ply"


def test_a_scene_that_others_trained(tmp_path: Path) -> None:
    splats, blend = load_ply(sample())
    assert (splats.count, splats.degree, blend.rule) == (100, 3, "sorted")
    assert splats.opacity_sh is None
    torch.testing.assert_close(splats.rotations.norm(dim=1), torch.ones(100))
    colours = splats.sh[:, 0] * 0.28209479 + 0.5
    assert float(colours.median()) > 0 and float(colours.median()) < 1
    save_ply(tmp_path / "again.ply", splats, blend)
    check_equal(load_ply(tmp_path / "again.ply")[0], splats)


# What is refused


def with_value(name: str, value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_ply(path, splats_of(1), BLEND)
        header, body = header_of(path)
        names = re.findall(r"property float (\w+)", header)
        table = np.frombuffer(body, "<f4").reshape(9, len(names)).copy()
        columns = [at for at, one in enumerate(names) if re.fullmatch(name, one)]
        table[4, columns] = value
        path.write_bytes(header.encode() + b"end_header\n" + table.tobytes())

    return write


def with_header(old: str, new: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_ply(path, splats_of(1), BLEND)
        data = path.read_bytes()
        assert old.encode() in data
        path.write_bytes(data.replace(old.encode(), new.encode(), 1))

    return write


def cut(path: Path) -> None:
    save_ply(path, splats_of(1), BLEND)
    path.write_bytes(path.read_bytes()[:-100])


def mesh(path: Path) -> None:
    path.write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        "property float z\nend_header\n0 0 0\n"
    )


REFUSED = {
    "NaN position": (with_value("x", np.nan), r"positions of 1 splats .*splat 4"),
    "infinite scale": (with_value("scale_1", np.inf), r"log_scales of 1 splats"),
    "zero quaternion": (with_value(r"rot_\d", 0.0), r"splat 4 has a quaternion of length 0"),
    "no splats": (with_header("vertex 9", "vertex 0"), r"holds no splats"),
    "truncated": (cut, r"truncated: \d of 9 splats"),
    "more than there are": (with_header("vertex 9", "vertex 9000000000000"), r"truncated: 9 of"),
    "a negative count": (with_header("vertex 9", "vertex -9"), r"header that cannot be read"),
    "a mesh": (mesh, r"lacks f_dc_0, f_dc_1"),
    "half the opacity": (with_header("opacity_sh_3", "other"), r"some of opacity_sh_0\.\.3"),
    "odd harmonics": (with_header("f_rest_8", "other"), r"8 f_rest properties"),
    "an unknown rule": (with_header("rule exp", "rule new"), r"broken comment"),
    "an unknown type": (with_header("property float x", "property quad x"), r"header .*quad"),
    "an unknown format": (with_header("binary_little_endian", "zipped"), r"format 'zipped'"),
    "no header": (lambda path: path.write_bytes(b"\x89PNG"), r"no \.ply file"),
    "empty": (lambda path: path.write_bytes(b""), r"no \.ply file"),
    "no file": (lambda path: None, r"No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_ply_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write, words = REFUSED[case]
    path = tmp_path / "a.ply"
    write(path)
    with pytest.raises(InputError, match=words) as caught:
        load_ply(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_broken_splat_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.splat"
    save_splat(path, splats_of(0, 3, opacity_sh=None))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="truncated"):
        load_splat(path)
    path.write_bytes(struct.pack("<f", float("nan")) + whole[4:])
    with pytest.raises(InputError, match="positions of 1 splats"):
        load_splat(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no splats"):
        load_splat(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give a \.ply or a \.splat"):
        load_scene(tmp_path / "a.obj")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    save_ply(path, splats_of(1), BLEND)
    old = path.read_bytes()
    broken = splats_of(1)
    broken.positions[2, 1] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        save_ply(path, broken, BLEND)
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["a.ply"]
