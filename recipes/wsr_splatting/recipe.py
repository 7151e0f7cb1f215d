"""Declares the recipe; imports nothing heavy."""

from __future__ import annotations

from types import MappingProxyType

from edgeport.types import Option, Recipe, TensorSpec


def inputs(**_others: object) -> tuple[TensorSpec, ...]:
    """Returns the camera that the graph renders: its view matrix and its intrinsics."""
    return (
        TensorSpec("view", "float32", (4, 4)),
        TensorSpec("intrinsics", "float32", (4,)),
    )


RECIPE = Recipe(
    name="wsr_splatting",
    title="Gaussian splatting without a sort: a weighted sum in place of alpha blending",
    paper="WSR, arXiv 2410.18931, ICLR 2025",
    variants=MappingProxyType(
        {
            "sorted": "edgeport_recipes.wsr_splatting.graph:sorted_blend",
            "lc": "edgeport_recipes.wsr_splatting.graph:lc",
        }
    ),
    default_variant="lc",
    baseline="sorted",
    inputs=inputs,
    calibration="edgeport_recipes.wsr_splatting.graph:cameras",
    options=(Option("scene", "generated", "what train.py wrote, a .ply or .splat file"),),
)
