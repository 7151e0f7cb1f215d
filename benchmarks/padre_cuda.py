"""Suite `padre --on cuda`: PADRe against torch's FlashAttention on a GPU, in bfloat16.

One block at 1,024 to 65,536 tokens, 192 and 384 channels, batch 1. All arms are compiled by
torch.compile for their shape, checked against float32, and timed by the GPU's events, interleaved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cuda import Machine, find_gpu
from benchmarks.tables import (
    NOT_RUN,
    Results,
    Row,
    cell,
    markdown,
    number,
    ratio_fields,
    timing_fields,
)
from edgeport.compare import sqnr_db
from edgeport.measure import Timing, elapsed_ms, environment, interleave, ratio
from edgeport.stages import host_threads

SUITE = "padre_cuda"
GRIDS = (32, 64, 128, 256)
DIMS = (192, 384)
HEAD_DIM = 64  # what FlashAttention is made for; the recipe's own at 192 channels
SECONDS = {"default": 5.0, "full": 30.0}
SAME_DB = 35.0  # a block in bfloat16 is 44 dB or more from itself in float32, a wrong one 0
BASELINE = "FlashAttention, on tokens"
PADRE_ARMS = {
    f"{name}, {layout}": (name, layout == "channels last")
    for name in ("padre2", "padre3")
    for layout in ("channels first", "channels last")
}
ARMS = (BASELINE, *PADRE_ARMS)
LAUNCHES = 20  # calls enqueued to see how long the host takes: a GPU's queue holds them
BOUND = 0.9  # of an arm's time: from here the host's launches are what is measured


@dataclass(frozen=True)
class Size:
    """What one interleaved run measures."""

    dim: int
    grid: int

    @property
    def tokens(self) -> int:
        return self.grid * self.grid

    @property
    def parameters(self) -> dict[str, Any]:
        return {"part": "block", "dim": self.dim, "tokens": self.tokens, "dtype": "bfloat16"}

    def group_on(self, machine: Machine) -> str:
        return f"{machine.name}, block {self.tokens} dim {self.dim}"


SIZES = tuple(Size(dim, grid) for dim in DIMS for grid in GRIDS)


def run(results: Results, full: bool) -> None:
    """Measures the sizes that are not finished on this GPU; without one, says so."""
    del full  # the budget is in the results
    machine = find_gpu()
    if machine is None:
        print("no CUDA device is here: nothing was measured", file=sys.stderr)
        return
    torch.backends.cudnn.benchmark = True  # the fastest of its convolutions for each shape
    for size in SIZES:
        group = size.group_on(machine)
        if not results.finished(group):
            print(f"running {group}", file=sys.stderr, flush=True)
            results.add(measure(size, machine, SECONDS[results.budget], results.budget))


# Measuring


@dataclass(frozen=True)
class Prepared:
    """An arm that runs: its call, the memory that it takes, and how near to float32 it is."""

    call: Callable[[], Tensor]
    peak_bytes: float | None
    sqnr_db: float


def measure(size: Size, machine: Machine, seconds: float, budget: str) -> list[Row]:
    """Returns the rows of one size: latency, memory and exactness of each arm, and speedups."""
    torch.compiler.reset()  # a size has graphs of its own, and their number is limited
    told = {**environment(host_threads()), **machine.facts}
    prepared: dict[str, Prepared] = {}
    problems: dict[str, str] = {}
    x = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, size.dim, size.grid, size.grid), np.float32)
    )
    with torch.no_grad():
        for arm in ARMS:
            found = prepare(arm, lambda arm=arm: arm_of(arm, size.dim, x), machine)
            if isinstance(found, str):
                problems[arm] = found
            else:
                prepared[arm] = found
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            fields = [*_refused(problems), *_timed(prepared, machine, seconds)]
    common = {"budget": budget, "environment": told}
    return [
        Row(
            SUITE,
            size.group_on(machine),
            arm,
            parameters={**size.parameters, "gpu": machine.name, **one.pop("parameters", {})},
            **common,
            **one,
        )
        for arm, one in fields
    ]


def arm_of(arm: str, dim: int, x: Tensor) -> tuple[nn.Module, Tensor, bool]:
    """Returns an arm's block in float32, its input, and whether channels come last.

    The weights and the input are those of bfloat16: only what is computed differs.
    """
    from benchmarks.attention_forms import on_tokens
    from edgeport.catalog import find_source
    from edgeport.sources import build_module

    variant, last = PADRE_ARMS.get(arm, ("attention", True))
    options = {"part": "block", "dim": dim, "heads": dim // HEAD_DIM}
    block = build_module(find_source("padre", variant=variant, options=options), seed=0)
    x = x.bfloat16().float()
    if arm == BASELINE:
        block, x = on_tokens(block), x.flatten(2).transpose(1, 2).contiguous()
    elif last:
        block, x = (one.to(memory_format=torch.channels_last) for one in (block, x))
    return block.bfloat16().float(), x, last


def prepare(
    arm: str, build: Callable[[], tuple[nn.Module, Tensor, bool]], machine: Machine
) -> Prepared | str:
    """Returns an arm that was compiled, warmed up and checked, or in words why there is none."""
    try:
        module, x, last = build()
        module, x = module.to(machine.device), x.to(machine.device)
        reference = exact(module, x)
        module, x = module.bfloat16(), x.bfloat16()
        compiled = machine.compile(module, last)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the only one that torch may take
            for _ in range(3):  # compiles, tunes, and settles
                answer = compiled(x)
            machine.finish()
            found_db = sqnr_db(reference, answer.float().cpu().numpy())
            del answer
            peak = machine.peak_bytes(lambda: compiled(x))
    except torch.OutOfMemoryError:
        return f"does not fit in {machine.memory_gib:.0f} GiB"
    except RuntimeError as error:  # torch's own for a kernel that is not there, and its compiler's
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return f"does not run: {first[:120]}"
    if not found_db >= SAME_DB:
        return f"not timed: {found_db:.0f} dB from float32"
    return Prepared(lambda: compiled(x), peak, found_db)


def exact(module: nn.Module, x: Tensor) -> Any:
    """Returns what the module gives in float32, without the GPU's rounding to 19 bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return module(x).cpu().numpy()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _refused(problems: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for arm, why in problems.items():
        yield arm, {"metric": "latency_ms", "value": None, "unit": "ms", "note": why}
        yield arm, {"metric": "peak_bytes", "value": None, "unit": "B", "note": why}


def _timed(
    prepared: Mapping[str, Prepared], machine: Machine, seconds: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of the rows of arms that run, by arm."""
    if not prepared:
        return
    launches = {arm: _launch_ms(one.call, machine) for arm, one in prepared.items()}
    timings = interleave(
        {arm: one.call for arm, one in prepared.items()},
        rounds=200,
        seconds=seconds,
        warmup_seconds=max(1.0, seconds / 5),
        batch_ms=machine.batch_ms,
    )
    for arm, one in prepared.items():
        fields = timing_fields(timings[arm])
        if launches[arm] >= BOUND * timings[arm].median_ms:
            bound = "bound by launches: the host, not the GPU, takes this long"
            fields["note"] = "; ".join(filter(None, (fields["note"], bound)))
        yield arm, fields
        yield arm, {"metric": "launch_ms", "value": launches[arm], "unit": "ms"}
        yield arm, {"metric": "sqnr_db", "value": one.sqnr_db, "unit": "dB"}
        if one.peak_bytes is not None:
            yield arm, {"metric": "peak_bytes", "value": one.peak_bytes, "unit": "B"}
    yield from _speedups(timings)


def _launch_ms(call: Callable[[], object], machine: Machine) -> float:
    """Returns the host's milliseconds to hand one call to a GPU that is idle."""
    machine.finish()
    _, spent = elapsed_ms(lambda: [call() for _ in range(LAUNCHES)])
    machine.finish()
    return spent / LAUNCHES


def _speedups(timings: Mapping[str, Timing]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields PADRe's speedup over attention, by arm."""
    if BASELINE in timings:
        for arm in PADRE_ARMS:
            if arm in timings:
                yield arm, ratio_fields(ratio(timings[BASELINE], timings[arm]))


# The tables


def tables(results: Results) -> str:
    """Returns the tables of each GPU that has rows; of none, tables that say so."""
    gpus = dict.fromkeys(str(row.parameters["gpu"]) for row in results.rows)
    return "\n\n".join(_tables_of(results, gpu) for gpu in gpus or (None,))


def _tables_of(results: Results, gpu: str | None) -> str:
    title = gpu or "a CUDA GPU"
    sections = {
        f"{title}: one block in bfloat16, ms: median (first to third quartile)": (
            _table(results, gpu, ARMS, "latency_ms", _latency_cell)
        ),
        f"{title}: speedup over FlashAttention (95 % interval), below 1 PADRe loses": (
            _table(results, gpu, tuple(PADRE_ARMS), "speedup", lambda row: cell(row, "x"))
        ),
        f"{title}: peak memory of one call above weights and input, MB": (
            _table(results, gpu, ARMS, "peak_bytes", _memory_cell)
        ),
        f"{title}: dB from the same weights in float32": (
            _table(results, gpu, ARMS, "sqnr_db", cell)
        ),
        f"{title}: beside the paper": _paper_table(results, gpu),
    }
    return "\n\n".join(f"### {name}\n\n{body}" for name, body in sections.items())


def _table(
    results: Results,
    gpu: str | None,
    arms: Sequence[str],
    metric: str,
    show: Callable[[Row | None], str],
) -> str:
    lines = [
        [str(dim), arm, *(show(_one(results, metric, arm, gpu, Size(dim, g))) for g in GRIDS)]
        for dim in DIMS
        for arm in arms
    ]
    return markdown(["channels", "arm", *(f"N = {grid**2:,}" for grid in GRIDS)], lines)


def _one(results: Results, metric: str, arm: str, gpu: str | None, size: Size) -> Row | None:
    rows = results.find(metric, arm, gpu=gpu, dim=size.dim, tokens=size.tokens)
    return rows[-1] if rows else None


def _latency_cell(row: Row | None) -> str:
    bound = row is not None and row.value is not None and "bound by launches" in row.note
    return cell(row) + (", bound by launches" if bound else "")


def _memory_cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return cell(row)
    return f"{row.value / 1e6:,.1f}"


def _paper_table(results: Results, gpu: str | None) -> str:
    lines = [
        [
            "the paper: 11x to 43x",
            "its own PADRe over standard self-attention, token counts not listed",
            "server GPU and mobile NPU, as published",
        ]
    ]
    for dim in DIMS:
        for arm in PADRE_ARMS:
            found = [(g**2, _one(results, "speedup", arm, gpu, Size(dim, g))) for g in GRIDS]
            said = [f"{number(row.value)}x at {n:,}" for n, row in found if row and row.value]
            lines.append(
                [
                    f"here, {arm}: {', '.join(said) or NOT_RUN}",
                    f"one block of {dim} channels over FlashAttention",
                    gpu or NOT_RUN,
                ]
            )
    return markdown(["speedup", "of what, over what", "where"], lines)
