"""The tables of suite `vit`, with what the papers state beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks import vit_distil, vit_latency
from benchmarks.tables import NOT_RUN, Results, Row, markdown
from benchmarks.vit_runs import PADRE, PADRE_CONTROLS, TOSA, TOSA_CONTROLS

WORDS = {
    "attention": "softmax attention (baseline)",
    "padre2": "PADRe-2",
    "padre3": "PADRe-3",
    "convolutions": "PADRe-3's convolutions, no product",
    "attention_conv": "attention and one depthwise convolution",
    "padre3_kernel1": "PADRe-3 with kernel 1",
    "none": "no mixing of tokens",
    "full_longer": "every token through every layer, trained as long (baseline)",
    "full": "the same before fine-tuning, from which all arms start",
    "tosa": "ToSA: the selector's tokens",
    "copy": "control: the scores of the layer before",
    "random": "control: random tokens",
    "drop": "rival: dropped for good, features of then",
    "merge": "rival: merged by their keys, as ToMe does",
}
TASKS = {
    "cifar10": "CIFAR-10, top-1",
    "shapes": "generated outlines, top-1",
    "boxes": "generated boxes, average precision at IoU 0.5",
    "rooms": "generated rooms, depth: AbsRel (less is better)",
}
METRICS = {"cifar10": "top1", "shapes": "top1", "boxes": "ap50", "rooms": "absrel"}
PAPERS = (
    "The papers, on ImageNet: PADRe says accuracy comparable to attention's or better in"
    " classification, 2-D and 3-D detection, and visibly better for small networks; ToSA says"
    " accuracy is kept while compute falls significantly, and that depth on NYU Depth v2 is similar"
    " with a considerably lighter backbone. No cell of their tables is confirmed by a source here."
)


def tables(results: Results) -> str:
    """Returns accuracy, distillation, quantization and latency."""
    parts = [PAPERS, "A cell is the mean over the seeds, with the least and the most."]
    for recipe, tasks, arms in (
        ("padre", ("cifar10", "shapes", "boxes"), (*PADRE, *PADRE_CONTROLS)),
        ("tosa", ("cifar10", "rooms", "shapes"), (*TOSA, *TOSA_CONTROLS)),
    ):
        for task in tasks:
            header = (f"{recipe}: {TASKS[task]}", "score", "to the baseline, points")
            more = ("parameters",) if recipe == "padre" else ("MACs saved",)
            rows = list(_accuracy(results, recipe, task, arms, more[0]))
            parts += [_budget(results, recipe, task), markdown((*header, *more, "seeds"), rows)]
    parts.append(markdown(_OVERLAP, _overlaps(results)))
    parts.append(vit_distil.tables(results))
    parts.append(markdown(_QUANTIZED, _quantized(results)))
    parts.append(vit_latency.tables(results))
    return "\n\n".join(parts)


# Accuracy


def _accuracy(
    results: Results, recipe: str, task: str, arms: Sequence[str], more: str
) -> Iterator[Sequence[str]]:
    for arm in arms:
        rows = results.find(METRICS[task], arm, recipe=recipe, task=task)
        name = {"parameters": "parameters", "MACs saved": "macs_saving"}[more]
        known = results.find(name, arm, recipe=recipe, task=task)
        seeds = str(len(rows)) if rows else NOT_RUN
        yield WORDS[arm], _spread(rows), _difference(results, recipe, task, arm), _one(known), seeds


def _spread(rows: Sequence[Row]) -> str:
    values = [row.value for row in rows if row.value is not None]
    if not values:
        return NOT_RUN
    text = f"{statistics.fmean(values):.4f}"
    return text if len(values) == 1 else f"{text} ({min(values):.4f} to {max(values):.4f})"


def _difference(results: Results, recipe: str, task: str, arm: str) -> str:
    """Returns the difference in points, its interval over images, and each seed's; in percent of
    the baseline for an error."""
    rows = results.find("difference", arm, recipe=recipe, task=task)
    if not rows or rows[-1].value is None or rows[-1].interval is None:
        return "-"
    scale, unit = 100.0, ""
    if METRICS[task] == "absrel":
        full = results.find("absrel", rows[-1].parameters["baseline"], recipe=recipe, task=task)
        scale, unit = 100.0 / statistics.fmean(row.value or 0.0 for row in full), " %"
    value, (low, high) = rows[-1].value * scale, (one * scale for one in rows[-1].interval)
    seeds = ", ".join(f"{one * scale:+.1f}" for one in rows[-1].samples)
    each = f"; seeds {seeds}" if len(rows[-1].samples) > 1 else ""
    return f"{value:+.1f}{unit} ({low:+.1f} to {high:+.1f}{each})"


def _one(rows: Sequence[Row]) -> str:
    if not rows or rows[0].value is None:
        return "-"
    value = rows[0].value
    return f"{value:.1%}" if abs(value) < 1 else f"{value:,.0f}"


def _budget(results: Results, recipe: str, task: str) -> str:
    rows = results.find(METRICS[task], recipe=recipe, task=task)
    if not rows:
        return f"{recipe}, {TASKS[task]}: {NOT_RUN}."
    told = rows[0].parameters["budget"]
    stages = told.values() if all(isinstance(one, dict) for one in told.values()) else (told,)
    text = ", then ".join(f"{one['epochs']} epochs at {one['rate']:g}" for one in stages)
    longer = [row.parameters["budget"] for row in results.find(METRICS[task], "tosa", task=task)]
    if recipe == "tosa" and longer:
        text += "; then " + ", then ".join(
            f"{stage} {one['epochs']} epochs at {one['rate']:g}" for stage, one in longer[0].items()
        )
    return f"{recipe}, {TASKS[task]}: {text}; batches of {next(iter(stages))['batch']}."


_OVERLAP = (
    "share of the K tokens that the next layer attends to most",
    "the selector's",
    "copied from the layer before",
    "random",
    "seeds",
)


def _overlaps(results: Results) -> Iterator[Sequence[str]]:
    for task in ("cifar10", "rooms", "shapes"):
        for stage, words in (("selector", ""), ("tune", ", fine-tuned")):
            found = [
                results.find(f"overlap after {stage}:{name}", "tosa", task=task)
                for name in ("selector", "copy", "random")
            ]
            cells = [_spread(rows) for rows in found]
            yield f"{task}{words}", *cells, str(len(found[0])) if found[0] else NOT_RUN


# Quantization

_QUANTIZED = (
    "top-1 on CIFAR-10, seed 0",
    "precision",
    "1,000 images: before",
    "quantized",
    "lost, points",
    "64 images: before",
    "NPU (emulated)",
    "nodes on the CPU",
)


def _quantized(results: Results) -> Iterator[Sequence[str]]:
    for recipe, arm in (
        ("padre", "attention"), ("padre", "padre2"), ("padre", "padre3"),
        ("tosa", "full"), ("tosa", "topk"), ("tosa", "onehot"),
    ):  # fmt: skip
        for precision in ("float", "w8a16", "w8a8"):
            rows = results.find("top1", arm, recipe=recipe, precision=precision)
            counts = sorted({row.parameters["images"] for row in rows})
            many, few = (
                {row.parameters["stage"]: row for row in rows if row.parameters["images"] == count}
                for count in (counts[-1:] + counts[:1] if counts else (0, 0))
            )
            cpu = results.find("cpu_ops", arm, recipe=recipe, precision=precision)
            yield (
                f"{recipe} {arm}",
                precision,
                _share(many.get("passes")),
                "-" if precision == "float" else _share(many.get("quantize")),
                "-" if precision == "float" else _lost(many.get("quantize")),
                _share(few.get("passes")),
                _share(few.get("qnn_context_binary")),
                f"{cpu[-1].value:.0f}" if cpu and cpu[-1].value is not None else NOT_RUN,
            )


def _share(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    if row.value is None:
        return row.note
    return f"{row.value:.1%}"


def _lost(row: Row | None) -> str:
    if row is None or row.parameters.get("drop") is None:
        return NOT_RUN
    text = f"{100 * row.parameters['drop']:+.1f}"
    if (between := row.parameters.get("drop_interval")) is None:
        return text
    return f"{text} ({100 * between[0]:+.1f} to {100 * between[1]:+.1f})"
