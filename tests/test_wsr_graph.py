"""The renderer as a tensor graph, against the renderer that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edgeport_recipes.wsr_splatting import graph
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.splats import RULES, Rule
from edgeport_recipes.wsr_splatting.trained import starting

from edgeport.capture import capture_module
from edgeport.catalog import shipped_recipes
from edgeport.errors import InputError

RECIPE = shipped_recipes()["wsr_splatting"]
ALL = {"scene": "generated", "splats": 10_000, "width": 48}


@pytest.mark.parametrize("rule", RULES)
def test_the_graph_gives_the_renderers_image(rule: Rule) -> None:
    scene = starting(0)
    splats, blend = scene.of(rule)
    camera = graph.resized(scene.cameras[3], 48)
    with torch.no_grad():
        image = graph.build(rule, 0, **ALL)(camera.view)
        wanted = render(splats, blend, camera.view, camera.intrinsics, camera.size)
    assert image.shape == (1, 3, 36, 48)
    torch.testing.assert_close(image[0].permute(1, 2, 0), wanted, rtol=0, atol=2e-5)
    assert wanted.std() > 0.05  # there is something to see


def test_the_rewrite_takes_sort_gather_and_running_product_out_of_the_graph() -> None:
    view = {"view": starting(0).cameras[0].view.numpy()}
    small = {"scene": "generated", "splats": 64, "width": 16}
    graphs = {
        rule: list(capture_module(graph.build(rule, 0, **small), view).graph)
        for rule in ("sorted", "lc")
    }
    kinds = {rule: {node.op_type for node in nodes} for rule, nodes in graphs.items()}
    assert {"TopK", "CumSum"} <= kinds["sorted"]
    assert not {"TopK", "CumSum", "ScatterND", "Loop"} & kinds["lc"]
    assert {"MatMul", "Div"} <= kinds["lc"]
    assert any(map(gathers_by_data, graphs["sorted"]))
    assert not any(map(gathers_by_data, graphs["lc"]))  # what is left takes a fixed row


def gathers_by_data(node: Any) -> bool:
    """Returns whether the node picks what an input decides, as the order of a sort does."""
    if not node.op_type.startswith("Gather"):
        return False
    indices = node.inputs[1]
    maker = indices.producer()
    return indices.const_value is None and (maker is None or maker.op_type != "Constant")


def test_fewer_splats_are_those_that_cover_most() -> None:
    splats, _ = starting(0).of("sorted")
    wide = splats.map(lambda values: values.clone())
    wide.log_scales[7] += 3
    kept = graph.most_opaque(wide, 5)
    assert kept.count == 5
    assert (kept.positions == wide.positions[7]).all(1).any()


def test_views_follow_the_seed() -> None:
    (spec,) = RECIPE.inputs()
    one, other = graph.views([spec], 3, 0), graph.views([spec], 3, 1)
    assert all((a["view"] == b["view"]).all() for a, b in zip(one, graph.views([spec], 3, 0)))
    assert not any((a["view"] == b["view"]).all() for a, b in zip(one, other))


@pytest.mark.parametrize("changed", [{"splats": 0}, {"width": 0}, {"scene": "nowhere"}])
def test_options_of_which_nothing_can_be_built(changed: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        graph.build("lc", 0, **{**ALL, **changed})
    assert "\n" not in str(caught.value)
