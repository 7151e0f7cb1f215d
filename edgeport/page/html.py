"""The page as one HTML file: no script, no network, no other file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import resources

import edgeport
from edgeport.errors import InputError
from edgeport.page import charts, tables
from edgeport.page.data import ExportPage, PageData
from edgeport.page.series import Comparison


@dataclass(frozen=True)
class Latency:
    """A comparison with its two drawings."""

    data: Comparison
    samples: charts.Chart
    ratio: charts.Chart | None


@dataclass(frozen=True)
class Drawn:
    """The charts of one export; `key` begins the ids of its sections."""

    key: str
    page: ExportPage
    parity: charts.Chart | None
    latencies: tuple[Latency, ...]
    layers: charts.Chart | None


def html_page(data: PageData) -> str:
    """Returns the whole page; raises InputError with the install line where a package is missing.

    Every name in it is escaped: manifests come from elsewhere.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'edgeport report needs {", ".join(missing)}: pip install "edgeport[report]"'
        )
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = Markup  # only for what charts.py drew
    text = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    bench = None if data.bench is None else _latency(data.bench, "bench")
    return environment.from_string(text).render(
        data=data,
        exports=[_drawn(page, f"e{place}") for place, page in enumerate(data.exports, 1)],
        bench=bench,
        t=tables,
        version=edgeport.__version__,
    )


def _drawn(page: ExportPage, key: str) -> Drawn:
    parity = (
        charts.parity_chart(page.parity, page.tolerance_db, f"{key}-p") if page.parity else None
    )
    latencies = tuple(
        _latency(one, f"{key}-l{place}") for place, one in enumerate(page.comparisons)
    )
    layers = charts.layer_chart(page.layers, f"{key}-y") if page.layers else None
    return Drawn(key, page, parity, latencies, layers)


def _latency(one: Comparison, name: str) -> Latency:
    return Latency(one, charts.latency_chart(one, name), charts.ratio_chart(one, f"{name}r"))
