"""Suite `zoo`: twelve timm models and four transformers, edgeport beside the plain path.

Random weights from one seed, BatchNorm statistics of seeded inputs. Both arms get the same module,
the same calibration feeds and the same held-out inputs, and are compared with torch. Each arm is
placed, compiled and emulated for a Galaxy S24; a crash of the compiler is a row.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import zoo_plain
from benchmarks.tables import NOT_RUN, Results, Row, markdown
from edgeport import compare
from edgeport.errors import EdgeportError
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.runtimes.qnn_context_binary import NAME as NPU
from edgeport.runtimes.worker import Limits
from edgeport.types import Provenance

SUITE = "zoo"
DEVICE = "s24"
PRECISIONS = ("float", "w8a16", "w8a8")
MIXED = "w8a16 --min-sqnr 35"  # 16-bit weights in the worst layers; the plain path has no such
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **{precision: {"precision": precision} for precision in PRECISIONS},
    MIXED: {"precision": "w8a16", "min_sqnr": 35.0},
}
SAMPLES = {"default": 1, "full": 4}  # held-out inputs, by budget
CALIBRATION = {"default": 16, "full": 64}
LIMITS = Limits(seconds=1200.0, memory_bytes=14 << 30)
SMALL = "hidden_size=128,num_hidden_layers=2,num_attention_heads=2,intermediate_size=512"
MODELS = {
    "mobilenetv3_small_100": "timm:mobilenetv3_small_100",
    "resnet18": "timm:resnet18",
    "efficientnet_b0": "timm:efficientnet_b0",
    "convnext_atto": "timm:convnext_atto",
    "edgenext_xx_small": "timm:edgenext_xx_small",
    "deit_tiny": "timm:deit_tiny_patch16_224",
    "mobilevit_xs": "timm:mobilevit_xs",
    "levit_128s": "timm:levit_128s",
    "swin_tiny": "timm:swin_tiny_patch4_window7_224",
    "mobileone_s0": "timm:mobileone_s0",
    "fastvit_t8": "timm:fastvit_t8",
    "ghostnetv2_100": "timm:ghostnetv2_100",
    "bert": f"hf:bert,{SMALL}",
    "distilbert": "hf:distilbert,dim=128,n_layers=2,n_heads=2,hidden_dim=512",
    "vit": f"hf:vit,{SMALL}",
    "segformer": "hf:segformer,depths=[1,1,1,1]",
}
EDGEPORT, PLAIN = ARMS = ("edgeport", "plain")
TARGETS = {"median": 35.0, "least": 25.0}  # dB in w8a16


@dataclass(frozen=True)
class Outcome:
    """What became of one arm: operators per unit, SQNR in the emulator, seconds, or the failure."""

    npu: int | None = None
    cpu: int | None = None
    sqnr_db: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def run(results: Results, full: bool) -> None:
    """Adds every model in every setting: both arms, where the plain path has it."""
    for precision in SETTINGS:
        for name, source in MODELS.items():
            group = f"{name} {precision}"
            if results.finished(group):
                continue
            print(f"running {group}", file=sys.stderr, flush=True)
            with scratch_directory() as work:
                ours = _told(partial(_edgeport, source, precision, work, results.budget))
                rows = _rows(group, EDGEPORT, ours)
                if precision in PRECISIONS:
                    plain = _told(partial(_plain, source, precision, work, results.budget))
                    rows += _rows(group, PLAIN, plain)
            parameters = {"model": name, "precision": precision, "source": source}
            told = environment(2)
            results.add(
                [
                    replace(row, parameters=parameters, budget=results.budget, environment=told)
                    for row in rows
                ]
            )


def _told(arm: Callable[[], Outcome]) -> Outcome:
    """Returns the arm's outcome; what the libraries of the plain path raise is its failure."""
    try:
        return arm()
    except EdgeportError as error:
        return Outcome(failure=str(error).partition("; what it printed")[0][:200])
    except Exception as error:  # torch's exporter and onnxruntime's quantizer share no class
        line = next(iter(str(error).splitlines()), "")
        return Outcome(failure=f"{type(error).__name__}: {line}"[:200])


def _edgeport(source: str, precision: str, work: Path, budget: str) -> Outcome:
    import edgeport

    exported = edgeport.export(
        source,
        output_dir=work / EDGEPORT,
        cache_dir=work / "cache",
        device=DEVICE,
        target_runtimes=["qnn_context_binary"],
        calib_samples=CALIBRATION[budget],
        parity_samples=SAMPLES[budget],
        timeout_s=LIMITS.seconds,
        memory_gib=LIMITS.memory_bytes / 2**30,
        **SETTINGS[precision],
    )
    placement = exported.manifest["placement"][NPU]
    emulated = exported.artifact("run", NPU)
    seconds = {artifact.stage: artifact.seconds for artifact in exported.artifacts}
    return Outcome(placement["npu"], placement["cpu"], emulated.parity[0].value, seconds)


def _plain(source: str, precision: str, work: Path, budget: str) -> Outcome:
    from edgeport.capture import run_module
    from edgeport.feeds import calibration_feeds, parity_feeds
    from edgeport.flow import feed_plan
    from edgeport.plan import make_plan
    from edgeport.runtimes.qnn_context_binary import compiler_options
    from edgeport.sources import build

    plan = make_plan(
        source,
        output_dir=work / PLAIN,
        device=DEVICE,
        precision=precision,
        calib_samples=CALIBRATION[budget],
        parity_samples=SAMPLES[budget],
    )
    built = build(plan.source, plan.seed)
    module = built.module
    feeds = replace(feed_plan(plan), specs=built.inputs, integer_ranges=built.integer_ranges)
    held_out = parity_feeds(feeds)
    references = run_module(module, held_out)
    seconds: dict[str, float] = {}
    model = work / "plain.onnx"
    with _timed(seconds, "capture"):
        zoo_plain.export_plain(module, held_out[0], model)
    if precision != "float":
        with _timed(seconds, "quantize"):
            quantized = work / "plain_quantized.onnx"
            zoo_plain.quantize_plain(model, quantized, precision, calibration_feeds(feeds))
            model = quantized
    provider = compiler_options(plan.device.values, plan.precision)
    told, actual = zoo_plain.place_and_run(model, work, provider, held_out, LIMITS)
    seconds.update(lower=told["compile_s"], run=told["run_s"])
    worst = min(
        compare.sqnr_db(expected, array)
        for reference, outputs in zip(references, actual, strict=True)
        for expected, array in zip(reference, outputs.values(), strict=True)
    )
    return Outcome(told["npu"], told["cpu"], worst, seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _rows(group: str, arm: str, outcome: Outcome) -> list[Row]:
    """Returns one row a metric; a failed arm has the reason in place of each value."""
    measured: tuple[tuple[str, float | None, str, Provenance], ...] = (
        ("npu_nodes", outcome.npu, "1", "host"),
        ("cpu_nodes", outcome.cpu, "1", "host"),
        ("sqnr_db", outcome.sqnr_db, "dB", "emulated"),
    )
    rows = [
        Row(SUITE, group, arm, metric, value, unit, where, note=outcome.failure)
        for metric, value, unit, where in measured
    ]
    # What the emulator takes says nothing about a phone, and is left out.
    stages = {k: v for k, v in outcome.seconds.items() if not k.startswith("run")}
    rows += [Row(SUITE, group, arm, f"{stage}_s", value, "s") for stage, value in stages.items()]
    return rows


def tables(results: Results) -> str:
    """Returns the nodes on the CPU and the SQNR of both arms, the seconds, and the targets."""
    sections = [
        _section(results, "Operators on the CPU", "cpu_nodes", "{:.0f}"),
        _section(results, "SQNR in the emulator against torch, dB", "sqnr_db", "{:.1f}"),
        _seconds(results),
        "### Targets\n\n" + "\n".join(_targets(results)),
        "### What failed\n\n" + ("\n".join(_failures(results)) or "nothing"),
    ]
    return "\n\n".join(sections)


def _section(results: Results, title: str, metric: str, form: str) -> str:
    columns = [*((p, arm) for p in PRECISIONS for arm in ARMS), (MIXED, EDGEPORT)]
    header = ["model", *(f"{precision}, {arm}" for precision, arm in columns)]
    lines = [
        [name, *(_cell(results, metric, arm, name, p, form) for p, arm in columns)]
        for name in MODELS
    ]
    return f"### {title}\n\n{markdown(header, lines)}"


def _cell(results: Results, metric: str, arm: str, name: str, precision: str, form: str) -> str:
    rows = results.find(metric, arm, model=name, precision=precision)
    if not rows:
        return NOT_RUN
    return "failed" if rows[-1].value is None else form.format(rows[-1].value)


def _seconds(results: Results) -> str:
    stages = ("capture", "passes", "quantize", "lower")
    lines = [
        [name, *(_cell(results, f"{s}_s", EDGEPORT, name, "w8a16", "{:.1f}") for s in stages)]
        for name in MODELS
    ]
    title = "### Seconds of each stage, edgeport in w8a16 (host)"
    return f"{title}\n\n{markdown(['model', *stages], lines)}"


def _targets(results: Results) -> list[str]:
    lines = []
    for precision in ("float", "w8a16"):
        found = results.find("cpu_nodes", EDGEPORT, precision=precision)
        whole = sum(row.value == 0 for row in found)
        held = "held" if whole == len(MODELS) else "missed"
        lines.append(f"- {precision}, no operator on the CPU: {whole} of {len(MODELS)} ({held})")
    for setting, arm in (("w8a16", EDGEPORT), (MIXED, EDGEPORT), ("w8a16", PLAIN)):
        rows = results.find("sqnr_db", arm, precision=setting)
        values = [row.value for row in rows if row.value is not None]
        told = f"- {setting}, {arm}, SQNR of {len(values)} of {len(MODELS)} models"
        if not values:
            lines.append(told)
            continue
        for what, value in (("median", statistics.median(values)), ("least", min(values))):
            held = value >= TARGETS[what] and len(values) == len(MODELS)
            told += f"; {what} {value:.1f} dB, target {TARGETS[what]:.0f}"
            told += f" ({'held' if held else 'missed'})"
        lines.append(told)
    return lines


def _failures(results: Results) -> list[str]:
    return [
        f"- {row.parameters['model']} {row.parameters['precision']}, {row.arm}: {row.note}"
        for row in results.find("cpu_nodes")
        if row.value is None
    ]
