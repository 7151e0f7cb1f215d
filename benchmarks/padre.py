"""Suite `padre`: PADRe of degree 2 and 3 against softmax attention, on this machine's CPU.

One block at 196 to 16,384 tokens and the whole net at 196 and 1,024. Per size: every arm's peak
memory in a child process of its own, then all arms that fit, interleaved on the same inputs.
A child is `python -m benchmarks.padre --once ARM --grid 64 --model FILE`.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import (
    Results,
    Row,
    ratio_fields,
    timing_fields,
)
from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.measure import Timing, environment, interleave, ratio
from edgeport.peak_memory import peak_bytes_of
from edgeport.private import scratch_directory

SUITE = "padre"
THREADS = 2
DIM = 192
GRIDS = (14, 32, 64, 128)
CROSSING_GRIDS = (16, 20, 24, 28)
NET_GRIDS = (14, 32)
FULL_GRIDS = (48, 96)
MEMORY_LIMIT_GIB = 6
SAME_DB = 80.0  # arms of one network agree to float32 rounding, far above this
PADRE = ("padre2", "padre3")
TORCH_FUSED, TORCH_UNFUSED = "torch, fused attention", "torch, unfused attention"
ORT_ATTENTION = (
    "attention",
    "attention, opset-23 Attention",
    "attention, MultiHeadAttention",
    "attention on tokens",
    "attention on tokens, MultiHeadAttention",
)
ARMS = (*PADRE, *ORT_ATTENTION, TORCH_FUSED, TORCH_UNFUSED)
_SHARE_OF_FREE = 0.8  # of the memory that is free, for all arms together
_DOES_NOT_FIT = f"does not fit in {MEMORY_LIMIT_GIB} GiB"


@dataclass(frozen=True)
class Size:
    """What one interleaved run measures: the part of the network, its grid, seconds to spend."""

    part: str
    grid: int
    seconds: float
    memory: bool = False
    full: bool = False

    @property
    def tokens(self) -> int:
        return self.grid * self.grid

    @property
    def group(self) -> str:
        return f"{self.part} {self.tokens}"


SIZES = (
    *(Size("block", grid, 90.0 if grid == 128 else 15.0, memory=True) for grid in GRIDS),
    *(Size("block", grid, 8.0) for grid in CROSSING_GRIDS),
    *(Size("net", grid, 20.0) for grid in NET_GRIDS),
    *(Size("block", grid, 40.0, memory=True, full=True) for grid in FULL_GRIDS),
)


def run(results: Results, full: bool) -> None:
    """Measures the sizes that are not finished, and adds their rows."""
    for size in SIZES:
        if results.finished(size.group) or (size.full and not full):
            continue
        print(f"running {size.group} tokens", file=sys.stderr, flush=True)
        results.add([replace(row, budget=results.budget) for row in _run_size(size)])


def _run_size(size: Size) -> list[Row]:
    from benchmarks.attention_forms import load

    before = environment(THREADS)  # first: what follows would be in the load that it states
    models, modules, feeds = _build(size)
    memory = _peak_memory(size, models) if size.memory else {}
    refused = _refused(memory)
    calls: dict[str, Callable[[], Any]] = {}
    for arm in ARMS:
        if arm in refused:
            continue
        if arm in models:
            calls[arm] = _session_call(load(models[arm], THREADS), feeds[arm])
        else:
            calls[arm] = _module_call(modules[arm], feeds[arm])
    _check_answers(size, calls, modules, feeds)
    timings = interleave(
        calls, rounds=200, seconds=size.seconds, warmup_seconds=max(3, size.seconds // 6)
    )
    none = {"metric": "latency_ms", "value": None, "unit": "ms"}
    fields = [
        *((arm, {"metric": "peak_bytes", "unit": "bytes", **used}) for arm, used in memory.items()),
        *((arm, timing_fields(timing)) for arm, timing in timings.items()),
        *((arm, {**none, "note": why}) for arm, why in refused.items()),
        *_speedups(timings),
    ]
    return [_row(size, arm, before, **one) for arm, one in fields]


def _refused(memory: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns, with the reason, the arms that did not fit and those that cannot all stay loaded.

    Runtimes keep what an arm once took, so that together the arms need the sum of their peaks.
    """
    refused = {arm: used["note"] for arm, used in memory.items() if used["value"] is None}
    peaks = {arm: used["value"] for arm, used in memory.items() if arm not in refused}
    free = _free_bytes()
    for arm in sorted(peaks, key=peaks.__getitem__, reverse=True):
        if sum(peaks.values()) > _SHARE_OF_FREE * free:
            refused[arm] = f"not timed: takes {peaks.pop(arm) / 1e9:.1f} GB, too much beside others"
    return refused


def _free_bytes() -> int:
    """Returns the memory that Linux could give without swapping, elsewhere half of all of it."""
    if Path("/proc/meminfo").is_file():
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _row(size: Size, arm: str, before: Mapping[str, str], **fields: Any) -> Row:
    parameters = {"part": size.part, "tokens": size.tokens, **fields.pop("parameters", {})}
    return Row(SUITE, size.group, arm, parameters=parameters, environment=before, **fields)


def _speedups(timings: Mapping[str, Timing]) -> list[tuple[str, dict[str, Any]]]:
    """Returns, by arm, the fields of PADRe's speedup over each runtime's fastest attention.

    And over the unfused one, where it fits: what the paper may have meant by standard.
    """
    in_ort = [timings[arm] for arm in ORT_ATTENTION if arm in timings]
    fastest = min(in_ort, key=lambda timing: timing.median_ms)
    baselines = {"onnxruntime": fastest, "torch": timings[TORCH_FUSED]}
    if TORCH_UNFUSED in timings:
        baselines["unfused"] = timings[TORCH_UNFUSED]
    found = []
    for arm in PADRE:
        for kind, baseline in baselines.items():
            gain = ratio_fields(ratio(baseline, timings[arm]))
            over = {"against": kind, "baseline": baseline.name}
            found.append((arm, {**gain, "parameters": over}))
    return found


def _build(size: Size) -> tuple[dict[str, Any], dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Returns graphs by arm, torch modules by arm and variant, and the feed of each of them."""
    from benchmarks.attention_forms import graphs, on_tokens
    from edgeport.capture import capture_module
    from edgeport.passes import EXACT
    from edgeport.passes.apply import apply_passes

    feed, token_feed = _feeds(size.part, size.grid)
    modules = {name: _module(name, size.part, size.grid) for name in ("attention", *PADRE)}
    forms = graphs(modules["attention"], feed, token_feed)
    models = {arm: model for arm, (model, _) in forms.items()}
    for name in PADRE:  # as `edgeport export` makes them
        captured = capture_module(modules[name], feed)
        models[name] = apply_passes(captured, EXACT, [feed], minimum_db=SAME_DB).model
    feeds = {**dict.fromkeys(modules, feed), **{arm: taken for arm, (_, taken) in forms.items()}}
    torch_arms = {
        TORCH_FUSED: on_tokens(modules["attention"]),
        TORCH_UNFUSED: on_tokens(modules["attention"], fused=False),
    }
    reference = {f"reference {name}": module for name, module in modules.items()}
    feeds |= dict.fromkeys(torch_arms, token_feed) | dict.fromkeys(reference, feed)
    return models, {**torch_arms, **reference}, feeds


def _module(variant: str, part: str, grid: int) -> Any:
    from edgeport.catalog import find_source
    from edgeport.sources import build_module

    options = {"part": part, "grid": grid}
    return build_module(find_source("padre", variant=variant, options=options), seed=0)


def _feeds(part: str, grid: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns one input for the recipe's layout and the same one for the layout of tokens."""
    rng = np.random.default_rng(0)
    if part == "net":
        image = rng.standard_normal((1, 3, 16 * grid, 16 * grid), dtype=np.float32)
        return {"image": image}, {"image": image}
    x = rng.standard_normal((1, DIM, grid, grid), dtype=np.float32)
    return {"x": x}, {"x": np.ascontiguousarray(x.reshape(1, DIM, -1).transpose(0, 2, 1))}


def _session_call(session: Any, feed: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: session.run(feed)[0]


def _module_call(module: Any, feed: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(THREADS)
    tensors = [torch.from_numpy(array) for array in feed.values()]

    def call() -> Any:
        with torch.inference_mode():
            return module(*tensors).numpy()

    return call


def _check_answers(
    size: Size, calls: Mapping[str, Any], modules: Mapping[str, Any], feeds: Mapping[str, Any]
) -> None:
    """Raises StageFailed where an arm does not compute what the recipe's module in torch does."""
    references: dict[str, Any] = {}
    for arm, call in calls.items():
        name = f"reference {arm if arm in PADRE else 'attention'}"
        if name not in references:
            references[name] = _module_call(modules[name], feeds[name])()
        actual = call()
        if actual.ndim == 3:  # tokens
            actual = actual.transpose(0, 2, 1).reshape(references[name].shape)
        found_db = sqnr_db(references[name], actual)
        if found_db < SAME_DB:
            raise StageFailed("benchmark", f"{size.group}: {arm} is {found_db:.0f} dB from torch")


def _peak_memory(size: Size, models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns value and note by arm: the peak of a child that runs once, over one that does not."""
    import onnx_ir as ir

    used: dict[str, dict[str, Any]] = {}
    with scratch_directory() as folder:
        for arm in ARMS:
            argv = [sys.executable, "-m", "benchmarks.padre", "--once", arm]
            argv += ["--part", size.part, "--grid", str(size.grid)]
            if arm in models:
                file = Path(folder, "model.onnx")
                ir.save(models[arm], file)
                argv += ["--model", str(file)]
            idle = peak_bytes_of([*argv, "--idle"], timeout_s=300)
            try:
                peak = peak_bytes_of(argv, timeout_s=600)
            except StageFailed as error:
                if _DOES_NOT_FIT not in str(error):
                    raise
                used[arm] = {"value": None, "note": _DOES_NOT_FIT}
                continue
            used[arm] = {"value": float(peak - idle), "note": f"over {idle} loaded and not run"}
    return used


def once(arm: str, part: str, grid: int, model: Path | None, idle: bool) -> None:
    """Loads one arm and runs it once, in a process whose memory is limited; with `idle`, loads."""
    limit = MEMORY_LIMIT_GIB << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    feed, token_feed = _feeds(part, grid)
    try:
        if model is not None:
            from edgeport.runtimes.onnx import Session

            taken = token_feed if "on tokens" in arm else feed
            call = _session_call(Session(model, THREADS, spin=False), taken)
        else:
            from benchmarks.attention_forms import on_tokens

            fused = arm == TORCH_FUSED
            call = _module_call(on_tokens(_module("attention", part, grid), fused), token_feed)
        if not idle:
            call()
    except Exception as error:  # numpy, torch and onnxruntime each have a class for this
        if "alloc" not in str(error).lower():
            raise
        sys.exit(_DOES_NOT_FIT)


def tables(results: Results) -> str:
    """Returns the tables of the rows that there are."""
    from benchmarks import padre_tables

    return padre_tables.tables(results)


def main() -> None:
    """Runs one arm once, as the child of the memory measurement."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--once", required=True, choices=ARMS, metavar="ARM")
    parser.add_argument("--part", default="block", choices=("block", "net"))
    parser.add_argument("--grid", type=int, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--idle", action="store_true", help="load, and do not run")
    given = parser.parse_args()
    once(given.once, given.part, given.grid, given.model, given.idle)


if __name__ == "__main__":
    main()
