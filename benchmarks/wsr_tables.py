"""The tables of suite `wsr`, with the paper's figures beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.tables import NOT_RUN, Results, Row, cell, markdown, number

ARMS = ("sorted", "lc", "exp", "dir", "lc, one opacity for all views")
_PAPER = {
    "sorted": "27.21 / 0.815",
    "lc": "27.19 / 0.804",
    "exp": "26.97 / -",
    "dir": "25.99 / -",
    "lc, one opacity for all views": "25.88 / -",
}
"""PSNR and SSIM on Mip-NeRF360: arXiv 2410.18931, table 1 and its ablations."""
_PAPER_FRAMES = (
    "The paper (Snapdragon 8 Gen 3, Vulkan, 1920x1080, scenes of 2.9 M and 4.0 M splats): 1.23x on"
    " average over its own sorted renderer, counter 34.06 and 42.25 ms, kitchen 74.47 and 74.56,"
    " train 53.13 and 52.48; memory 63 % of the sorted one's, of which 17 points for the sort."
)

_BOTH = ("sorted", "sort_free")
_FRAMES = (
    "splats",
    "frame",
    "sorted ms",
    "sort-free ms",
    "speedup",
    "before drawing: sorted",
    "sort-free",
    "sorted MB",
    "sort-free MB",
    "overdraw: sorted",
    "sort-free",
)
_PRUNED = (
    "of the fox's splats kept",
    "sorted dB",
    "LC dB",
    "sorted ms",
    "sort-free ms",
    "speedup",
)


def tables(results: Results) -> str:
    """Returns quality, the cost of a training step, and frames."""
    parts = []
    for scene in ("fox", "generated"):
        rows = list(_quality(results, scene))
        header = (
            f"{scene}: trained with",
            "PSNR dB",
            "to sorted",
            "SSIM",
            "splats",
            "largest change at 0.2 degrees",
            "largest jump",
            "seeds",
            "paper, Mip-NeRF360",
        )
        parts += [_budget(results, scene), markdown(header, rows)]
    parts.append(markdown(("a training step (fox)", "ms"), _steps(results)))
    parts.append(markdown(_FRAMES, _frames(results)))
    parts.append(markdown(_PRUNED, _pruned(results)))
    parts.append(_PAPER_FRAMES)
    return "\n\n".join(parts)


def _budget(results: Results, scene: str) -> str:
    found = results.find("psnr_db", scene=scene)
    if not found:
        return f"{scene}: {NOT_RUN}."
    told = found[0].parameters
    return (
        f"{scene}: {told['iterations']} iterations at {told['size'][0]}x{told['size'][1]},"
        f" {len(found[0].samples)} held-out views (every 8th), the same for each arm."
        " A cell is the mean over seeds, with the least and the most."
    )


def _quality(results: Results, scene: str) -> Iterator[Sequence[str]]:
    reference = {row.parameters["seed"]: row.value for row in _of(results, scene, ARMS[0])}
    for arm in ARMS:
        rows = _of(results, scene, arm)
        if not rows:
            yield (arm, *[NOT_RUN] * 7, _PAPER[arm])
            continue
        losses = [
            row.value - reference[row.parameters["seed"]]
            for row in rows
            if row.value is not None and reference.get(row.parameters["seed"]) is not None
        ]
        values = [
            _spread([row.value for row in results.find(metric, arm, scene=scene)])
            for metric in ("ssim", "splats", "popping_change", "popping_jump")
        ]
        yield (
            arm,
            _spread([row.value for row in rows]),
            _spread(losses, sign=True),
            *values,
            str(len(rows)),
            _PAPER[arm],
        )


def _of(results: Results, scene: str, arm: str) -> list[Row]:
    return results.find("psnr_db", arm, scene=scene)


def _spread(values: Sequence[float | None], *, sign: bool = False) -> str:
    """Returns the mean with the least and the most, where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return NOT_RUN
    shown = [f"{value:+.2f}" if sign else _short(value) for value in known]
    mean = statistics.fmean(known)
    text = f"{mean:+.2f}" if sign else _short(mean)
    if len(known) == 1 or min(known) == max(known):
        return text
    least, most = shown[known.index(min(known))], shown[known.index(max(known))]
    return f"{text} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _steps(results: Results) -> Iterator[Sequence[str]]:
    for rule in ("sorted", "lc", "exp", "dir"):
        rows = [row for row in results.rows if (row.group, row.arm) == ("step", rule)]
        yield rule, cell(rows[0] if rows else None)


def _frames(results: Results) -> Iterator[Sequence[str]]:
    for group in _frame_groups(results):
        found = _found(results, group)
        counts = [found[arm, "latency_ms"].parameters["splats"] for arm in _BOTH]
        what = f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} and {counts[1]:,}"
        name = group.removeprefix("frames ").rsplit(" ", 1)[0].rstrip(",")
        yield (
            f"{what} ({name if name.startswith('fox') else 'garden'})",
            group.rsplit(" ", 1)[1],
            *(cell(found[arm, "latency_ms"]) for arm in _BOTH),
            cell(found["sort_free", "speedup"], "x"),
            *(_before_drawing(found.get((arm, "before_drawing_ms"))) for arm in _BOTH),
            *(number((found[arm, "bytes"].value or 0) / 1e6) for arm in _BOTH),
            *(number(found[arm, "overdraw"].value or 0) for arm in _BOTH),
        )


def _before_drawing(row: Row | None) -> str:
    """Returns the time of the compute passes; a program that projects as it draws has none."""
    return "none" if row is None else cell(row)


def _pruned(results: Results) -> Iterator[Sequence[str]]:
    for group in _frame_groups(results):
        found = _found(results, group)
        if group.endswith(" 512x512") and ("sorted", "psnr_kept_db") in found and "," not in group:
            kept = [found[arm, "psnr_kept_db"] for arm in _BOTH]
            yield (
                f"{kept[0].parameters['kept']:.0%}",
                *(f"{one.value:.2f}" for one in kept if one.value is not None),
                *(cell(found[arm, "latency_ms"]) for arm in _BOTH),
                cell(found["sort_free", "speedup"], "x"),
            )


def _frame_groups(results: Results) -> list[str]:
    groups = dict.fromkeys(row.group for row in results.rows if row.group.startswith("frames "))
    return list(groups)


def _found(results: Results, group: str) -> dict[tuple[str, str], Row]:
    return {(row.arm, row.metric): row for row in results.rows if row.group == group}
