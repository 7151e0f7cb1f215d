"""Redirected descriptors carry what native code prints, and come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeport.descriptors import redirected


def test_native_output_reaches_the_file_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "log").open("wb") as file, redirected(2, file.fileno()):
        os.write(2, b"from C\n")
    os.write(2, b"after\n")
    assert (tmp_path / "log").read_text() == "from C\n"
    assert capfd.readouterr().err == "after\n"


def test_comes_back_after_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(ValueError, match="x"),
        (tmp_path / "log").open("wb") as file,
        redirected(1, file.fileno()),
    ):
        raise ValueError("x")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"
