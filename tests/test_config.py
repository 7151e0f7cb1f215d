"""edgeport.toml: the user's own recipes and devices, and what is wrong with the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import ON_HOST, OUT, Command, check_refusal, manifest_of

import edgeport
from edgeport.catalog import all_recipes, find_source
from edgeport.config import Config, load_config
from edgeport.devices import all_devices, find_chipset, find_device
from edgeport.errors import InputError, UnknownName
from edgeport.sources import build_module

RECIPE = """from edgeport.types import Option, Recipe, TensorSpec
from sizes import SIZE

def inputs(width=SIZE, **others):
    return (TensorSpec("x", "float32", (1, width)),)

RECIPE = Recipe(name="mine", title="A method of mine", paper="none", variants={"a": "net:build"},
                default_variant="a", inputs=inputs, calibration="net:feeds",
                options=(Option("width", SIZE, "features"),))
"""
NET = """import numpy as np
from torch import nn
from sizes import SIZE

def build(seed, width=SIZE):
    return nn.Linear(width, 2)

def feeds(specs, count, seed):
    rng = np.random.default_rng(seed)
    return [{s.name: rng.random(s.shape, "float32") for s in specs} for _ in range(count)]
"""
DEVICE = """name = "My Board"
aliases = ["board"]
chipset = "my-chip"
chipset_aliases = []
[runtimes]
values = ["onnx"]
source = "its manual"
[facts]
"""


def write_recipe(folder: Path, size: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.py").write_text(RECIPE)
    (folder / "net.py").write_text(NET)
    (folder / "sizes.py").write_text(f"SIZE = {size}\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a recipe and a device of its own; the current directory is below it."""
    write_recipe(tmp_path / "methods" / "mine")
    (tmp_path / "board.toml").write_text(DEVICE)
    (tmp_path / "edgeport.toml").write_text(
        '[recipes]\npaths = ["methods"]\n[devices]\npaths = ["board.toml"]\n'
    )
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "option", "flag"),
    [
        ("export", "device", "--device"),
        ("export", "output_dir", "--output-dir"),
        ("export", "help", "--help"),
        ("doctor", "no_numerics", "--no-numerics"),
        ("sensitivity", "top", "--top"),
    ],
)
def test_an_option_may_not_hide_a_flag(
    project: Path, run_cli: Command, command: str, option: str, flag: str
) -> None:
    recipe = project / "methods" / "mine" / "recipe.py"
    recipe.write_text(recipe.read_text().replace('"width"', f'"{option}"'))
    done = run_cli(command, "mine")
    words = f"recipe mine: its option '{option}' is the flag {flag}, which `edgeport {command}`"
    check_refusal(done.returncode, done.stdout, done.stderr, words)


def test_two_options_may_not_be_one_flag(project: Path, run_cli: Command) -> None:
    recipe = project / "methods" / "mine" / "recipe.py"
    twice = 'options=(Option("a_b", SIZE, "features"), Option("a-b", SIZE, "others"),)'
    text = recipe.read_text().replace('options=(Option("width", SIZE, "features"),)', twice)
    recipe.write_text(text)
    done = run_cli("export", "mine")
    check_refusal(done.returncode, done.stdout, done.stderr, "its option 'a-b' is the flag --a-b")


def test_no_file_is_no_settings(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()


def test_the_nearest_file_counts_and_its_paths_are_its_own(project: Path) -> None:
    config = load_config()
    assert config.file == project / "edgeport.toml"
    assert config.recipes == (project / "methods" / "mine" / "recipe.py",)
    assert config.devices == (project / "board.toml",)
    (project / "below" / "edgeport.toml").write_text("")
    assert load_config().recipes == ()


def test_the_users_recipe_is_found_built_and_exported(project: Path, out: Path) -> None:
    assert "mine" in all_recipes()
    source = find_source("mine", options={"width": 7})
    assert build_module(source, 0).in_features == 7
    request = {"device": "board", "precision": "w8a8", "output_dir": out}
    first = edgeport.export("mine", **request)
    assert manifest_of(out)["calibration"].endswith("(the recipe's; no --calib-data)")
    assert edgeport.export("mine", **request).cached_steps == first.steps
    write_recipe(project / "methods" / "mine", size=6)
    edgeport.export("mine", options={"width": 6}, **request)
    assert manifest_of(out)["inputs"][0]["shape"] == [1, 6]


def test_the_users_device(project: Path) -> None:
    assert find_device("BOARD").name == find_chipset("my-chip").name == "My Board"
    assert "My Board" in [device.name for device in all_devices()]


def test_lists_show_them(project: Path, run_cli: Command) -> None:
    rows = json.loads(run_cli("list", "recipes", "--json").stdout)
    files = {row["name"]: row["file"] for row in rows}
    assert files["padre"] is None
    assert files["mine"] == str(project / "methods" / "mine" / "recipe.py")
    assert "My Board" in run_cli("list", "devices").stdout
    assert "--width" in run_cli("export", "mine", "--help").stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[recipe]\n", "unknown key in .*edgeport.toml 'recipe'. Did you mean 'recipes'"),
        ("[recipes]\npath = []\n", r"edgeport.toml \[recipes\] 'path'. Did you mean 'paths'"),
        ("[recipes]\npaths = 'methods'\n", "paths is a list of strings"),
        ("[recipes]\npaths = [1]\n", "paths is a list of strings"),
        ("recipes = 1\n", "expected a table"),
        ("[recipes\n", "cannot be read"),
        ("[recipes]\npaths = ['nowhere']\n", r"nowhere is no folder with a recipe\.py"),
        ("[recipes]\npaths = ['below']\n", r"below holds no recipe\.py"),
        ("[devices]\npaths = ['below']\n", r"below holds no \*\.toml"),
    ],
)
def test_a_wrong_file(project: Path, text: str, words: str) -> None:
    (project / "edgeport.toml").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_config()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('a\\nb')", r"recipe\.py raised ValueError: a$"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("RECIPE = 3", "has no RECIPE"),
        (RECIPE.replace('"mine"', '"padre"'), "'padre' is there already"),
    ],
)
def test_a_wrong_recipe(project: Path, body: str, words: str) -> None:
    (project / "methods" / "mine" / "recipe.py").write_text(body)
    with pytest.raises(InputError, match=words) as caught:
        all_recipes()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("net.py", ("nn.Linear(width, 2)", "1 / 0"), "mine raised ZeroDivisionError"),
        ("net.py", ("def build", "def built"), "mine raised AttributeError"),
        ("recipe.py", ("net:build", "nets:build"), "mine raised ModuleNotFoundError"),
        ("recipe.py", ("(1, width)", "(1, widht)"), "inputs of mine raised NameError"),
    ],
)
def test_a_recipe_that_fails(project: Path, file: str, change: tuple[str, str], words: str) -> None:
    path = project / "methods" / "mine" / file
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=words):
        build_module(find_source("mine"), 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"board"', '"S24"'), "'s24' already names Samsung Galaxy S24"),
        (('"My Board"', "3"), "name is no text"),
        (("[facts]", "[fact]"), "unknown key 'fact'"),
    ],
)
def test_a_wrong_device(project: Path, change: tuple[str, str], words: str) -> None:
    (project / "board.toml").write_text(DEVICE.replace(*change))
    with pytest.raises(InputError, match=words):
        all_devices()


def test_an_unknown_name_suggests_them(project: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'mine'"):
        find_source("minee")


def test_the_command_refuses_in_one_line(project: Path, run_cli: Command) -> None:
    (project / "edgeport.toml").write_text("[devicess]\n")
    done = run_cli("export", "padre", *ON_HOST, *OUT)
    check_refusal(done.returncode, done.stdout, done.stderr, "Did you mean 'devices'")
