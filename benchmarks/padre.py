"""Suite `padre`: PADRe of degree 2 and 3 against softmax attention, on this machine's CPU.

One block at 196 to 16,384 tokens and the whole net at 196 and 1,024. Per size: every arm's peak
memory in a child process of its own, then all arms that fit, interleaved on the same inputs.
A child is `python -m benchmarks.padre --once ARM --grid 64 --model FILE`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

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
from edgeport.errors import StageFailed
from edgeport.measure import environment, interleave, log_log_slope, peak_bytes_of, ratio

SUITE = "padre"
THREADS = 2
DIM = 192
GRIDS = (14, 32, 64, 128)
CROSSING_GRIDS = (16, 20, 24, 28)
NET_GRIDS = (14, 32)
FULL_GRIDS = (48, 96)
SLOPE_GRIDS = (32, 64, 128)
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
    *(Size("block", grid, 60.0 if grid == 128 else 15.0, memory=True) for grid in GRIDS),
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

    parameters = {"part": size.part, "tokens": size.tokens}
    rows: list[Row] = []

    def add(arm: str, **fields: Any) -> None:
        known = {**parameters, **fields.pop("parameters", {})}
        rows.append(Row(SUITE, size.group, arm, parameters=known, **fields))

    models, modules, feeds = _build(size)
    refused: dict[str, str] = {}
    if size.memory:
        for arm, used in _peak_memory(size, models).items():
            add(arm, metric="peak_bytes", unit="bytes", **used)
            if used["value"] is None:
                refused[arm] = used["note"]
    calls: dict[str, Callable[[], Any]] = {
        arm: _session_call(load(model, THREADS), feeds[arm])
        for arm, model in models.items()
        if arm not in refused
    }
    calls |= {
        arm: _module_call(module, feeds[arm])
        for arm, module in modules.items()
        if arm in ARMS and arm not in refused
    }
    _check_answers(size, calls, modules, feeds)
    before = environment(THREADS)  # before: the load that it states is then not our own
    timings = interleave(
        calls, rounds=200, seconds=size.seconds, warmup_seconds=max(3.0, size.seconds / 6)
    )
    for arm, timing in timings.items():
        add(arm, **timing_fields(timing), environment=before)
    for arm, why in refused.items():
        add(arm, metric="latency_ms", value=None, unit="ms", note=why, environment=before)
    in_ort = min(
        (arm for arm in ORT_ATTENTION if arm in timings), key=lambda arm: timings[arm].median_ms
    )
    for arm in PADRE:
        for kind, baseline in (("onnxruntime", in_ort), ("torch", TORCH_FUSED)):
            gain = ratio(timings[baseline], timings[arm])
            over = {"against": kind, "baseline": baseline}
            add(arm, **ratio_fields(gain), parameters=over, environment=before)
    return rows


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
    from edgeport.catalog import build_module, find_source

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
    with tempfile.TemporaryDirectory(prefix="edgeport-bench-") as folder:
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


def show(results: Results) -> None:
    """Prints the tables of the rows that there are."""
    block = [*GRIDS, *CROSSING_GRIDS, *(FULL_GRIDS if results.budget == "full" else ())]
    for title, part, grids in (
        ("One block, ms: median (first to third quartile)", "block", GRIDS),
        ("One block between, ms", "block", CROSSING_GRIDS),
        ("The whole net, ms", "net", NET_GRIDS),
        ("One block, more sizes (--full), ms", "block", FULL_GRIDS),
    ):
        print(f"\n### {title}\n\n{_arm_table(results, 'latency_ms', part, grids)}")
    for title, part, grids in (
        ("one block", "block", sorted(block)),
        ("the whole net", "net", NET_GRIDS),
    ):
        print(f"\n### Speedup of PADRe, {title}: ratio (95 % interval); below 1 PADRe loses\n")
        print(_speedup_table(results, part, grids))
    print("\n### Peak memory of one run, MB over the same process with the model loaded\n")
    print(_arm_table(results, "peak_bytes", "block", GRIDS))
    print("\n### Slope against N from 1,024 to 16,384 tokens: p in N^p\n")
    print(_slope_table(results))
    print("\n### Crossover: the number of tokens above which PADRe is the faster one\n")
    for line in _crossover_lines(results, sorted(block)):
        print(f"- {line}")
    print(f"\n### Beside the paper\n\n{_paper_table(results)}")


def _arm_table(results: Results, metric: str, part: str, grids: tuple[int, ...]) -> str:
    lines = []
    for arm in ARMS:
        rows = [_one(results.find(metric, arm, part=part, tokens=grid**2)) for grid in grids]
        lines.append([_label(arm), *(_cell_of(row) for row in rows)])
    return markdown(["arm", *(f"N = {grid**2:,}" for grid in grids)], lines)


def _label(arm: str) -> str:
    return arm if arm.startswith("torch") else f"onnxruntime, {arm}"


def _one(rows: list[Row]) -> Row | None:
    return rows[-1] if rows else None


def _cell_of(row: Row | None) -> str:
    if row is not None and row.metric == "peak_bytes" and row.value is not None:
        return f"{row.value / 1e6:,.1f}"
    return cell(row)


def _speedup_table(results: Results, part: str, grids: Any) -> str:
    lines = []
    for grid in grids:
        for kind in ("onnxruntime", "torch"):
            found = [
                _one(results.find("speedup", arm, part=part, tokens=grid**2, against=kind))
                for arm in PADRE
            ]
            baseline = found[0].parameters["baseline"] if found[0] else kind
            name = baseline if baseline.startswith("torch") else f"onnxruntime, {baseline}"
            lines.append([f"{grid**2:,}", name, *(cell(row, "x") for row in found)])
    return markdown(["N", "against the strongest in its runtime", *PADRE], lines)


def _slope_table(results: Results) -> str:
    lines = []
    for arm in ARMS:
        cells = []
        for metric in ("latency_ms", "peak_bytes"):
            rows = [
                _one(results.find(metric, arm, part="block", tokens=grid**2))
                for grid in SLOPE_GRIDS
            ]
            points = [(row.parameters["tokens"], row.value) for row in rows if row and row.value]
            cells.append(_slope(points))
        lines.append([_label(arm), *cells])
    return markdown(["arm", "time", "peak memory"], lines)


def _slope(points: list[tuple[int, float]]) -> str:
    if len(points) < 2:
        return NOT_RUN
    slope = f"{log_log_slope(*zip(*points)):.2f}"
    return slope if len(points) == len(SLOPE_GRIDS) else f"{slope} (up to {points[-1][0]:,})"


def _crossover_lines(results: Results, grids: list[int]) -> list[str]:
    lines = []
    for arm in PADRE:
        for kind in ("onnxruntime", "torch", "either"):
            points = [point for grid in grids if (point := _gain(results, arm, grid, kind))]
            what = f"{arm} against the strongest attention of {kind}"
            lines.append(f"{what.replace('of either', 'of both')}: {_crossover(points)}")
    return lines


def _gain(results: Results, arm: str, grid: int, kind: str) -> tuple[int, float] | None:
    """Returns (tokens, speedup) over the runtime's attention, over the faster for `either`."""
    found = [
        row.value
        for row in results.find("speedup", arm, part="block", tokens=grid**2)
        if kind in ("either", row.parameters["against"]) and row.value is not None
    ]
    return (grid**2, min(found)) if found else None


def _crossover(points: list[tuple[int, float]]) -> str:
    """Returns where log(speedup) over log(N) crosses 0 for the last time, between two sizes."""
    if not points:
        return NOT_RUN
    last = None
    for (n0, g0), (n1, g1) in pairwise(points):
        if g0 < 1 <= g1:
            share = np.log(g0) / (np.log(g0) - np.log(g1))
            last = f"{n0 * (n1 / n0) ** share:,.0f} tokens (measured at {n0:,} and {n1:,})"
    if last is None:
        where = "faster at every size" if points[0][1] >= 1 else "slower at every size"
        return f"none; PADRe is {where} from {points[0][0]:,} to {points[-1][0]:,} tokens"
    return last


def _paper_table(results: Results) -> str:
    lines = [
        [
            "the paper: 11x to 43x",
            "its own PADRe against standard self-attention, token counts not listed",
            "server GPU and mobile NPU (device), as published",
        ]
    ]
    for arm in PADRE:
        rows = [
            row
            for kind in ("onnxruntime", "torch")
            for row in results.find("speedup", arm, part="block", against=kind)
        ]
        gains = {
            tokens: min(row.value for row in rows if row.parameters["tokens"] == tokens)
            for tokens in sorted({row.parameters["tokens"] for row in rows})
        }
        said = ", ".join(f"{number(gain)}x at {tokens:,}" for tokens, gain in gains.items())
        where = f"host, CPU, onnxruntime fp32, {THREADS} threads"
        lines.append([f"here, {arm}: {said or NOT_RUN}", "strongest fused attention here", where])
    return markdown(["speedup", "of what, over what", "provenance"], lines)


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
