"""`edgeport passes [NAME]`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgeport.errors import UnknownName

if TYPE_CHECKING:
    from edgeport.passes import Pass


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def passes(name: str | None, as_json: bool) -> None:
    """List the exact graph rewrites; with a NAME, show its example before and after.

    NAME is the pass's name or its function's.
    """
    from edgeport.passes import all_passes

    rows = [_row(one) for one in all_passes()]
    if name is None:
        click.echo(json.dumps(rows, indent=2) if as_json else _listing(rows))
        return
    one = _find(name)
    before, after, count = _example(one)
    row = {**_row(one), "before": before, "after": after, "count": count}
    click.echo(json.dumps(row, indent=2) if as_json else _shown(row))


def _find(name: str) -> Pass:
    from edgeport.passes import all_passes, module_of

    by_name = {module_of(one).NAME: one for one in all_passes()}
    by_function = {one.__name__: one for one in all_passes()}
    if (found := by_name.get(name) or by_function.get(name)) is None:
        raise UnknownName("pass", name, by_name, by_function)
    return found


def _row(one: Pass) -> dict[str, Any]:
    from edgeport.passes import module_of, targets_of

    module = module_of(one)
    sentence = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
    return {
        "name": module.NAME,
        "function": one.__name__,
        "does": sentence,
        "targets": list(targets_of(one)),
    }


def _example(one: Pass) -> tuple[str, str, int]:
    """Returns the pass's example as ONNX text before and after it, and its count."""
    import onnx
    import onnx_ir as ir

    from edgeport.passes import module_of

    model = onnx.parser.parse_model(module_of(one).EXAMPLE)
    before = onnx.printer.to_text(model)
    result = one(ir.from_proto(model))
    after = ir.to_proto(result.model)
    del after.graph.value_info[:]  # the text would list each constant twice
    return before, onnx.printer.to_text(after), result.count


def _listing(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        wide = "any" in row["targets"]
        lines.append(f"{row['name']}  ({'any target' if wide else ', '.join(row['targets'])})")
        lines.append(f"    {row['does']}")
    return "\n".join(lines)


def _shown(row: dict[str, Any]) -> str:
    return "\n".join(
        (_listing([row]), "\nbefore", row["before"], f"after ({row['count']})", row["after"])
    )
