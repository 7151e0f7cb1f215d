"""What is in the wheel, and what holds the test suite itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support import ROOT

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
SUFFIXES = (".py", ".toml", ".jinja", ".html", ".css", ".js", ".svg", ".glsl", ".wgsl")


def folders(top: Path, package: str) -> set[str]:
    """Returns the packages from `top` on, by their __init__.py."""
    found = {path.parent.relative_to(top) for path in top.rglob("__init__.py")}
    return {".".join((package, *folder.parts)) for folder in found}


def test_every_package_is_named() -> None:
    """A wheel silently leaves out what the list does not name."""
    expected: set[str] = set()
    for package, folder in CONFIG["package-dir"].items():
        expected |= folders(ROOT / folder, package)
    assert set(CONFIG["packages"]) == expected
    assert len(CONFIG["packages"]) == len(expected)


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in CONFIG["package-dir"].values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns the names in a wheel that is really built, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = {".git", ".venv", "build", "dist", "__pycache__"}
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        kept = relative.parts[0] in ("edgeport", "recipes") or len(relative.parts) == 1
        if kept and path.is_file() and not ignored & set(relative.parts):
            (source / relative).parent.mkdir(parents=True, exist_ok=True)
            (source / relative).write_bytes(path.read_bytes())
    build = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.xdist_group("wheel")
def test_the_wheel_holds_every_module_and_profile(wheel: list[str]) -> None:
    expected = {"edgeport/py.typed"}
    for package, folder in CONFIG["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                expected.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    assert expected <= set(wheel)
    assert sum(name.startswith("edgeport/devices/") for name in expected) >= 9
    assert any(name.startswith("edgeport_recipes/padre/") for name in expected)


@pytest.mark.xdist_group("wheel")
def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"edgeport", "edgeport_recipes"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert any(name.endswith("entry_points.txt") for name in wheel)


SKIPPING = """import pytest

def test_missing():
    pytest.skip("needs ssh: apt install openssh-server")

@pytest.mark.skipif(True, reason="needs chromium")
def test_marked(): ...

def test_other():
    pytest.skip("only on macOS")

def test_found(): ...
"""


def outcomes(folder: Path, required: str) -> str:
    (folder / "test_skipping.py").write_text(SKIPPING)
    (folder / "conftest.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "-n", "0", str(folder)],
        env={**os.environ, "EDGEPORT_REQUIRE": required, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return done.stdout


def test_a_required_skip_is_a_failure(tmp_path: Path) -> None:
    assert "1 passed, 3 skipped" in outcomes(tmp_path, "")
    text = outcomes(tmp_path, "ssh, chromium")
    assert "1 failed, 1 passed, 1 skipped, 1 error" in text  # a mark skips before the test
    assert "EDGEPORT_REQUIRE names ssh" in text
    assert "EDGEPORT_REQUIRE names chromium" in text


def test_a_required_module_that_is_skipped_as_a_whole_is_a_failure(tmp_path: Path) -> None:
    skip = 'import pytest\npytest.skip("needs gpu", allow_module_level=True)\n'
    (tmp_path / "test_whole.py").write_text(skip)
    assert "EDGEPORT_REQUIRE names gpu" in outcomes(tmp_path, "gpu")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"])
def test_files_that_are_read_first(name: str) -> None:
    assert (ROOT / name).stat().st_size > 300


def test_pins_satisfy_the_ranges() -> None:
    """constraints.txt pins every dependency that pyproject states, within its range."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    versions = {pin.name.lower(): next(iter(pin.specifier)).version for pin in pins}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert versions[requirement.name.lower()] in requirement.specifier
