"""The training runs of suite `wsr`: their scenes, budgets and folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeport_recipes.wsr_splatting import scenes
from edgeport_recipes.wsr_splatting.scenes import Scene
from edgeport_recipes.wsr_splatting.splats import Rule

SUITE = "wsr"
WORK = Path(__file__).parent / "results" / "wsr"
FOX = "gs/fox"


@dataclass(frozen=True)
class Training:
    """One run: the scene, the rule, whether opacity depends on the view, and the seed."""

    scene: str
    rule: Rule
    view_opacity: bool
    seed: int

    @property
    def arm(self) -> str:
        return self.rule if self.view_opacity else f"{self.rule}, one opacity for all views"

    @property
    def group(self) -> str:
        return f"train {self.scene} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Budget:
    """What every training of a scene has: the same for all arms."""

    iterations: int
    downscale: int
    max_splats: int


BUDGETS = {"fox": Budget(2000, 4, 50_000), "generated": Budget(2000, 1, 8000)}


def scene_of(name: str, data: Path) -> Scene:
    """Returns the photographs of the fox, a quarter of their width, or the generated scene."""
    source = str(data / FOX) if name == "fox" else name
    return scenes.load(source, BUDGETS[name].downscale, cameras=None, points=None, seed=0)


def folder_of(one: Training) -> Path:
    """Returns where a run keeps its files."""
    return WORK / one.group.removeprefix("train ").replace(", ", " ").replace(" ", "-")
