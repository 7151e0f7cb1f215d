"""What a key of the cache is made of: values, files, the environment, the sources used."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
from pathlib import Path

import pytest

from edgeport.fingerprint import (
    SourceTracker,
    digest,
    environment_digest,
    file_sha256,
    tree_sha256,
    unchanged,
)

# Digests


def test_digest_is_of_the_value() -> None:
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    different = [digest(value) for value in ({"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {})]
    assert len(set(different)) == 5


def test_tree_sha256_sees_names_and_bytes(tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return tree_sha256(tmp_path)

    (tmp_path / "sub").mkdir()
    seen = [write("a.py", ""), write("a.py", "x"), write("sub/b.toml", "x")]
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    seen.append(tree_sha256(tmp_path))
    assert len(set(seen)) == 4
    assert write("notes.md", "x") == seen[-1]


def test_environment_digest_sees_an_installed_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = environment_digest()
    assert environment_digest() == before
    (tmp_path / "onnx-1.0.dist-info").mkdir()
    first = environment_digest()
    (tmp_path / "onnx-1.0.dist-info").rename(tmp_path / "onnx-1.1.dist-info")
    second = environment_digest()
    assert len({before, first, second}) == 3
    (tmp_path / "edgeport.egg-info").mkdir()  # beside a checkout, on sys.path or not
    assert environment_digest() == second


# Which sources were used


def test_tracker_sees_modules_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_factory.py").write_text("import user_layers\n")
    (tmp_path / "user_layers.py").write_text("WIDTH = 192\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "later.txt").write_text("")
    py_compile.compile(str(tmp_path / "user_layers.py"))  # read too, and no source
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with SourceTracker() as used:
        importlib.import_module("user_factory")
        json.loads(Path("config.json").read_text())
        descriptor = os.open("made.txt", os.O_WRONLY | os.O_CREAT)
        os.close(descriptor)
        Path("made.txt").read_text()
        importlib.import_module("wave")
    Path("later.txt").read_text()
    mine = {Path(name).name for name in used.files if name.startswith(str(tmp_path))}
    assert mine == {"user_factory.py", "user_layers.py", "config.json"}
    assert str(Path(__file__).resolve()) in used.files  # imported before, and local
    outside = [name for name in used.files if "site-packages" in name or "wave.py" in name]
    assert outside == []
    assert not any("/edgeport/" in name for name in used.files)
    assert unchanged(used.files)
    (tmp_path / "user_layers.py").write_text("WIDTH = 384\n")
    assert not unchanged(used.files)


def test_tracker_doubts_what_was_overwritten(tmp_path: Path) -> None:
    state = tmp_path / "counter"
    state.write_text("1")
    with SourceTracker() as used:
        state.write_text(str(int(state.read_text()) + 1))
    assert used.files[str(state)] == ""
    assert not unchanged(used.files)


def test_unchanged_sees_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    files = {str(path): file_sha256(path)}
    assert unchanged(files)
    path.unlink()
    assert not unchanged(files)
