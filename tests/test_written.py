"""Exports that a recipe writes by itself: proven, cached, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpu import need_gpu
from support import Command

import edgeport
from edgeport.errors import InputError, StageFailed
from edgeport.parities import compare_stages
from edgeport.places import find_place
from edgeport.plan import make_plan
from edgeport.running import run_at
from edgeport.runtimes.worker import Limits
from edgeport.subjects import find_arms

need_gpu()

LIMITS = Limits(240, 8 << 30)
RECIPE = """
from pathlib import Path
import numpy as np
from gpu import feed, small_program, write_small
from edgeport.types import Measurement, Option, Recipe, TensorSpec, Written

RECIPE = Recipe(
    name="painter",
    title="Twice the camera's numbers",
    paper="-",
    variants={"plain": "recipe:build"},
    default_variant="plain",
    inputs=lambda **options: (TensorSpec("view", "float32", (4, 4)),),
    calibration="recipe:feeds",
    exporter="recipe:write",
    options=(Option("gain", 1.0, "of the reference"), Option("note", "", "a file", path=True)),
    tolerance_db={"float": 60.0},
)

def write(directory, seed, *, gain, note):
    write_small(directory, small_program())
    (directory / "note.txt").write_text(Path(note).read_text() if note else "none")
    image = np.empty((3, 7, 3), np.float32)
    image[..., 0], image[..., 1], image[..., 2] = 32, 6, 2 * np.arange(7)
    known = Measurement("quality", 0.5, "1", "host")
    return Written("fp16", (feed((8.0, 1.0, 1.0, 3.0)),), ((gain * image,),), measured=(known,))
"""


@pytest.fixture(autouse=True)
def _painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "edgeport.toml").write_text('[recipes]\npaths = ["recipe.py"]\n')
    monkeypatch.chdir(tmp_path)


def export(**more: Any) -> Any:
    return edgeport.export("painter", output_dir="out", **more)


def test_the_files_are_run_and_compared_with_the_recipes_reference() -> None:
    made = export()
    assert [(one.stage, one.runtime) for one in made.artifacts] == [
        ("write", "webgpu"),
        ("run", "webgpu"),
    ]
    parity = {one.metric: one for one in made.artifact("run").parity}
    assert parity["max_abs"].value == 0 and parity["max_abs"].provenance == "host"
    assert made.manifest["placement"] == {"webgpu": {"gpu": 3}}
    assert made.manifest["device"]["name"] == "Web browser"
    assert made.manifest["measured"][0]["metric"] == "quality"
    files = json.loads(Path("out/manifest.json").read_text())["files"]
    assert "note.txt" in files and any("/" in name for name in files)
    assert all((Path("out") / name).is_file() for name in files)
    again = export()
    assert (again.steps, again.cached_steps) == (2, 2)


def test_a_reference_that_is_not_met_is_a_failure() -> None:
    with pytest.raises(StageFailed, match=r"program.json on .*60 dB are needed"):
        export(options={"gain": 1.1})
    assert not Path("out").exists() and Path("out.failed/program.json").is_file()


def test_a_file_that_an_option_names_is_part_of_the_source() -> None:
    note = Path("words.txt")
    note.write_text("one")
    assert export(options={"note": str(note)}).cached_steps == 0
    note.write_text("two")
    assert export(options={"note": str(note)}).cached_steps == 0
    assert Path("out/note.txt").read_text() == "two"


def test_without_a_driver_it_is_written_and_says_that_nothing_was_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeport.written._adapter", lambda plan, folder: "")
    made = export()
    ran = made.artifact("run")
    assert ran.parity == () and "not compared" in ran.notes[0]


def test_it_runs_again_and_is_timed_by_program() -> None:
    directory = export().directory
    (ran,) = run_at(directory, find_place("local"), limits=LIMITS)
    assert ran.artifact.parity[1].value == 0
    (arm,) = find_arms(["out:twice"], directory / "work")
    assert (arm.runtime, arm.part) == ("webgpu", "twice")
    with pytest.raises(InputError, match=r"unknown program of out 'thrice'.*twice"):
        find_arms(["out:thrice"], directory / "work")
    with pytest.raises(InputError, match="in one stage without a graph"):
        compare_stages(directory, limits=LIMITS)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("painter", {"target_runtimes": ["webgpu", "onnx"]}, "export it by itself"),
        ("painter", {"target_runtimes": ["onnx"]}, "name the target"),
        ("painter", {"precision": "w8a8"}, "webgpu has no w8a8"),
        ("painter", {"device": "rb3-gen2"}, "takes no webgpu"),
        ("padre", {"device": "browser"}, "no recipe that writes files of webgpu"),
        ("padre", {"device": "s24", "target_runtimes": ["webgpu"]}, "no recipe that writes"),
    ],
)
def test_what_cannot_be_written_is_refused(source: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_plan(source, **options)


def test_the_plan_on_the_terminal(run_cli: Command) -> None:
    Path("edgeport.toml").unlink()  # its recipe takes a neighbour of this file
    done = run_cli("export", "wsr_splatting", "--dry-run", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "Web browser" in done.stdout and "stages: write, run" in done.stdout
