"""The runtime webgpu: a small program on the GPU, what its folder may hold, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import feed, need_gpu, small_program, write_small
from support import LIMITS

from edgeport.devices import find_device
from edgeport.errors import InputError
from edgeport.runtimes import CompileRequest, find_runtime, status
from edgeport.runtimes.lowering import run_compiled
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.webgpu_driver import has_driver
from edgeport.runtimes.webgpu_program import read_document

need_gpu()

from edgeport.runtimes.webgpu import (  # noqa: E402 - it needs wgpu
    Adapter,
    compile_model,
    find_adapter,
    load,
    report_nodes,
)

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small", small_program())


def expected(fx: float, cy: float, width: int, height: int) -> np.ndarray:
    """Returns twice (2 fx, 2 cy / 2, column)."""
    image = np.empty((height, width, 3), np.float32)
    image[..., 0], image[..., 1], image[..., 2] = 4 * fx, 2 * cy, 2 * np.arange(width)
    return image


def test_a_compute_and_two_draws(small: Path) -> None:
    session = load(small, {})
    for fx, cy in ((8.0, 3.0), (2.5, 10.0)):
        (image,) = session.run(feed((fx, 1.0, 1.0, cy)))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected(fx, cy, 7, 3))
    np.testing.assert_array_equal(session.read_buffer("made").view("f4"), [5.0, 2.0, 2.0, 10.0])
    assert session.bytes_of("twice") == 96 + 16 + 16 + 16 + 7 * 3 * 8


def test_a_frame_of_another_size_and_one_of_its_first_passes(small: Path) -> None:
    session = load(small, {}, (70, 2))
    session.frame("twice", feed())
    np.testing.assert_array_equal(session.read_texture("sums")[:, :, :3], expected(8.0, 3.0, 70, 2))
    session.frame("twice", feed((1.0, 1.0, 1.0, 1.0)), passes=2)
    np.testing.assert_array_equal(
        session.read_texture("sums")[:, :, :3], expected(1.0, 1.0, 70, 2) / 2
    )


def test_the_gpus_own_times(small: Path) -> None:
    session = load(small, {})
    if not session.has_timestamps:
        pytest.skip("needs timestamps: this adapter has no timestamp-query")
    seconds = session.pass_seconds("twice", feed())
    assert list(seconds) == ["double", "fill", "fill again"]
    assert all(0 <= one < 10 for one in seconds.values())


def test_the_flow_runs_it_in_a_child_process(small: Path, tmp_path: Path) -> None:
    feeds = [feed((fx, 1.0, 1.0, 3.0)) for fx in (1.0, 2.0)]
    save_samples(tmp_path / "inputs.npz", feeds)
    answers = run_compiled(
        "webgpu", small, tmp_path, tmp_path / "inputs.npz", find_device("s24"), LIMITS
    )
    for answer, fx in zip(answers, (1.0, 2.0), strict=True):
        np.testing.assert_array_equal(answer["output_0"], expected(fx, 3.0, 7, 3))


def test_every_pass_is_reported_on_the_gpu(small: Path) -> None:
    nodes = report_nodes(small)
    assert [(node.node, node.op, node.unit) for node in nodes] == [
        ("twice/double", "main", "gpu"),
        ("twice/fill", "corner+colour", "gpu"),
        ("twice/fill again", "corner+colour", "gpu"),
    ]


def test_an_onnx_graph_is_not_compiled(tmp_path: Path) -> None:
    request = CompileRequest("/models/net.onnx", str(tmp_path), "float", {})
    with pytest.raises(InputError, match=r"no ONNX graph \(net.onnx\).*exporter"):
        compile_model(request)


def test_a_software_gpu_is_named_one() -> None:
    adapter = find_adapter()
    assert adapter.name
    if "llvmpipe" in adapter.name:
        assert adapter.is_software
    for name in ("llvmpipe (LLVM 15)", "SwiftShader Device", "Microsoft Basic Render Driver"):
        assert Adapter(name, "Unknown", "Vulkan").is_software
    assert not Adapter("Adreno (TM) 750", "IntegratedGPU", "Vulkan").is_software


# Bad input


def passes(program: dict[str, Any]) -> list[dict[str, Any]]:
    return program["programs"]["twice"]["passes"]


BAD: dict[str, tuple[Change, str]] = {
    "another format": (lambda p: p.update(format="edgeport.webgpu/9"), r"format: expected one of"),
    "no programs": (lambda p: p.update(programs={}), "programs: expected one at the least"),
    "a frame of nothing": (lambda p: p.update(frame=[0, 3]), r"frame: expected 2 whole numbers"),
    "other inputs": (lambda p: p.update(inputs=[]), "inputs: expected view"),
    "an unknown output": (lambda p: p["outputs"][0].update(name="x"), "there is no program 'x'"),
    "an output twice": (lambda p: p["outputs"].append({"name": "twice"}), "each program once"),
    "an unknown buffer": (
        lambda p: passes(p)[0]["bindings"].update({"1": "lost"}),
        r"passes\[0\]\.bindings\.1: there is no buffer or texture 'lost'",
    ),
    "a binding that is no number": (
        lambda p: passes(p)[0]["bindings"].update(x="made"), "a binding's key is its number"
    ),
    "an unknown target": (lambda p: passes(p)[1].update(target="made"), "no texture 'made'"),
    "an unknown blend": (lambda p: passes(p)[1].update(blend="under"), "none, add, over"),
    "an unknown texture format": (lambda p: p["textures"]["sums"].update(format="r8"), "format"),
    "no workgroups": (lambda p: passes(p)[0].update(workgroups=[0, 1, 1]), "workgroups"),
    "an infinite constant": (
        lambda p: passes(p)[0]["constants"].update(FACTOR=float("inf")), "finite"
    ),
    "a clear of 3": (lambda p: passes(p)[1].update(clear=[0, 0, 0]), "clear: expected 4"),
    "compute and draw": (lambda p: passes(p)[1].update(compute="x"), "either compute or draw"),
    "an indirect buffer without the usage": (
        lambda p: passes(p)[2].update(indirect="made"), "'made' has no usage indirect"
    ),
    "an unknown usage": (lambda p: p["buffers"]["made"].update(usage=["vertex"]), "'vertex'"),
    "bytes and a file": (lambda p: p["buffers"]["arguments"].update(bytes=16), "one of file"),
    "odd bytes": (lambda p: p["buffers"]["made"].update(bytes=15), "4-byte words"),
    "an unknown input": (lambda p: p["buffers"]["camera"].update(uniform=["time"]), "'time'"),
    "an absolute path": (
        lambda p: passes(p)[1].update(draw="/etc/passwd"), "not a path inside the folder"
    ),
    "a path out of the folder": (
        lambda p: p["buffers"]["arguments"].update(file="scene/../../inputs"), "not a path inside"
    ),
    "a link out of the folder": (
        lambda p: p["buffers"]["arguments"].update(file="scene/link"), "leads out of the folder"
    ),
    "a file that is not there": (
        lambda p: passes(p)[0].update(compute="shaders/lost.wgsl"), "'shaders/lost.wgsl' is not"
    ),
    "a number for a text": (lambda p: passes(p)[0].update(entry=3), "entry: expected a text"),
    "a list for an object": (lambda p: p.update(buffers=[]), "buffers: expected an object"),
    "a name for both": (
        lambda p: p["textures"].update(made=p["textures"]["sums"]), "'made' is a buffer's name too"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_program_is_one_line(tmp_path: Path, name: str) -> None:
    change, words = BAD[name]
    program = small_program()
    change(program)
    folder = write_small(tmp_path / "small", program)
    (tmp_path / "outside").write_bytes(bytes(16))
    (folder / "scene/link").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=words) as caught:
        read_document(folder)
    assert "\n" not in str(caught.value)
    assert "program.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', "[" * 100_000, "\xff\xfe"]
)
def test_a_file_that_is_no_program(tmp_path: Path, text: str) -> None:
    (tmp_path / "program.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_document(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no program\.json here"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["buffers"]["made"].update(bytes=1 << 32), "max-buffer-size of 4294967296"),
        (lambda p: passes(p)[0].update(workgroups=[1, 1 << 20, 1]), "max-compute-workgroups"),
        (lambda p: p.update(frame=[1 << 20, 1]), "max-texture-dimension-2d of 1048576"),
    ],
)
def test_what_the_adapter_cannot_take_names_the_limit(
    tmp_path: Path, change: Change, words: str
) -> None:
    program = small_program()
    change(program)
    with pytest.raises(InputError, match=words) as caught:
        load(write_small(tmp_path / "small", program), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: passes(p)[0].update(entry="lost"), r"refuses double\.wgsl \(double\)"),
        (lambda p: passes(p)[0]["constants"].update(LOST=1), r"refuses double\.wgsl"),
        (lambda p: passes(p)[0]["bindings"].pop("1"), r"refuses double\.wgsl"),
        (lambda p: p["buffers"]["made"].update(usage=["indirect"]), r"refuses double\.wgsl"),
    ],
)
def test_what_the_driver_refuses_is_one_line(tmp_path: Path, change: Change, words: str) -> None:
    program = small_program()
    change(program)
    with pytest.raises(InputError, match=words) as caught:
        load(write_small(tmp_path / "small", program), {})
    assert "\n" not in str(caught.value)


def test_a_shader_that_does_not_compile(small: Path) -> None:
    (small / "shaders/fill.wgsl").write_text("fn fragment( {")
    with pytest.raises(InputError, match=r"refuses fill\.wgsl") as caught:
        load(small, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("view", np.eye(3), r"view: expected \[4, 4\]"),
        ("intrinsics", np.array([1, 2, np.nan, 4]), r"intrinsics: expected \[4\] finite"),
        ("view", None, "the feed has no view"),
    ],
)
def test_a_bad_feed(small: Path, name: str, value: np.ndarray | None, words: str) -> None:
    given = {key: one for key, one in (feed() | {name: value}).items() if one is not None}
    with pytest.raises(InputError, match=words):
        load(small, {}).run(given)


# The row of the table


def test_the_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = find_runtime("webgpu")
    assert (row.units, row.runs_as, row.default) == (("gpu",), "host", False)
    shown = {one.runtime.name: one for one in status.statuses()}["webgpu"]
    assert shown.works and shown.remedy == ""
    monkeypatch.setenv("VK_DRIVER_FILES", "/no/such/driver.json")
    assert not has_driver()
    shown = {one.runtime.name: one for one in status.statuses()}["webgpu"]
    assert not shown.works
    assert (shown.problem, "mesa-vulkan-drivers" in shown.remedy) == ("no Vulkan driver", True)


def test_without_a_driver_it_is_one_line(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/no/such/driver.json")
    save_samples(tmp_path / "inputs.npz", [feed()])
    with pytest.raises(InputError, match=r"mesa-vulkan-drivers") as caught:
        run_compiled("webgpu", small, tmp_path, tmp_path / "inputs.npz", find_device("s24"), LIMITS)
    assert "\n" not in str(caught.value)
