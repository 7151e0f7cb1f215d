"""What a page says, as words and tables: the same for HTML and markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgeport.page.data import ExportPage, LayerRow, PageData, ParityRow
from edgeport.page.judged import ClaimRow
from edgeport.page.memory import Memory, megabytes
from edgeport.page.placement import Fits, Placement
from edgeport.page.series import TIMED, Comparison, Figure, Standing, decibels
from edgeport.types import UNITS, NodeReport

_NAMED_NODES = 12  # of a group; manifest.json has all of them
_LAYERS = 10
OUTCOMES = {
    "pass": "holds",
    "fail": "does not hold",
    "missing": "missing: not measured",
    "inconclusive": "inconclusive: within the noise",
    "not judged": "not judged",
}


MARKS: dict[Fits, str] = {
    "fits": "✓",
    "does not fit": "✕",
    "fits in part": "◐",
    "CPU only": "○",
    "not known": "?",
    "failed": "✕",
}


@dataclass(frozen=True)
class Table:
    """A table of text; `numeric` are the columns that line up at their right."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Card:
    """One figure of the summary: what it is, the figure, and what it says; `mood` colours it."""

    what: str
    figure: str
    detail: str
    mood: str = ""


def page_title(data: PageData) -> str:
    """Returns what the window is called."""
    if len(data.exports) == 1:
        return f"{export_title(data.exports[0])} - edgeport report"
    return f"{len(data.exports)} exports - edgeport report"


def export_title(page: ExportPage) -> str:
    """Returns the model, its variant and the device."""
    variant = f" ({page.variant})" if page.variant else ""
    return f"{page.name}{variant} on {page.device}"


def sections(page: ExportPage) -> tuple[tuple[str, str], ...]:
    """Returns the id and the title of each section of an export."""
    layers = (("layers", "Layers"),) if page.layers else ()
    return (
        ("placement", "Placement"),
        ("parity", "Parity"),
        ("latency", "Latency"),
        *layers,
        ("size", "Size and memory"),
        ("claims", "Claims"),
    )


def facts(page: ExportPage) -> tuple[tuple[str, str], ...]:
    """Returns what was exported, for what."""
    return (
        ("Directory", page.directory),
        ("Device", f"{page.device} ({page.chipset})"),
        ("Precision", page.precision),
        ("Runtimes", ", ".join(page.runtimes)),
        ("Inputs", "; ".join(page.inputs)),
        ("Outputs", "; ".join(page.outputs)),
    )


def mood(fits: Fits) -> str:
    """Returns the colour of a verdict on the device, which is said in words as well."""
    return {"fits": "good", "does not fit": "bad", "fits in part": "bad", "failed": "bad"}.get(
        fits, ""
    )


def cell_title(node: NodeReport) -> str:
    """Returns what is known of one operator in one line."""
    told = [
        f"{node.op} {node.node}: {node.unit.upper()}",
        node.reason,
        node.fix and f"fix: {node.fix}",
    ]
    return "; ".join(one for one in told if one)


def legend(one: Placement) -> tuple[tuple[str, bool, str, int], ...]:
    """Returns what the cells of a map mean: the unit, whether they are crossed, words, a count."""
    if one.accelerator is not None:
        crossed = {unit: unit == "cpu" for unit in one.units}
        return tuple((u, crossed[u], u.upper(), count) for u, count in one.counts.items())
    reasons = Counter(node.reason for node in one.nodes).most_common()
    return tuple(
        ("cpu", place > 0, f"CPU, {reason}" if reason else "CPU", count)
        for place, (reason, count) in enumerate(reasons)
    )


def leftover_index(one: Placement) -> dict[int, int]:
    """Returns, for each operator on the CPU by its place in the graph, its row in the table."""
    rows = {(g.op, g.reason, g.fix): place for place, g in enumerate(one.leftovers)}
    cpu = ((i, node) for i, node in enumerate(one.nodes) if node.unit == "cpu")
    return {i: rows[node.op, node.reason, node.fix] for i, node in cpu}


def fit_sentence(page: ExportPage) -> str:
    """Returns the summary of an export in one line."""
    where = page.device
    return {
        "fits": f"Fits {where}",
        "does not fit": f"Does not fit {where}",
        "fits in part": f"Fits {where} in part",
        "failed": f"The export for {where} failed",
        "CPU only": f"Runs on the CPU of {where}: no runtime for its NPU or GPU was made",
        "not known": f"Whether it fits {where} is not known: no runtime reports placement",
    }[page.fits]


def cards(page: ExportPage) -> tuple[Card, ...]:
    """Returns the figures that stand at the top of an export."""
    return (*_placement_cards(page), *_parity_cards(page), *_speed_cards(page))


def _placement_cards(page: ExportPage) -> list[Card]:
    found = []
    ranked = sorted(page.placements, key=lambda one: UNITS.index(one.units[0]))
    for one in ranked[:2]:
        unit = one.accelerator or "cpu"
        total, there = len(one.nodes), one.counts.get(unit, 0)
        mood = "" if unit == "cpu" else "good" if there == total else "bad"
        what = f"ops on the {unit.upper()}"
        found.append(Card(what, f"{there} of {total}", " and ".join(one.runtimes), mood))
    return found


def _parity_cards(page: ExportPage) -> list[Card]:
    ran = [row for row in page.parity if row.stage == "run"] or list(page.parity)
    if not ran:
        return []
    worst = min(ran, key=lambda row: row.sqnr_db)
    detail = f"{worst.runtime or worst.stage}, {worst.provenance}"
    mood = ""
    if page.tolerance_db is not None:
        mood = "good" if worst.sqnr_db >= page.tolerance_db else "bad"
        detail += f"; {page.tolerance_db:g} dB asked for"
    return [Card("worst parity (SQNR)", decibels(worst.sqnr_db), detail, mood)]


def _speed_cards(page: ExportPage) -> list[Card]:
    moods = {"faster": "good", "slower": "bad"}
    return [
        Card(
            f"speed, {one.title}",
            f"{found.speed.value:.2f}x",
            f"{found.verdict}, beside {found.base} ({one.series[0].provenance})",
            moods.get(found.verdict, ""),
        )
        for one in page.comparisons[:2]
        for found in one.standings
    ]


def standing_sentence(one: Standing) -> str:
    """Returns how two arms stand to each other, a loss as plainly as a win."""
    speed = one.speed
    figures = (
        f"{speed.value:.2f} times its speed, 95 % interval {speed.low:.2f} to {speed.high:.2f}"
    )
    if one.verdict == "inconclusive":
        return f"{one.name} beside {one.base} is inconclusive: {figures}."
    return f"{one.name} is {one.verdict} than {one.base}: {figures}."


def summary_table(pages: Sequence[ExportPage]) -> Table:
    """Returns one row an export."""
    rows = []
    for page in pages:
        worst = min((row.sqnr_db for row in page.parity), default=math.nan)
        placed = "; ".join(_unit_counts(one) for one in page.placements) or "-"
        cells = (f"{page.name} {page.variant}".strip(), page.device, page.precision, page.fits)
        rows.append((page.directory, *cells, placed, decibels(worst)))
    head = ("directory", "source", "device", "precision", "fits", "ops", "worst parity")
    return Table("The exports", head, tuple(rows), frozenset({6}))


def _unit_counts(one: Placement) -> str:
    return ", ".join(f"{unit} {count}" for unit, count in one.counts.items())


def leftover_table(one: Placement) -> Table:
    """Returns the operators on the CPU, in groups of the same type, reason and fix."""
    rows = tuple(
        (
            str(len(group.nodes)),
            group.op,
            group.reason or "-",
            group.fix or "-",
            _names(group.nodes),
        )
        for group in one.leftovers
    )
    runtimes = " and ".join(one.runtimes)
    head = ("ops", "type", "reason", "fix", "nodes")
    return Table(f"On the CPU: {runtimes}", head, rows, frozenset({0}))


def _names(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _NAMED_NODES} more" if len(nodes) > _NAMED_NODES else ""
    return ", ".join(nodes[:_NAMED_NODES]) + more


def parity_table(rows: Sequence[ParityRow]) -> Table:
    """Returns a row a stage."""
    cells = tuple(
        (
            row.stage,
            row.runtime or "-",
            row.file,
            row.computed,
            row.provenance,
            decibels(row.sqnr_db),
            "-" if row.max_abs is None else f"{row.max_abs:.3g}",
        )
        for row in rows
    )
    head = ("stage", "runtime", "file", "computed", "where", "SQNR", "max-abs")
    return Table("Distance from the reference", head, cells, frozenset({5, 6}))


def latency_table(one: Comparison) -> Table:
    """Returns the arms of a comparison with their quartiles."""
    rows = []
    for arm in one.series:
        low, high = quartiles(arm.samples_ms)
        spread = f"{low:.2f} to {high:.2f}" if len(arm.samples_ms) > 1 else "-"
        cells = (f"{arm.median_ms:.2f}", spread, str(len(arm.samples_ms)))
        rows.append((arm.name, arm.provenance, *cells))
    head = ("arm", "where", "median ms", "middle half ms", "samples")
    return Table("Latency", head, tuple(rows), frozenset({2, 3, 4}))


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Returns the first and the third quartile, interpolated."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.75)


def figure_table(figures: Sequence[Figure]) -> Table:
    """Returns loads, first inferences, tails and peaks of memory, as they were measured."""
    metrics = list(dict.fromkeys(one.measurement.metric for one in figures))
    values = {
        (one.what, one.measurement.provenance, one.measurement.metric): _value(one)
        for one in figures
    }
    arms = dict.fromkeys((one.what, one.measurement.provenance) for one in figures)
    rows = tuple((*arm, *(values.get((*arm, metric), "-") for metric in metrics)) for arm in arms)
    heads = (metric.removesuffix("_ms").replace("_", " ") for metric in metrics)
    numeric = frozenset(range(2, 2 + len(metrics)))
    return Table("Also measured", ("what", "where", *heads), rows, numeric)


def _value(one: Figure) -> str:
    measured = one.measurement
    if measured.unit == "B":
        return megabytes(measured.value)
    return f"{measured.value:.4g} {measured.unit}"


def layer_time_ms(one: LayerRow) -> float | None:
    """Returns a layer's time; None where none was measured: an emulator's or a model's is none."""
    return one.time_ms if one.provenance in TIMED else None


def layer_tables(layers: Sequence[LayerRow]) -> tuple[Table, ...]:
    """Returns the slowest layers and the noisiest, as far as times and SQNR are known."""
    timed = [one for one in layers if layer_time_ms(one) is not None]
    noisy = [one for one in layers if one.sqnr_db is not None]
    ranked = {
        "slowest": sorted(timed, key=lambda one: -(one.time_ms or 0.0))[:_LAYERS],
        "noisiest": sorted(noisy, key=lambda one: one.sqnr_db or 0.0)[:_LAYERS],
    }
    head = ("layer", "type", "ms", "SQNR", "where")
    return tuple(
        Table(f"The {len(rows)} {what} layers", head, tuple(map(_layer, rows)), frozenset({2, 3}))
        for what, rows in ranked.items()
        if rows
    )


def _layer(one: LayerRow) -> tuple[str, ...]:
    time_ms = layer_time_ms(one)
    return (
        one.node,
        one.op,
        "-" if time_ms is None else f"{time_ms:.3f}",
        "-" if one.sqnr_db is None else decibels(one.sqnr_db),
        one.provenance,
    )


def layer_sentence(layers: Sequence[LayerRow]) -> str:
    """Returns what the times of layers are of, so that nobody takes them for a phone's."""
    where = {one.provenance for one in layers if layer_time_ms(one) is not None}
    if "host" in where:
        return "Times are of this machine's CPU, and say nothing of a phone's or its NPU's."
    return "Times are a device's." if where else "No layer was timed."


def file_table(page: ExportPage) -> Table:
    """Returns the files with their sizes."""
    rows = tuple(
        (
            row.name,
            row.role or "-",
            megabytes(row.bytes),
            "-" if row.share is None else f"{row.share:.0%}",
        )
        for row in page.files
    )
    head = ("file", "what", "size", "of the captured graph")
    return Table("Files", head, rows, frozenset({2, 3}))


def memory_lines(memory: Memory) -> tuple[str, ...]:
    """Returns what is known of memory, and what is not, in sentences."""
    lines = [f"{what}: {megabytes(count)}" for what, count in memory.facts]
    lines += [
        f"activations of {file} at their peak, computed from the graph: {megabytes(count)}"
        for file, count in memory.peaks
    ]
    lines += memory.problems
    if memory.ram_bytes is None:
        lines.append(f"the profile of {memory.device} states no memory: it is not known here")
    return tuple(f"{capitalised(line)}." for line in lines)


def claim_table(rows: Sequence[ClaimRow]) -> Table:
    """Returns the claims with the paper's figure and what became of them."""
    cells = tuple(
        (
            row.metric,
            row.limit,
            row.accepts or "-",
            OUTCOMES[row.outcome],
            row.reason or "-",
            row.why,
        )
        for row in rows
    )
    head = ("metric", "claim", "accepts", "outcome", "found", "the paper, and what it means")
    return Table("Claims", head, cells)


def capitalised(words: str) -> str:
    """Returns words as a heading: the first letter large, the others as they are."""
    return words[:1].upper() + words[1:]


def no_claims(page: ExportPage) -> str:
    """Returns why there is no table of claims."""
    return f"{page.name} declares no claims here, and no verdict about it was given."
