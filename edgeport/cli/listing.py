"""`edgeport list recipes|devices|runtimes`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click


@click.command("list")
@click.argument("what", type=click.Choice(["recipes", "devices", "runtimes"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_things(what: str, as_json: bool) -> None:
    """List what edgeport knows: recipes, devices or runtimes, and which of those work here."""
    if what == "runtimes":
        _list_runtimes(as_json)
        return
    tables: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "recipes": _recipes,
        "devices": _devices,
    }
    rows = tables[what]()
    click.echo(json.dumps(rows, indent=2) if as_json else _columns(rows))


def _recipes() -> list[dict[str, Any]]:
    from edgeport.catalog import all_recipes, own_recipes

    own = own_recipes()
    return [
        {
            "name": recipe.name,
            "title": recipe.title,
            "paper": recipe.paper,
            "variants": list(recipe.variants),
            "baseline": recipe.baseline,
            "file": str(own[recipe.name][1]) if recipe.name in own else None,
        }
        for recipe in all_recipes().values()
    ]


def _devices() -> list[dict[str, Any]]:
    from edgeport.devices import all_devices

    return [
        {
            "name": device.name,
            "aliases": list(device.aliases),
            "chipset": device.chipset,
            "htp_arch": device.fact("htp_arch"),
            "soc_model": device.fact("soc_model"),
            "fp16": device.fact("fp16"),
            "runtimes": list(device.runtimes.value),
        }
        for device in all_devices()
    ]


def _list_runtimes(as_json: bool) -> None:
    from edgeport.runtimes.status import statuses

    found = statuses()
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    rows = [
        {
            "name": one.runtime.name,
            "works here": one.works,
            "run here by": one.runs_here,
            "precisions": list(one.runtime.precisions),
            "interpreter": str(one.interpreter) if one.interpreter else "this one",
        }
        for one in found
    ]
    click.echo(_columns(rows))
    for one in found:
        if not one.works:
            lacks = one.problem or f"{', '.join(one.missing)} missing"
            click.echo(f"{one.runtime.name}: {lacks}; to get it: {one.remedy}")


def _columns(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows in aligned columns; rich's tables would double the command's time."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return {None: "-", True: "yes", False: "no"}.get(value, str(value))
