"""The inputs of a transformers model, from its config and the arguments of its forward."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from edgeport.catalog import Source
from edgeport.errors import UnknownName
from edgeport.types import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

TOKENS = 64
IMAGE_SIZE = 224  # where the config states none
AUDIO_SAMPLES = 16_000  # a second


def default_inputs(model: nn.Module, config: Any, source: Source) -> tuple[TensorSpec, ...]:
    """Returns the inputs in the order of the model's arguments; --input replaces or adds by name.

    Token ids and their masks are as long as the ids given. Raises UnknownName for an input that
    the model has not.
    """
    arguments = list(inspect.signature(model.forward).parameters)
    given = {spec.name: spec for spec in source.inputs}
    for name in given:
        if name not in arguments:
            tensors = [argument for argument in arguments if argument not in ("kwargs", "labels")]
            raise UnknownName(f"input of {source.text}", name, tensors)
    ids = given.get("input_ids")
    tokens = ids.shape if ids is not None else (1, _token_count(config))
    main = getattr(model, "main_input_name", "input_ids")
    makers = {
        "input_ids": lambda: TensorSpec("input_ids", "int64", tokens),
        "attention_mask": lambda: TensorSpec("attention_mask", "int64", tokens),
        "decoder_input_ids": lambda: TensorSpec("decoder_input_ids", "int64", tokens),
        "pixel_values": lambda: _pixels(config),
        "input_values": lambda: _audio(config),
        "input_features": lambda: _spectrogram(config),
    }
    wanted = _wanted(main, config, arguments)
    if not wanted and not given:
        wanted = {main}
    specs = {name: makers[name]() for name in wanted if name in makers and name not in given}
    specs.update(given)
    return tuple(specs[name] for name in arguments if name in specs)


def _wanted(main: str, config: Any, arguments: Sequence[str]) -> set[str]:
    wanted = {main}
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        wanted |= {"input_ids", "pixel_values"}
    if "input_ids" in wanted:
        wanted.add("attention_mask")
    if config.is_encoder_decoder:
        wanted.add("decoder_input_ids")
    return wanted & set(arguments)


def vocabulary(config: Any, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """Returns the range of token ids, below the vocabulary's size."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    names = {"input_ids", "decoder_input_ids"} & {spec.name for spec in inputs}
    return {name: (0, int(size)) for name in names} if size else {}


def _token_count(config: Any) -> int:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(TOKENS, longest) if isinstance(longest, int) and longest > 0 else TOKENS


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def _pixels(config: Any) -> TensorSpec:
    """Returns an image, or a clip of frames, at the size in the config."""
    vision = _vision(config)
    size = getattr(vision, "image_size", None) or IMAGE_SIZE
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    frames = getattr(vision, "num_frames", None)
    clip = (frames,) if isinstance(frames, int) else ()
    channels = getattr(vision, "num_channels", None) or 3
    return TensorSpec("pixel_values", "float32", (1, *clip, channels, height, width))


def _audio(config: Any) -> TensorSpec:
    """Returns a second of samples, or a spectrogram where the config counts mel bins."""
    bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
    shape = (1, length, bins) if bins and length else (1, AUDIO_SAMPLES)
    return TensorSpec("input_values", "float32", shape)


def _spectrogram(config: Any) -> TensorSpec:
    bins = getattr(config, "num_mel_bins", None) or 80
    frames = 2 * getattr(config, "max_source_positions", 500)  # the first convolutions halve it
    return TensorSpec("input_features", "float32", (1, bins, frames))
