"""`edgeport export SOURCE`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgeport.descriptors import redirected
from edgeport.types import PRECISIONS, Option


class _ExportCommand(click.Command):
    """Adds the options of the recipe that is named as flags: `--grid 28` for padre."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from edgeport.catalog import all_recipes

        takes_value = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        words = [arg for arg, before in zip(args, ["", *args]) if before not in takes_value]
        named = next((word for word in words if word in all_recipes()), None)
        recipe = all_recipes()[named] if named else None
        ctx.meta["recipe_options"] = recipe.options if recipe else ()
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        extra = [_flag(option) for option in ctx.meta.get("recipe_options", ())]
        return [*super().get_params(ctx), *extra]


def _flag(option: Option) -> click.Option:
    kind: Any = click.Choice(option.choices) if option.choices else type(option.default)
    return click.Option(
        [f"--{option.name.replace('_', '-')}", f"option_{option.name}"],
        type=kind,
        default=option.default,
        show_default=True,
        help=f"[recipe] {option.help}",
    )


@click.command("export", cls=_ExportCommand)
@click.argument("source")
@click.option("--device", help="Target device by name or alias (edgeport list devices).")
@click.option("--chipset", help="Target chipset, in place of --device.")
@click.option("--precision", default="float", show_default=True, help=" | ".join(PRECISIONS))
@click.option("--target-runtime", help="Runtimes, comma-separated; default: all the device takes.")
@click.option("--variant", help="Variant of a recipe (edgeport list recipes).")
@click.option(
    "--input", "inputs", multiple=True, help="A factory's input: name:float32[1,3,32,32]."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A factory's .safetensors or .pth."
)
@click.option(
    "--calib-data",
    type=click.Path(path_type=Path),
    help="Folder of images or arrays, or one .npz. Images become RGB in 0..1 at the input's size.",
)
@click.option(
    "--calib-samples", default=32, show_default=True, help="Most samples to calibrate on."
)
@click.option(
    "--parity-samples", default=1, show_default=True, help="Inputs compared at each stage."
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights and inputs.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds for one vendor step.")
@click.option("--memory", default=16.0, show_default=True, help="GiB for one vendor step.")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory to write; replaced whole when it is an earlier export.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything that can be, and say what would run."
)
@click.option("-v", "--verbose", is_flag=True, help="Placement of each node; traceback on failure.")
def export(
    source: str,
    target_runtime: str | None,
    timeout: float,
    memory: float,
    as_json: bool,
    dry_run: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Export SOURCE for a device and compare every stage with the reference.

    SOURCE is a recipe's name, an .onnx file, or path/to/file.py:factory, where the factory is a
    function or class that gives a torch.nn.Module.
    """
    recipe_options = {
        name.removeprefix("option_"): flags.pop(name)
        for name in list(flags)
        if name.startswith("option_")
    }
    request = {
        **flags,
        "source": source,
        "options": recipe_options,
        "target_runtimes": [name.strip() for name in target_runtime.split(",")]
        if target_runtime
        else (),
        "timeout_s": timeout,
        "memory_gib": memory,
    }
    if dry_run:
        _show_plan(request, as_json)
    else:
        _run(request, as_json, verbose)


def _show_plan(request: Mapping[str, Any], as_json: bool) -> None:
    from edgeport.plan import make_plan

    plan = make_plan(**request)
    if as_json:
        click.echo(json.dumps(plan.describe(), indent=2))
        return
    stages = ["capture", "passes", *(["quantize"] if plan.precision != "float" else []), "run"]
    if "qnn_context_binary" in plan.runtimes:
        stages.append("lower and emulate")
    what = _source_text(plan.source.describe())
    click.echo(f"{what} -> {plan.device.name} ({plan.device.chipset}), {plan.precision}")
    click.echo(f"runtimes: {', '.join(plan.runtimes)}; stages: {', '.join(stages)}")
    click.echo(f"would write {plan.output_dir}; nothing was run")


def _source_text(source: Mapping[str, Any]) -> str:
    """Returns the source in words: its name, its variant, its inputs."""
    variant = f" {source['variant']}" if source["variant"] else ""
    inputs = f" {', '.join(source['inputs'])}" if source["inputs"] else ""
    return f"{source['name']}{variant}{inputs}"


def _run(request: Mapping[str, Any], as_json: bool, verbose: bool) -> None:
    from edgeport import pipeline, report

    started = time.monotonic()
    # stdout is for the result alone, whatever a model's code or a library prints.
    with _progress() as progress, redirected(1, 2):
        result = pipeline.export(**request, progress=progress)
    seconds = time.monotonic() - started
    if as_json:
        click.echo(json.dumps(dict(result.manifest), indent=2, allow_nan=False))
        return
    from rich.console import Console

    # Wide enough that a table in a pipe or a log file is never cut.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(report.stage_table(result.artifacts))
    for line in report.summary_lines(result.manifest):
        click.echo(line)
    if verbose:
        for artifact in result.artifacts:
            for node in artifact.nodes:
                click.echo(f"  {node.unit}  {node.op:24} {node.node}")
    steps = f"{result.cached_steps} of {result.steps} steps from the cache"
    click.echo(f"wrote {result.directory} in {seconds:.1f} s ({steps})")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the running step on stderr; nothing when it is no terminal."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda step: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda step: status.update(step)
