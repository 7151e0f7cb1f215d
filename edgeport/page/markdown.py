"""The page's content as markdown, for a pull request or a wiki."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeport.page import tables
from edgeport.page.data import ExportPage, PageData
from edgeport.page.placement import Placement
from edgeport.page.series import Comparison, Figure
from edgeport.page.tables import Table

_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_LETTERS = {"npu": "N", "gpu": "G", "cpu": "C"}
_LINE = 64  # operators in a line of the map


def markdown_page(data: PageData) -> str:
    """Returns the whole page; whatever comes from a manifest is escaped."""
    parts = ["# edgeport report", *(f"> {_text(note)}" for note in data.notes)]
    if len(data.exports) > 1:
        parts.append(_table(tables.summary_table(data.exports)))
    for page in data.exports:
        parts.extend(_export(page))
    if data.bench is not None:
        parts += [f"## {_text(data.bench.title)}", *_latency(data.bench)]
        parts += _figures(data.bench_figures)
    return "\n\n".join(parts) + "\n"


def _export(page: ExportPage) -> Iterator[str]:
    yield f"## {_text(tables.export_title(page))}"
    yield _list(f"{term}: {words}" for term, words in tables.facts(page))
    yield f"**{tables.MARKS[page.fits]} {_text(tables.fit_sentence(page))}**"
    yield _list(f"{one.what}: {one.reason} ({one.fits})" for one in page.reasons)
    yield _list(f"{one.what}: {one.figure} ({one.detail})" for one in tables.cards(page))
    yield "### Placement"
    for placement in page.placements:
        yield from _placement(placement)
    if not page.placements:
        yield "No runtime of this export reports where its operators land."
    yield "### Parity"
    yield _table(tables.parity_table(page.parity))
    yield "### Latency"
    for comparison in page.comparisons:
        yield f"#### {_text(tables.capitalised(comparison.title))}"
        yield from _latency(comparison)
    if not page.comparisons:
        yield "Nothing was timed: an emulator's times mean nothing and are not shown."
    yield from _figures(page.figures)
    if page.layers:
        yield "### Layers"
        yield tables.layer_sentence(page.layers)
        yield from map(_table, tables.layer_tables(page.layers))
    yield "### Size and memory"
    yield _list(tables.memory_lines(page.memory))
    yield _table(tables.file_table(page))
    yield "### Claims"
    yield _table(tables.claim_table(page.claims)) if page.claims else _text(tables.no_claims(page))
    if page.notes:
        yield "### Notes of the export"
        yield _list(page.notes)


def _placement(one: Placement) -> Iterator[str]:
    yield f"#### {_text(' and '.join(one.runtimes))}"
    counts = ", ".join(f"{unit.upper()} {count}" for unit, count in one.counts.items())
    yield f"{counts}; a letter an operator, in the order of the runtime's report:"
    letters = "".join(_LETTERS[node.unit] for node in one.nodes)
    lines = [letters[start : start + _LINE] for start in range(0, len(letters), _LINE)]
    yield "\n".join(("```text", *lines, "```"))
    if one.leftovers:
        yield _table(tables.leftover_table(one))


def _latency(one: Comparison) -> Iterator[str]:
    for standing in one.standings:
        yield _text(tables.standing_sentence(standing))
    yield _table(tables.latency_table(one))
    if one.conditions:
        yield f"Measured on: {_text(one.conditions)}."
    if one.notes:
        yield _list(f"{note}." for note in one.notes)
    if one.warnings:
        yield _list(f"Warning. {warning}." for warning in one.warnings)


def _figures(figures: tuple[Figure, ...]) -> Iterator[str]:
    if figures:
        yield _table(tables.figure_table(figures))


def _table(one: Table) -> str:
    marks = ["---:" if place in one.numeric else "---" for place in range(len(one.head))]
    rows = [one.head, *one.rows]
    lines = [f"| {' | '.join(map(_text, row))} |" for row in rows]
    return "\n".join(
        [f"{_text(one.caption)}:", "", lines[0], f"| {' | '.join(marks)} |", *lines[1:]]
    )


def _list(lines: Iterator[str] | tuple[str, ...]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _text(words: str) -> str:
    """Returns words that markdown and the HTML within it show as they are, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(words.split())).replace("&", "&amp;")
