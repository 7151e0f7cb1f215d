"""What is imported before it is needed: nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from support import Command, command_environment

from edgeport.catalog import all_recipes

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "onnxscript", "safetensors", "PIL")
TELL = f"import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"


def heavy_after(code: str) -> list[str]:
    """Returns the heavy modules that a fresh interpreter has after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{TELL}"],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


RECIPES = [f"edgeport_recipes.{name}.recipe" for name in sorted(all_recipes())]


@pytest.mark.parametrize(
    "module",
    [
        "edgeport",
        "edgeport.catalog",
        "edgeport.plan",
        "edgeport.devices",
        "edgeport.types",
        "edgeport.verdicts",
        "edgeport.pytest_plugin",
        *RECIPES,
    ],
)
def test_importing_is_light(module: str) -> None:
    assert heavy_after(f"import {module}") == []


def test_the_probe_sees_what_is_imported() -> None:
    assert heavy_after("import onnx") == ["onnx"]


def test_edgeport_offers_export_only_when_asked() -> None:
    assert heavy_after("import edgeport; assert 'export' in edgeport.__all__") == []
    assert heavy_after("import edgeport; assert not hasattr(edgeport, 'nothing')") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "recipes"],
        ["list", "devices"],
        ["list", "runtimes", "--json"],
        ["export", "padre", "--device", "s24", "-o", "nowhere", "--dry-run"],
        ["export", "padrre", "--device", "s24", "-o", "nowhere"],
    ],
)
def test_answers_of_the_command_are_light(arguments: list[str]) -> None:
    code = f"import edgeport.cli\nstatus = edgeport.cli._run({arguments!r}, False)"
    assert heavy_after(code) == []


def test_list_answers_fast(run_cli: Command) -> None:
    """0.3 s is held by a benchmark; an import of torch, which takes over a second, is seen here."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert run_cli("list", "recipes").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.9
