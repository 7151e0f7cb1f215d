"""Declares the recipe; imports nothing heavy."""

from __future__ import annotations

from types import MappingProxyType

from edgeport_recipes._shared.vision.weights import UNTRAINED
from edgeport_recipes.tosa.claims import CLAIMS
from edgeport_recipes.tosa.configs import Shape, config_of

from edgeport.types import Option, Recipe, TensorSpec


def inputs(
    trained: str = UNTRAINED, ranks: str = "int32", **sizes: int | float | str
) -> tuple[TensorSpec, ...]:
    """Returns the image; the file of trained weights decides its size."""
    shape = Shape(**sizes) if trained == UNTRAINED else config_of(trained).shape
    shape.check()
    side = shape.grid * shape.patch
    return (TensorSpec("image", "float32", (1, 3, side, side)),)


RECIPE = Recipe(
    name="tosa",
    title="Every second layer takes only the tokens that the layer before picks for it",
    paper="ToSA, arXiv 2406.08816, CVPR 2024 workshop",
    variants=MappingProxyType(
        {
            "full": "edgeport_recipes.tosa.model:full",
            "topk": "edgeport_recipes.tosa.model:topk",
            "onehot": "edgeport_recipes.tosa.model:onehot",
        }
    ),
    default_variant="onehot",
    baseline="full",
    inputs=inputs,
    calibration="edgeport_recipes.tosa.trained:feeds",
    options=(
        Option("grid", 14, "patches along each side"),
        Option("dim", 192, "channels"),
        Option("depth", 12, "layers, in pairs of a normal and a selective one"),
        Option("heads", 3, "attention heads; they divide dim"),
        Option("mlp", 4, "times that an MLP is wider inside"),
        Option("patch", 16, "pixels along each side of a patch"),
        Option("keep", 0.5, "share of the tokens that pass a selective layer"),
        Option("outputs", 1000, "values of an image, or of a patch"),
        Option("head", "pooled", "one output an image, or one a patch", ("pooled", "dense")),
        Option("ranks", "int32", "onehot's; float32 for LiteRT's GPU", ("int32", "float32")),
        Option("trained", UNTRAINED, "shapes or rooms, ours, or a file of train.py", path=True),
    ),
    comparisons=(
        ("the net as exported", MappingProxyType({})),
        (
            "one pair of layers, 1,024 tokens",
            MappingProxyType({"grid": 32, "depth": 2, "trained": UNTRAINED}),
        ),
    ),
    check=MappingProxyType({"device": "s24", "precision": "w8a16"}),
    claims=CLAIMS,
    evaluate="edgeport_recipes.tosa.evaluate:measure",
    # A score that is rounded may let another token pass, all of whose features are then others.
    tolerance_db=MappingProxyType({"float": 30.0, "w8a16": 15.0, "w8a8": 15.0}),
)
