"""Suite `padre --on cuda`: all but the GPU's events and memory, on the CPU; those where one is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import padre_cuda
from benchmarks.cuda import Machine, driver_in, find_gpu, host
from benchmarks.padre_cuda import ARMS, BASELINE, PADRE_ARMS, Prepared, Size, arm_of, prepare
from benchmarks.run import main
from benchmarks.tables import DEFAULT, Results, Row, number

SMALL = Size(192, 8)
LAYOUTS = ("first", "last")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda: a GPU of NVIDIA")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another take long where tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows(one_thread: None) -> list[Row]:
    """One size on the CPU, compiled without code of its own: by graphs that torch runs."""
    return padre_cuda.measure(SMALL, host("eager"), 0.2, DEFAULT)


def of(rows: list[Row], metric: str) -> dict[str, Row]:
    return {row.arm: row for row in rows if row.metric == metric}


def test_every_arm_is_timed_and_near_to_float32(rows: list[Row]) -> None:
    assert set(of(rows, "latency_ms")) == set(ARMS)
    assert all(row.value and row.value > 0 for row in of(rows, "latency_ms").values())
    exactness = {arm: row.value for arm, row in of(rows, "sqnr_db").items()}
    assert set(exactness) == set(ARMS)
    # bfloat16 has 8 bits: at 80 dB it would not be what was computed in.
    assert all(value is not None and 35 < value < 80 for value in exactness.values())


def test_a_speedup_has_an_interval_and_says_over_what_and_where(rows: list[Row]) -> None:
    speedups = of(rows, "speedup")
    assert set(speedups) == set(PADRE_ARMS)
    for row in speedups.values():
        assert row.value and row.interval and row.interval[0] <= row.value <= row.interval[1]
        assert row.parameters["tokens"] == 64 and row.parameters["gpu"] == "CPU"
        assert {"cpu", "torch"} <= set(row.environment)


def test_the_arms_compute_the_same_as_the_recipe() -> None:
    """Tokens and both layouts are one block: what they give is the same, in another order."""
    x = torch.randn(1, 192, 4, 4)
    with torch.no_grad():
        first, last = (
            module(given)
            for module, given, _ in (arm_of(f"padre3, channels {one}", 192, x) for one in LAYOUTS)
        )
        module, given, _ = arm_of(BASELINE, 192, x)
        assert module(given).shape == (1, 16, 192)
    torch.testing.assert_close(first, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


class TooLarge(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50) + x.sum()


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.dtype == torch.float32 else torch.zeros_like(x)


@pytest.mark.parametrize(
    ("module", "said"),
    [(TooLarge(), "does not run: .*allocate"), (Wrong(), "not timed: 0 dB from float32")],
)
def test_an_arm_that_cannot_be_timed_says_why(module: nn.Module, said: str) -> None:
    found = prepare("padre2", lambda: (module, torch.ones(2, 2), True), host("eager"))
    assert isinstance(found, str) and re.match(said, found)


def test_out_of_memory_is_said_with_the_memory_that_there_is() -> None:
    def compiled(module: nn.Module, channels_last: bool) -> Callable[..., Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")

    small = replace(host("eager"), memory_gib=8.0, compile=compiled)
    found = prepare("padre2", lambda: (nn.Identity(), torch.ones(2, 2), True), small)
    assert found == "does not fit in 8 GiB"


def test_the_rest_is_timed_where_attention_is_not_there() -> None:
    def compiled(module: nn.Module, channels_last: bool) -> Callable[..., Any]:
        if "TokenBlock" in type(module).__name__:
            raise RuntimeError("No available kernel. Aborting execution.\nmore")
        return module

    found = padre_cuda.measure(SMALL, replace(host("eager"), compile=compiled), 0.05, DEFAULT)
    latencies = of(found, "latency_ms")
    assert latencies[BASELINE].value is None
    assert latencies[BASELINE].note == "does not run: No available kernel. Aborting execution."
    assert all(latencies[arm].value for arm in PADRE_ARMS) and not of(found, "speedup")


# Tables and the command


def test_tables_show_what_ran_and_that_the_rest_did_not(rows: list[Row], tmp_path: Path) -> None:
    results = Results(tmp_path / "rows.jsonl", DEFAULT)
    empty = padre_cuda.tables(results)
    assert "a CUDA GPU" in empty and not re.search(r"\d\.\d", empty)
    shown = [replace(row, parameters={**row.parameters, "tokens": 1024}) for row in rows]
    results.add(shown)
    text = padre_cuda.tables(results)
    assert "### CPU: one block" in text and "a CUDA GPU" not in text
    value = of(shown, "speedup")["padre3, channels last"].value
    assert value is not None
    assert f"here, padre3, channels last: {number(value)}x at 1,024" in text
    assert "not run" in text


@needs_no_gpu
def test_without_a_gpu_nothing_is_run_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    assert main(["padre", "--on", "cuda", "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "no CUDA device is here" in err and "not run" in out and not path.exists()


def test_a_suite_without_a_part_for_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--on", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "error: --on cuda is for padre, not zoo\n"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("535.183\n", "535.183"),
        ("NVIDIA-SMI has failed", "unknown"),
    ],
)
def test_the_driver_is_named(text: str, version: str) -> None:
    assert driver_in(text) == version


@needs_gpu
def test_on_a_gpu_all_arms_are_timed_with_its_events_and_memory() -> None:
    gpu = find_gpu()
    assert isinstance(gpu, Machine)
    found = padre_cuda.measure(Size(192, 32), gpu, 0.5, DEFAULT)
    assert all(row.value for row in of(found, "latency_ms").values())
    assert set(of(found, "peak_bytes")) == set(ARMS)
    assert {"gpu", "driver", "cuda", "torch"} <= set(found[0].environment)
    with torch.no_grad():
        arm = prepare(BASELINE, lambda: arm_of(BASELINE, 192, torch.randn(1, 192, 32, 32)), gpu)
    assert isinstance(arm, Prepared)
