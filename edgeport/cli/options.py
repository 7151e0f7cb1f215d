"""The options that every command on a source, or for a target, takes; and recipes' own flags.

@click.command("doctor", cls=SourceCommand)
@source_options
@target_options
def doctor(source, **flags):
    request = make_request(source, flags)       # what plan.make_plan takes
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeport.errors import InputError
from edgeport.types import CONVERTER_PRECISIONS, PRECISIONS, Option, Recipe

if TYPE_CHECKING:
    from edgeport.runtimes.worker import Limits

Function = TypeVar("Function", bound=Callable[..., Any])


class SourceCommand(click.Command):
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
        if recipe is not None:
            self._check_names(ctx, recipe)
            ctx.meta["recipe_options"] = recipe.options
        return super().parse_args(ctx, args)

    def _check_names(self, ctx: click.Context, recipe: Recipe) -> None:
        """Raises InputError where a recipe's option would hide another flag."""
        params = super().get_params(ctx)
        taken = {name for one in params for name in (*one.opts, *one.secondary_opts)}
        for option in recipe.options:
            if (flag := _flag_name(option)) in taken:
                raise InputError(
                    f"recipe {recipe.name}: its option {option.name!r} is the flag {flag}, which"
                    f" `edgeport {self.name}` has already; rename the option"
                )
            taken.add(flag)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        extra = [_flag(option) for option in ctx.meta.get("recipe_options", ())]
        return [*super().get_params(ctx), *extra]


def _flag(option: Option) -> click.Option:
    kind: Any = click.Choice(option.choices) if option.choices else type(option.default)
    return click.Option(
        [_flag_name(option), f"option_{option.name}"],
        type=kind,
        default=option.default,
        show_default=True,
        help=f"[recipe] {option.help}",
    )


def _flag_name(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def source_options(command: Function) -> Function:
    """Adds SOURCE and what says which weights and inputs it has."""
    return _added(
        command,
        click.argument("source"),
        click.option("--variant", help="Variant of a recipe (edgeport list recipes)."),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            help="name:float32[1,3,32,32]: a factory's input; elsewhere in place of the default.",
        ),
        click.option(
            "--weights",
            type=click.Path(path_type=Path),
            help="A module's .safetensors or torch file of tensors.",
        ),
        click.option(
            "--pretrained", is_flag=True, help="Download the weights of a timm or hf model."
        ),
        click.option(
            "--offline", is_flag=True, help="Refuse the network while the model is built."
        ),
        click.option(
            "--seed", default=0, show_default=True, help="Seed of random weights and inputs."
        ),
    )


def target_options(command: Function) -> Function:
    """Adds the device, the precision, and the limits of the vendor's tools."""
    return _added(
        limit_options(command),
        click.option("--device", help="Target device by name or alias (edgeport list devices)."),
        click.option("--chipset", help="Target chipset, in place of --device."),
        click.option(
            "--precision",
            help=f"{' | '.join([*PRECISIONS, 'auto'])}; with tflite or executorch also"
            f" {' | '.join(CONVERTER_PRECISIONS)}. Default: float; a file with QuantizeLinear"
            " and DequantizeLinear pairs is kept in its own precision.",
        ),
    )


def limit_options(command: Function) -> Function:
    """Adds the limits of one child process; `limits_of` makes them one value."""
    return _added(
        command,
        click.option(
            "--timeout", default=900.0, show_default=True, help="Seconds for one vendor step."
        ),
        click.option("--memory", default=16.0, show_default=True, help="GiB for one vendor step."),
    )


def limits_of(timeout: float, memory: float) -> Limits:
    """Returns the limits that the flags give; raises InputError for what is no amount."""
    from edgeport.plan import check_amounts
    from edgeport.runtimes.worker import Limits

    check_amounts({"--timeout": timeout, "--memory": memory})
    return Limits(timeout, int(memory * 2**30))


def quantization_options(command: Function) -> Function:
    """Adds on what the model is calibrated, and how ranges follow."""
    return _added(
        command,
        click.option(
            "--calibration",
            default="minmax",
            show_default=True,
            help="How ranges follow from values: minmax | percentile | mse | entropy.",
        ),
        click.option(
            "--calib-data",
            type=click.Path(path_type=Path),
            help="Folder of images or arrays, or one .npz. Images become RGB in 0..1 at the"
            " input's size.",
        ),
        click.option(
            "--calib-samples", default=32, show_default=True, help="Most samples to calibrate on."
        ),
    )


def _added(command: Function, *options: Callable[[Function], Function]) -> Function:
    for option in reversed(options):  # the first is shown first
        command = option(command)
    return command


def make_request(source: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags under `plan.make_plan`'s names, with the recipe's options in one dict."""
    request: dict[str, Any] = {"source": source, "options": {}}
    names = {"timeout": "timeout_s", "memory": "memory_gib"}
    for name, value in flags.items():
        if name.startswith("option_"):
            request["options"][name.removeprefix("option_")] = value
        else:
            request[names.get(name, name)] = value
    return request
