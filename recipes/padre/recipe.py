"""Declares the recipe; imports nothing heavy."""

from __future__ import annotations

from types import MappingProxyType

from edgeport_recipes._shared.vision.weights import UNTRAINED
from edgeport_recipes.padre.claims import CLAIMS

from edgeport.types import Option, Recipe, TensorSpec


def inputs(
    grid: int = 14,
    dim: int = 192,
    part: str = "net",
    trained: str = UNTRAINED,
    **_others: object,
) -> tuple[TensorSpec, ...]:
    """Returns the input of the whole net (an image) or of one block (its features)."""
    if trained != UNTRAINED:  # train.py's nets are small
        return (TensorSpec("image", "float32", (1, 3, 32, 32)),)
    if part == "block":
        return (TensorSpec("x", "float32", (1, dim, grid, grid)),)
    return (TensorSpec("image", "float32", (1, 3, 16 * grid, 16 * grid)),)


RECIPE = Recipe(
    name="padre",
    title="Polynomial mixing in place of attention, in a vision transformer shaped as DeiT-Tiny",
    paper="PADRe, arXiv 2407.11306, ICLR 2025",
    variants=MappingProxyType(
        {
            "attention": "edgeport_recipes.padre.model:attention",
            "padre2": "edgeport_recipes.padre.model:padre2",
            "padre3": "edgeport_recipes.padre.model:padre3",
        }
    ),
    default_variant="padre3",
    baseline="attention",
    inputs=inputs,
    calibration="edgeport_recipes.padre.trained:feeds",
    options=(
        Option("grid", 14, "patches along each side, 14 to 128; the image has 16 pixels a patch"),
        Option("dim", 192, "channels"),
        Option("depth", 12, "transformer blocks"),
        Option("heads", 3, "attention heads of the baseline; they divide dim"),
        Option("kernel", 11, "side of PADRe's token-mixing convolution, odd"),
        Option("classes", 1000, "logits"),
        Option("part", "net", "the whole net, or one transformer block", ("net", "block")),
        Option("trained", UNTRAINED, "shapes or boxes, ours, or a file of train.py", path=True),
    ),
    comparisons=(
        ("the net as exported", MappingProxyType({})),
        (
            "one block, 4,096 tokens",
            MappingProxyType({"part": "block", "grid": 64, "trained": UNTRAINED}),
        ),
    ),
    check=MappingProxyType({"device": "s24", "precision": "w8a16"}),
    claims=CLAIMS,
    evaluate="edgeport_recipes.padre.evaluate:measure",
    tolerance_db=MappingProxyType({"float": 40.0, "w8a16": 30.0, "w8a8": 15.0}),
)
