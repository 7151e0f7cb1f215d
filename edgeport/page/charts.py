"""Charts as inline SVG: text stays text, and colours are the page's, so that dark mode works.

Each is drawn for a wide screen and for a phone: scaled text would be too large or too small.
"""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgeport.page.data import LayerRow, ParityRow
from edgeport.page.series import Comparison, Series, decibels
from edgeport.page.tables import layer_time_ms, quartiles
from edgeport.types import Provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 680, 320  # pixels at full size
_ROW, _FOOT, _PANEL = 42, 46, 124  # pixels: a row with its label above it, an axis, a panel
_LETTER = 6.8  # pixels of a letter's width, about
# Colours that nothing else has, each in place of one of the page's variables.
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--first",
    "#050505": "--second",
    "#060606": "--bad",
}
INK, MUTED, LINE, FIRST, SECOND, BAD = _VARIABLES
_MARKERS: dict[Provenance, str] = {"device": "s", "host": "o", "emulated": "D", "modelled": "^"}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeport",  # the same page from the same input
    "text.parse_math": False,  # a node's name may hold dollars
    "font.size": 12.0,
    "font.family": ["sans-serif"],
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Chart:
    """One chart at two widths; `label` is for those who do not see it."""

    label: str
    wide: str
    narrow: str


def parity_chart(rows: Sequence[ParityRow], tolerance_db: float | None, name: str) -> Chart:
    """Returns a bar a stage, as long as its SQNR; the marker at its end shows where it ran."""
    shown = [row for row in rows if not math.isnan(row.sqnr_db)]
    finite = [row.sqnr_db for row in shown if math.isfinite(row.sqnr_db)]
    longest = max([*finite, tolerance_db or 0.0, 1.0]) * 1.05

    def draw(figure: Figure) -> None:
        axes = _row_axes(figure, len(shown), "SQNR in dB")
        for place, row in enumerate(shown):
            value = min(max(row.sqnr_db, 0.0), longest)
            below = tolerance_db is not None and row.sqnr_db < tolerance_db
            colour = BAD if below else FIRST
            axes.plot([0, value], [place, place], color=colour, lw=5, solid_capstyle="butt")
            axes.plot([value], [place], _MARKERS[row.provenance], color=colour, markersize=9)
            _label(axes, place, f"{row.label} ({row.provenance})", decibels(row.sqnr_db))
            if tolerance_db is not None and row.stage == "run":
                axes.plot([tolerance_db] * 2, [place - 0.14, place + 0.3], color=INK, lw=2)
        axes.set_xlim(0, longest)

    label = f"SQNR of {len(shown)} stages, a bar each; the table below has the numbers"
    return _chart(draw, name, label, len(shown) * _ROW + _FOOT)


def latency_chart(one: Comparison, name: str) -> Chart:
    """Returns every sample of every arm, the middle half as a bar, the median as a line."""

    def draw(figure: Figure) -> None:
        axes = _row_axes(figure, len(one.series), "ms per call")
        axes.margins(x=0.04)
        for place, arm in enumerate(one.series):
            _distribution(axes, place, arm, (FIRST, SECOND)[min(place, 1)])
            _label(axes, place, f"{arm.name} ({arm.provenance})", f"median {arm.median_ms:.2f} ms")

    label = f"Latency, {one.title}: samples of {len(one.series)} arms; the table has the quartiles"
    return _chart(draw, name, label, len(one.series) * _ROW + _FOOT)


def _distribution(axes: Axes, place: int, arm: Series, colour: str) -> None:
    jitter = random.Random(0)
    heights = [place + jitter.uniform(-0.12, 0.12) for _ in arm.samples_ms]
    axes.plot(arm.samples_ms, heights, "o", color=colour, markersize=5, alpha=0.75, mew=0)
    axes.plot(
        quartiles(arm.samples_ms),
        [place, place],
        color=colour,
        lw=13,
        alpha=0.28,
        solid_capstyle="butt",
    )
    middle = arm.median_ms
    axes.plot([middle, middle], [place - 0.2, place + 0.2], color=INK, lw=2)


def ratio_chart(one: Comparison, name: str) -> Chart | None:
    """Returns each ratio with its interval, on a logarithmic axis around 1; None without any.

    The noise floor, where it was learned, is a band around 1.
    """
    rows = one.standings
    if not rows:
        return None
    reach = 1.2 * max(1.5, *(max(row.speed.high, 1 / row.speed.low) for row in rows))

    def draw(figure: Figure) -> None:
        axes = _row_axes(
            figure, len(rows), f"times the speed of {shortened(rows[0].base, 18)}, 95 % interval"
        )
        axes.set_xscale("log")
        for place, row in enumerate(rows):
            colour = {"faster": FIRST, "slower": BAD, "inconclusive": MUTED}[row.verdict]
            speed = row.speed
            if row.floor:
                ends = [1 / (1 + row.floor), 1 + row.floor]
                axes.fill_between(ends, place - 0.22, place + 0.22, color=LINE, lw=0)
            axes.plot([1, 1], [place - 0.22, place + 0.22], color=INK, lw=1.5)
            axes.plot([speed.low, speed.high], [place] * 2, color=colour, lw=5)
            axes.plot([speed.value], [place], "o", color=colour, markersize=8)
            _label(axes, place, f"{row.name}: {row.verdict}", f"{speed.value:.2f}x")
        axes.set_xlim(1 / reach, reach)
        ticks = [tick for tick in _RATIO_TICKS if 1 / reach <= tick <= reach]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()

    label = f"{one.title}: {len(rows)} ratios with their intervals; the sentences above have them"
    return _chart(draw, name, label, len(rows) * _ROW + _FOOT)


_RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 5, 10, 20, 50, 100)


def layer_chart(layers: Sequence[LayerRow], name: str) -> Chart:
    """Returns time and SQNR of each layer in the order of the graph, those that are known."""
    both = {
        "ms": [layer_time_ms(one) for one in layers],
        "SQNR in dB": [one.sqnr_db for one in layers],
    }
    panels = [(what, values) for what, values in both.items() if any(v is not None for v in values)]
    height = len(panels) * _PANEL + _FOOT

    def draw(figure: Figure) -> None:
        width = figure.get_figwidth() * 72
        for place, (what, values) in enumerate(panels):
            bottom = _FOOT + _PANEL * (len(panels) - 1 - place)
            axes = figure.add_axes(
                (44 / width, bottom / height, 1 - 52 / width, (_PANEL - 30) / height)
            )
            _bare(axes)
            known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
            axes.vlines(
                [i for i, _ in known], 0, [v for _, v in known], (FIRST, SECOND)[place], lw=2
            )
            axes.set_xlim(-1, len(values))
            axes.set_ylim(bottom=0)
            axes.tick_params(labelbottom=place == len(panels) - 1)
            axes.set_title(what, loc="left", fontsize=12, color=MUTED)
        axes.set_xlabel("layer, in the order of the graph")

    label = f"{' and '.join(what for what, _ in panels)} of {len(layers)} layers"
    return _chart(draw, name, label, height)


# What all of them share


def _row_axes(figure: Figure, rows: int, axis: str) -> Axes:
    """Returns axes over the whole figure with a row for each of `rows`, the first on top."""
    height = figure.get_figheight() * 72
    axes = figure.add_axes((0.01, (_FOOT - 2) / height, 0.97, 1 - (_FOOT - 2) / height))
    _bare(axes)
    axes.set_ylim(rows - 0.62, -0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis)
    return axes


def _bare(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, place: int, left: str, right: str, colour: str = INK) -> None:
    """Writes above a row, from the two edges of the axes; a long name loses its middle."""
    where = axes.get_yaxis_transform()
    figure = axes.get_figure(root=True)
    assert figure is not None
    left = shortened(left, int(figure.get_figwidth() * 72 / _LETTER) - len(right) - 3)
    axes.text(0, place - 0.28, left, transform=where, va="bottom", color=colour)
    axes.text(1, place - 0.28, right, transform=where, va="bottom", ha="right", color=colour)


def shortened(words: str, letters: int) -> str:
    """Returns words of at most so many letters; what is left out is in the middle."""
    if len(words) <= letters:
        return words
    end = max(letters // 2, 1)
    return f"{words[: max(letters - end - 1, 1)]}…{words[-end:]}"


def _chart(draw: Callable[[Figure], None], name: str, label: str, height: int) -> Chart:
    wide, narrow = (_svg(draw, f"{name}-{width}", width, height) for width in (WIDE, NARROW))
    return Chart(label, wide, narrow)


def _svg(draw: Callable[[Figure], None], name: str, width: int, height: int) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    written = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(width / 72, height / 72))
        draw(figure)
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _embedded(written.getvalue(), name, width, height)


def _embedded(svg: bytes, name: str, width: int, height: int) -> str:
    """Returns the drawing for a page: ids of its own, colours as variables, hidden from readers.

    What is drawn is said by the label around it and by the table below.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)  # noqa: S314  matplotlib wrote it
    for defs in root.findall(f"{{{_SVG}}}defs"):  # a style for the whole page, which has its own
        root.remove(defs)
    root.attrib = {"viewBox": f"0 0 {width} {height}", "width": str(width), "aria-hidden": "true"}
    for element in root.iter():
        _rename(element, name)
        if "style" in element.attrib:
            for colour, variable in _VARIABLES.items():
                style = element.attrib["style"].replace(colour, f"var({variable})")
                element.attrib["style"] = style.replace("12px sans-serif", "12px var(--font)")
    return ElementTree.tostring(root, encoding="unicode")


def _rename(element: ElementTree.Element, name: str) -> None:
    """Makes an element's id, and what it refers to, different from those of other drawings."""
    if "id" in element.attrib:
        element.attrib["id"] = f"{name}-{element.attrib['id']}"
    if _LINK in element.attrib:  # without its namespace, which HTML does not read
        element.attrib["href"] = element.attrib.pop(_LINK).replace("#", f"#{name}-")
    if "clip-path" in element.attrib:
        element.attrib["clip-path"] = element.attrib["clip-path"].replace("#", f"#{name}-")
