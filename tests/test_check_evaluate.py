"""`Recipe.evaluate` in `edgeport check`: what only the recipe measures, remembered, and failing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import FACTORY, called

from edgeport.catalog import all_recipes
from edgeport.check import Checked, check
from edgeport.errors import InputError
from edgeport.recipe_evaluation import evaluate_recipe
from edgeport.types import Measurement

RECIPE = """
from edgeport.types import Claim, Recipe, TensorSpec

RECIPE = Recipe(
    name="mine",
    title="mine",
    paper="none",
    variants={"net": "net:make"},
    default_variant="net",
    inputs=lambda: (TensorSpec("image", "float32", (1, 3, 16, 16)),),
    calibration="edgeport_recipes._shared.images:feeds",
    evaluate="accuracy:measure",
    claims=(
        Claim("top1:shapes", ">=", 0.7, ("host",), "of the weights beside it"),
        Claim("top1:photographs", ">=", 0.7, ("host",), "of weights that are not shipped"),
        Claim("sqnr_db:onnx", ">=", 60.0, ("host",), "float"),
    ),
    check={"device": "s24", "target_runtimes": ["onnx"]},
)
"""
# Reads its weights by a memory map, as safetensors does: Python does not see the file opened.
ACCURACY = """
import mmap, os
from pathlib import Path

import numpy as np

from edgeport.errors import InputError
from edgeport.types import Measurement


def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as bytes_:
        values = np.frombuffer(bytes_[:], np.float32)
    os.close(descriptor)
    return values


def top1(name, weights):
    x = np.random.default_rng(0).standard_normal((200, weights.size)).astype(np.float32)
    label = x @ np.array([1, 2, 3], np.float32) > 0
    with open(os.environ["RUNS"], "a") as runs:
        runs.write(f"{name} ")
    return Measurement(f"top1:{name}", float(((x @ weights > 0) == label).mean()), "1", "host")


def measure():
    print("measuring")
    found = [top1("shapes", read(Path(__file__).parent / "data" / "weights.bin"))]
    trained = os.environ.get("EDGEPORT_TRAINED")
    if trained:
        file = Path(trained, "photographs.bin")
        if not file.is_file():
            raise InputError(f"{file}: no such file; EDGEPORT_TRAINED names its folder")
        found.append(top1("photographs", read(file)))
    return tuple(found)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Path:
    """A project with one recipe, in the current directory; returns the recipe's folder."""
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "edgeport.toml").write_text('[recipes]\npaths = ["mine"]\n')
    (folder / "recipe.py").write_text(RECIPE)
    made = FACTORY.replace("def build():", "def make(seed):")
    (folder / "net.py").write_text(made)
    (folder / "accuracy.py").write_text(ACCURACY)
    save_weights(folder / "data" / "weights.bin", [1, 2, 3])
    (tmp_path / "runs").touch()  # outside of the recipe's folder, and written: nothing it reads
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EDGEPORT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEPORT_DATA", raising=False)
    monkeypatch.delenv("EDGEPORT_TRAINED", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def save_weights(path: Path, values: list[float]) -> None:
    path.write_bytes(np.array(values, np.float32).tobytes())


def runs() -> list[str]:
    return Path("runs").read_text().split()


def checked() -> Checked:
    return check(["mine"], baseline=Path("none.jsonl"))


def measured() -> dict[str, float]:
    return {one.metric: one.value for one in evaluate_recipe(all_recipes()["mine"])}


def outcomes(found: Checked) -> dict[str, tuple[str, str]]:
    return {one.metric: (one.outcome, one.reason) for one in found.verdicts}


# In the gate


def test_what_the_recipe_measures_is_judged_and_the_rest_is_missing() -> None:
    found = outcomes(checked())
    assert found["top1:shapes"] == ("pass", "top1:shapes 1 (host)")
    assert found["top1:photographs"] == ("missing", "nothing measured it here")
    assert found["sqnr_db:onnx"][0] == "pass"


def test_weights_that_are_worse_fail_their_claim(mine: Path) -> None:
    save_weights(mine / "data" / "weights.bin", [1, -2, 0])
    assert outcomes(checked())["top1:shapes"][0] == "fail"


def test_an_evaluation_that_fails_is_said_and_the_export_still_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEPORT_TRAINED", "nowhere")
    found = outcomes(checked())
    outcome, reason = found["top1:shapes"]
    assert outcome == "fail" and reason.startswith("the recipe's evaluation failed: ")
    assert "photographs.bin: no such file" in reason
    assert found["sqnr_db:onnx"][0] == "pass"
    with pytest.raises(InputError, match="the baseline stays as it was"):
        check(["mine"], baseline=Path("b.jsonl"), update=True, why="the first")


def test_a_lower_accuracy_than_the_baselines_fails(mine: Path) -> None:
    check(["mine"], baseline=Path("b.jsonl"), update=True, why="the first")
    save_weights(mine / "data" / "weights.bin", [1, 2, 2.7])
    (change,) = (
        one
        for one in check(["mine"], baseline=Path("b.jsonl")).verdicts
        if one.kind == "regression" and one.metric == "top1:shapes"
    )
    assert change.outcome == "fail" and change.measurement is not None
    assert 0.7 < change.measurement.value < 1


def test_the_command_prints_it_and_json_stays_one_document(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, out, err = called(capfd, "check", "mine", "--json")
    verdicts = json.loads(out)["verdicts"]
    assert code == 0 and "measuring" in err
    assert next(one for one in verdicts if one["metric"] == "top1:shapes")["outcome"] == "pass"


# Remembered


def test_a_second_run_remembers_and_fresh_measures_again() -> None:
    first = checked()
    assert runs() == ["shapes"]
    again = checked()
    assert runs() == ["shapes"] and again.verdicts == first.verdicts
    check(["mine"], baseline=Path("none.jsonl"), fresh=True)
    assert runs() == ["shapes", "shapes"]


def test_weights_beside_the_recipe_that_changed_are_measured(mine: Path) -> None:
    before = measured()
    save_weights(mine / "data" / "weights.bin", [1, 2, 1])
    assert measured()["top1:shapes"] < before["top1:shapes"]


@pytest.mark.parametrize("variable", ["EDGEPORT_DATA", "EDGEPORT_TRAINED"])
def test_what_lies_in_the_named_folders_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    measured()
    folder = tmp_path / "named"
    folder.mkdir()
    save_weights(folder / "photographs.bin", [1, 2, 3])
    monkeypatch.setenv(variable, str(folder))
    first, count = measured(), len(runs())
    assert ("top1:photographs" in first) == (variable == "EDGEPORT_TRAINED") and count > 1
    assert measured() == first and len(runs()) == count
    save_weights(folder / "photographs.bin", [3, 2, 1])
    measured()
    assert len(runs()) > count


def test_a_file_read_elsewhere_counts(mine: Path, tmp_path: Path) -> None:
    limit = tmp_path / "elsewhere" / "limit.txt"
    limit.parent.mkdir()
    limit.write_text("0.25")
    (mine / "accuracy.py").write_text(
        "from edgeport.types import Measurement\n\n\ndef measure():\n"
        f"    with open({str(limit)!r}) as file:\n        value = float(file.read())\n"
        '    return (Measurement("top1:shapes", value, "1", "host"),)\n'
    )
    assert measured() == {"top1:shapes": 0.25}
    limit.write_text("0.75")
    assert measured() == {"top1:shapes": 0.75}


# Bad functions


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 0.5", "gave float, not a tuple of"),
        ("return (0.5,)", "gave a tuple with float"),
        ("raise ZeroDivisionError('no images')", "raised ZeroDivisionError: no images"),
        ("return (Measurement('top1', '1', '1', 'host'),)", "top1 is '1'"),
        ("return (Measurement('top1', 1.0, '1', 'phone'),)", "device, emulated, host"),
        ("return (Measurement('top1', 1.0, '1', 'host'),) * 2", "twice"),
    ],
)
def test_what_is_no_measurement_is_told_in_one_line(mine: Path, body: str, said: str) -> None:
    (mine / "accuracy.py").write_text(
        f"from edgeport.types import Measurement\n\n\ndef measure():\n    {body}\n"
    )
    with pytest.raises(InputError, match="evaluate of mine") as raised:
        measured()
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_function_that_is_not_there_is_told(mine: Path) -> None:
    (mine / "accuracy.py").write_text("")
    with pytest.raises(InputError, match="evaluate of mine raised AttributeError"):
        measured()


def test_a_recipe_without_one_has_nothing() -> None:
    assert evaluate_recipe(replace(all_recipes()["mine"], evaluate=None)) == ()
    assert runs() == []


def test_infinite_and_missing_numbers_survive_the_cache(mine: Path) -> None:
    (mine / "accuracy.py").write_text(
        "from edgeport.types import Measurement\n\n\ndef measure():\n"
        '    return (Measurement("psnr_db", float("inf"), "dB", "host", interval=(1.0, 2.0)),)\n'
    )
    first = evaluate_recipe(all_recipes()["mine"])
    assert first == evaluate_recipe(all_recipes()["mine"])
    assert first == (Measurement("psnr_db", float("inf"), "dB", "host", interval=(1.0, 2.0)),)
