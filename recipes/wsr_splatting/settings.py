"""What a training run is made of: its budget, its learning rates, its schedules."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgeport_recipes.wsr_splatting.splats import RULES, Rule

from edgeport.errors import InputError, UnknownName


@dataclass(frozen=True)
class Settings:
    """One run. The rates are Adam's, for a run of 2,000 iterations; every method shares them.

    Those of the positions and of sigma are times the scene's extent and fall exponentially.
    """

    method: Rule = "lc"
    iterations: int = 2000
    seed: int = 0
    max_splats: int = 50_000
    view_opacity: bool = True
    degree: int = 3
    first_opacity: float = 0.3
    background_weight: float = 0.05  # the first and the least; see Trainable.step
    sigma_reach: float = 1.5  # LC's first sigma, in depths that 99 of 100 points lie before
    position_rates: tuple[float, float] = (4e-4, 8e-6)
    sh_rate: float = 5e-3
    sh_rest_rate: float = 5e-4
    scale_rate: float = 1e-2
    rotation_rate: float = 2e-3
    opacity_rate: float = 2e-2
    opacity_sh_rate: float = 5e-2
    opacity_sh_rest_rate: float = 1e-2
    sigma_rates: tuple[float, float] = (1e-2, 1e-3)
    background_rate: float = 1e-2
    degree_every: float = 0.1  # of the run, until another degree of harmonics is trained
    densify: tuple[float, float, float] = (0.1, 0.5, 0.05)  # from, to, every, of the run

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def degree_at(self, step: int) -> int:
        """Returns the degree that is trained at a step: one more each tenth of the run."""
        return min(self.degree, int(step / max(1.0, self.degree_every * self.iterations)))

    def densifies_at(self, step: int) -> bool:
        first, last, every = (round(part * self.iterations) for part in self.densify)
        return first <= step <= last and (step - first) % max(1, every) == 0

    def count_at(self, step: int, first_count: int) -> int:
        """Returns how many splats there are to be: rising evenly to the limit, for all methods."""
        start, end, _ = self.densify
        done = (step / self.iterations - start) / (end - start)
        return round(first_count + min(1.0, max(0.0, done)) * (self.max_splats - first_count))


def check(settings: Settings) -> Settings:
    """Returns the settings; raises InputError, in one line, for those that cannot be run."""
    if settings.method not in RULES:
        raise UnknownName("method", settings.method, RULES)
    if settings.iterations < 1:
        raise InputError(f"--iterations is {settings.iterations}; give 1 or more.")
    if settings.max_splats < 1:
        raise InputError(f"--max-splats is {settings.max_splats}; give 1 or more.")
    return settings
