"""`edgeport doctor SOURCE`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeport.cli.export import show_progress
from edgeport.cli.options import (
    SourceCommand,
    make_request,
    quantization_options,
    source_options,
    target_options,
)
from edgeport.descriptors import redirected

if TYPE_CHECKING:
    from rich.table import Table

    from edgeport.diagnosis import Diagnosis, GraphDiagnosis
    from edgeport.numerics import ClassResult


_ENDINGS = {
    "signal": "CRASHES",
    "timeout": "DOES NOT END",
    "memory": "RUNS OUT OF MEMORY",
    "exit": "FAILS",
}


class _Share(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A share in percent, with or without its sign: 100%, 99.5."""

    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        try:
            share = float(str(value).rstrip("% "))
        except ValueError:
            self.fail(f"{value!r} is no share; write 100% or 99.5%", param, ctx)
        if not 0 <= share <= 100:
            self.fail(f"{value!r}: a share lies between 0% and 100%", param, ctx)
        return share / 100


@click.command("doctor", cls=SourceCommand)
@source_options
@target_options
@quantization_options
@click.option(
    "--require-npu",
    type=_Share(),
    metavar="PERCENT",
    help="Exit 1 unless this share of MACs is on the NPU after the passes, with right numbers;"
    " at 100% no operator may be on the CPU.",
)
@click.option(
    "--numerics/--no-numerics",
    default=True,
    show_default=True,
    help="Run one operator of each class, and the whole graph, in the NPU's emulator.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Directory for doctor.json, and repro.onnx of a crash; without it nothing is written.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Every node, and the validator's own words and codes."
)
def doctor(
    source: str,
    require_npu: float | None,
    as_json: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Say where every operator of SOURCE runs on a device, why, and what fixes it.

    SOURCE is what `edgeport export` takes. Exits with 1 where --require-npu is given and not held.
    """
    from edgeport.doctor import examine, report

    started = time.monotonic()
    # stdout is for the result alone, whatever a model's code or a library prints.
    with show_progress() as progress, redirected(1, 2):
        found = examine(**make_request(source, flags), progress=progress)
    short = found.shortfalls(require_npu) if require_npu is not None else ()
    if as_json:
        table = {**report(found), "require_npu": require_npu, "shortfalls": list(short)}
        click.echo(json.dumps(table, indent=2, allow_nan=False))
    else:
        _show(found, verbose, flags["output_dir"])
        seconds = time.monotonic() - started
        asked = (
            ""
            if require_npu is None
            else f"--require-npu {require_npu:.6%}: ".replace(".000000%", "%")
        )
        verdict = "held" if not short else f"NOT held: {'; '.join(short)}"
        click.echo(f"{asked + verdict + ', ' if asked else ''}examined in {seconds:.1f} s")
    if short:
        raise click.exceptions.Exit(1)


def _show(found: Diagnosis, verbose: bool, output_dir: Path | None) -> None:
    from rich.console import Console

    from edgeport.diagnosis import causes

    # Wide enough that a table in a pipe or a log file is never cut.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    click.echo(f"{found.source} on {found.device} ({found.chipset}), {found.precision}")
    for graph in (found.passed, found.captured):
        click.echo(_summary(graph))
    click.echo(numbers_line(found))
    if told := causes(found):
        console.print(_cause_table(told))
    twice = found.captured.reduced == found.passed.reduced
    for graph in (found.passed,) if twice else (found.captured, found.passed):
        for line in _crash_lines(graph, found, output_dir):
            click.echo(line)
    for one in found.wrong:
        click.echo(_wrong_line(one))
    applied = [f"{name} {count}" for name, count in found.passes if count]
    click.echo(f"passes: {', '.join(applied) or 'nothing to do'}")
    for note in (*found.notes, *found.warnings):
        click.echo(f"note: {note}")
    if verbose:
        for line in _verbose_lines(found):
            click.echo(line)


def _summary(graph: GraphDiagnosis) -> str:
    """Returns one graph in a line: operators a unit, share of MACs, breaks and what they move."""
    if graph.crash:
        return f"{graph.stage}: THE COMPILER {_ENDINGS[graph.crash.reason]}: {graph.crash.what}"
    if graph.failure:
        return f"{graph.stage}: NOTHING COMPILES: {graph.failure}"
    moved = sum(one.bytes_in + one.bytes_out for one in graph.breaks)
    breaks = f"{len(graph.breaks)} graph break{'' if len(graph.breaks) == 1 else 's'}"
    if graph.breaks:
        each = _size(moved / len(graph.breaks))
        breaks += f" ({_size(moved)} moved a run, {each} each; {graph.npu_partitions} NPU graphs)"
    share = f"{graph.npu_share:.2%} of {_count(graph.macs)} MACs on the NPU"
    return f"npu {graph.npu_ops} ops  cpu {graph.cpu_ops} ops  {share}  {breaks}  [{graph.stage}]"


def numbers_line(found: Diagnosis) -> str:
    """Returns how right the numbers are, in a line."""
    failure = f" ({found.emulator_failure})" if found.emulator_failure else ""
    if not found.classes and found.sqnr_db is None:
        return f"numerics: not compared{failure}"
    right = sum(one.status == "right" for one in found.classes)
    skipped = sum(one.status == "not compared" for one in found.classes)
    parts = [f"{right} of {len(found.classes)} operator classes right in the emulator"]
    if found.wrong:
        parts.append(f"{len(found.wrong)} WRONG")
    if skipped:
        parts.append(f"{skipped} not compared")
    if found.emulator_failure:
        parts.append(f"THE WHOLE GRAPH FAILS IN THE EMULATOR: {found.emulator_failure}")
    if found.wrong_as_a_whole:
        parts.append(
            f"THE WHOLE GRAPH IS WRONG ON THE NPU: {found.sqnr_db:.1f} dB from the reference,"
            f" {found.host_sqnr_db:.1f} dB on the host; a fusion or a shape is to blame"
        )
    elif found.sqnr_db is not None:
        parts.append(f"the whole graph {found.sqnr_db:.1f} dB from the reference")
    return f"numerics: {', '.join(parts)}"


def _cause_table(told: Any) -> Table:
    from rich.table import Table

    table = Table("captured", "after", "op", "why it is on the CPU", "fix", "applied by edgeport")
    for cause in told:
        by = ", ".join(cause.applied_by) or "the passes"
        applied = "no" if cause.passed >= cause.captured else by
        if 0 < cause.passed < cause.captured:
            applied += " (in part)"
        counts = (str(cause.captured), str(cause.passed))
        table.add_row(*counts, cause.op, cause.reason, cause.fix, applied)
    return table


def _crash_lines(graph: GraphDiagnosis, found: Diagnosis, output_dir: Path | None) -> Iterator[str]:
    """Yields what is known of a crash: the smallest part, the fix, and whether a pass avoids it."""
    from edgeport.doctor import REDUCE_SECONDS, REDUCE_TRIALS

    if graph.reduced is None:
        return
    small = graph.reduced
    least = "the smallest part" if small.minimal else "the smallest part found within the budget"
    names = ", ".join(f"{op} {name}" for op, name in small.nodes[:8])
    more = f" and {len(small.nodes) - 8} more" if len(small.nodes) > 8 else ""
    yield (
        f"{graph.stage}, {least} that does it has {len(small.nodes)} of {small.total} operators"
        f" ({small.trials} trials of at most {REDUCE_TRIALS}, {small.seconds:g} s of at most"
        f" {REDUCE_SECONDS:g}): {names}{more}"
    )
    if graph.crash and graph.crash.last_line:
        yield f"  it says: {graph.crash.last_line}"
    yield f"  fix: {small.fix}"
    avoided = not (found.passed.crash or found.passed.failure)
    if graph is found.captured and avoided:
        by = small.applied_by or "edgeport's passes"
        yield f"  applied by edgeport: yes, {by}: the graph after the passes compiles"
    else:
        yield "  applied by edgeport: no"
    where = f"{output_dir}/repro.onnx" if output_dir else "run again with -o DIR to keep it"
    yield f"  repro: {where}"


def _wrong_line(one: ClassResult) -> str:
    from edgeport.fixes import find_fix

    fix = find_fix("wrong", one.op, one.signature)
    what = one.note if one.status == "crashed" else f"{one.sqnr_db:.1f} dB against the host"
    return (
        f"WRONG NUMBERS: {one.op} ({one.signature}), {one.nodes} nodes, such as {one.node}: {what};"
        f" fix: {fix}"
    )


def _verbose_lines(found: Diagnosis) -> Iterator[str]:
    for graph in (found.captured, found.passed):
        yield f"{graph.stage}:"
        for node in graph.nodes:
            line = f"  {node.unit}  {node.op:22} {_count(node.macs):>8} MACs  {node.node}"
            yield f"{line}  {node.reason} [{node.raw}]" if node.unit == "cpu" else line
        for one in graph.breaks:
            sizes = f"{_size(one.bytes_in)} in, {_size(one.bytes_out)} out"
            yield f"  break: {sizes}: {', '.join(one.nodes)}"
    for result in found.classes:
        value = "-" if result.sqnr_db is None else f"{result.sqnr_db:.1f} dB"
        note = f"  {result.note}" if result.note else ""
        yield (
            f"  {result.status:12} {value:>9}  {result.op} ({result.signature})"
            f" x {result.nodes}, {result.node}{note}"
        )


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _count(macs: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if macs >= limit:
            return f"{macs / limit:.2f} {unit}"
    return str(macs)
