"""Creates timm models by name, with the input that their configuration states."""

from __future__ import annotations

from typing import Any

from edgeport.catalog import Source
from edgeport.errors import InputError, UnknownName
from edgeport.sources import Built
from edgeport.sources.torchvision_operators import import_torchvision
from edgeport.types import TensorSpec

INPUT = "image"


def create_timm(source: Source) -> Built:
    """Returns the model with random weights, or with --pretrained those timm publishes.

    The input is `image` at the size in the model's configuration; another --input size or number
    of channels is passed to models that are built for one. Raises UnknownName or InputError.
    """
    import_torchvision()
    import timm

    name = source.attribute
    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models())
    settings = {} if not source.inputs else _settings(source, name)
    try:
        model = timm.create_model(name, pretrained=source.pretrained, **settings)
    except Exception as error:  # timm's models check their settings with classes of their own
        line = next(iter(str(error).splitlines()), "")
        raise InputError(f"{source.text} raised {type(error).__name__}: {line}") from error
    default = (1, *model.pretrained_cfg["input_size"])
    inputs = source.inputs or (TensorSpec(INPUT, "float32", default),)
    return Built(model, inputs, random=not source.pretrained)


def _settings(source: Source, name: str) -> dict[str, Any]:
    """Returns what the model is created with to take the given input."""
    import timm

    (spec, *more) = source.inputs
    if more or len(spec.shape) != 4:
        raise InputError(
            f"{source.text} takes one image: --input {INPUT}:float32[1,3,H,W], not"
            f" {', '.join(map(str, source.inputs))}"
        )
    config = timm.get_pretrained_cfg(name)
    expected = tuple(config.input_size) if config is not None else (3, 224, 224)
    settings: dict[str, Any] = {}
    if spec.shape[1] != expected[0]:
        settings["in_chans"] = spec.shape[1]
    if spec.shape[2:] != expected[1:] and config is not None and config.fixed_input_size:
        settings["img_size"] = spec.shape[2:]
    return settings
