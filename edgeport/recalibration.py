"""The calibration inputs of an export once more, for a place that quantizes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeport.boundary import Boundary
from edgeport.catalog import Source, find_source
from edgeport.errors import InputError
from edgeport.feeds import FeedPlan, calibration_feeds
from edgeport.runtimes.samples import save_samples
from edgeport.types import TensorSpec


def write_calibration(
    directory: Path, manifest: Mapping[str, Any], data: Path | None, target: Path
) -> Path:
    """Writes the inputs that the export in `directory` was calibrated on; returns `target`.

    `data` is the user's, where the export used any: the manifest has only its name. Raises
    InputError where it is missing, and for an export whose inputs are integers.
    """
    options = manifest["options"]
    if options["quantize_io"]:
        raise InputError(
            f"{directory} has integer inputs and outputs, which only our own quantizer makes:"
            " export it without --quantize-io"
        )
    if options["calib_data"] and data is None:
        raise InputError(
            f"{directory} was calibrated on {options['calib_data']}: name it with --calib-data"
        )
    plan = _feed_plan(directory, manifest, data)
    save_samples(target, list(calibration_feeds(plan)))
    return target


def _feed_plan(directory: Path, manifest: Mapping[str, Any], data: Path | None) -> FeedPlan:
    from edgeport.capture import load_onnx
    from edgeport.sources.onnx_file import lookup_ranges

    options = manifest["options"]
    folded = {name: tuple(value) for name, value in options["boundary"].items()}
    boundary = Boundary(**folded)
    outer = [
        TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in manifest["inputs"]
    ]
    return FeedPlan(
        source=_source(manifest["source"]),
        specs=tuple(_inner(spec, boundary) for spec in outer),
        seed=options["seed"],
        parity_samples=options["parity_samples"],
        calibration_samples=options["calib_samples"],
        data=data,
        integer_ranges=lookup_ranges(load_onnx(directory / "model.onnx")),
        boundary=boundary,
    )


def _inner(spec: TensorSpec, boundary: Boundary) -> TensorSpec:
    """Returns what the model takes for what the app gives: channels second."""
    if spec.name not in boundary.channel_last:
        return spec
    batch, *others, channels = spec.shape
    return replace(spec, shape=(batch, channels, *others))


def _source(source: Mapping[str, Any]) -> Source:
    """Returns a recipe, whose own inputs calibrate; of any other source they are random."""
    if source["kind"] == "recipe":
        return find_source(source["name"], variant=source["variant"], options=source["options"])
    return Source(source["kind"], source["name"])
