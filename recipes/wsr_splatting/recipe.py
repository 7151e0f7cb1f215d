"""Declares the recipe; imports nothing heavy."""

from __future__ import annotations

from types import MappingProxyType

from edgeport.types import Claim, Option, Recipe, TensorSpec


def inputs(**_others: object) -> tuple[TensorSpec, ...]:
    """Returns the camera: its view matrix, world to camera; the graph keeps its intrinsics."""
    return (TensorSpec("view", "float32", (4, 4)),)


RECIPE = Recipe(
    name="wsr_splatting",
    title="Gaussian splatting without a sort: a weighted sum in place of alpha blending",
    paper="WSR, arXiv 2410.18931, ICLR 2025",
    variants=MappingProxyType(
        {
            "sorted": "edgeport_recipes.wsr_splatting.graph:sorted_blend",
            "dir": "edgeport_recipes.wsr_splatting.graph:dir_sum",
            "exp": "edgeport_recipes.wsr_splatting.graph:exp_sum",
            "lc": "edgeport_recipes.wsr_splatting.graph:lc_sum",
        }
    ),
    default_variant="lc",
    baseline="sorted",
    inputs=inputs,
    calibration="edgeport_recipes.wsr_splatting.graph:views",
    exporter="edgeport_recipes.wsr_splatting.exporter:export_scene",
    options=(
        Option(
            "scene",
            "generated",
            "what train.py wrote, a .ply or .splat file; or generated",
            path=True,
        ),
        Option("iterations", 300, "of the training, in the browser's folder of scene generated"),
        Option("splats", 1024, "of the scene in a tensor graph, at most: those that cover most"),
        Option("width", 48, "pixels of a tensor graph's image; the height follows the camera"),
    ),
    comparisons=(("one frame as a tensor graph", MappingProxyType({})),),
    check=MappingProxyType({"device": "browser"}),
    claims=(
        Claim("sqnr_db:webgpu", ">=", 40.0, ("host", "device"), "the torch renderer's images"),
        Claim(
            "psnr_loss_db:lc",
            "<=",
            1.5,
            ("host",),
            "beside alpha blending, in the generated room; the paper loses 0.02 dB on Mip-NeRF360, "
            "and the fox's photographs are in benchmarks/README.md",
        ),
        Claim(
            "speedup:one frame as a tensor graph",
            ">=",
            1.2,
            ("host",),
            "no sort and no running product, in onnxruntime; the paper has no figure for it",
        ),
        Claim(
            "speedup:webgpu", ">=", 1.0, ("host",), "on the adapter here, perhaps a software one"
        ),
        Claim(
            "speedup:webgpu",
            ">=",
            1.23,
            ("device",),
            "the paper's average on a Snapdragon 8 Gen 3; only a phone's GPU can hold or refute it",
        ),
    ),
    tolerance_db=MappingProxyType({"float": 40.0}),
)
