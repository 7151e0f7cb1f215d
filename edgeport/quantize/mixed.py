"""Mixed precision: the layers that lose most get more bits, until the answer is good enough.

Layers go up one level at a time, the worst first: w8a8 to w8a16 (16-bit data), to w16a16 (16-bit
weights, where the chip takes them), to float (which the NPU computes as fp16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeport.quantize.config import NodePrecision, QuantConfig
from edgeport.quantize.cost import mac_shares
from edgeport.quantize.graph import is_large, weight_bytes
from edgeport.quantize.insert import Calibrated, fused_activations, insert_pairs, takes_pairs
from edgeport.quantize.sensitivity import Judge, layers, rank_layers
from edgeport.types import Serialisable

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the layers that may go up a level
REFINEMENTS = 3  # halvings of the last stretch, in which the budget began to hold
WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class TradeOff(Serialisable):
    """One tried choice: how many layers are at which precision, and what it gains and costs.

    `layers` and `macs` are (precision, count) and (precision, share in [0, 1]) pairs.
    """

    sqnr_db: float
    bytes: int
    layers: tuple[tuple[str, int], ...]
    macs: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Mixed:
    """The configuration that holds the budget, or the best there is, and the way there."""

    config: QuantConfig
    steps: tuple[TradeOff, ...]

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the configuration on the feeds that chose it."""
        return self.steps[-1].sqnr_db


def promote(
    calibrated: Calibrated,
    config: QuantConfig,
    judge: Judge,
    levels: Sequence[NodePrecision],
    least_db: float,
    progress: Callable[[str], None] = lambda text: None,
) -> Mixed:
    """Returns `config` with the fewest layers promoted through `levels` that hold `least_db`.

    `levels` are those above the configuration's own, lowest first.
    """
    search = _Search(calibrated, config, judge, progress)
    best = search.measure({})
    chosen: dict[str, NodePrecision] = {}
    below = config.precision
    for level in levels:
        if best.sqnr_db >= least_db:
            break
        best = search.raise_level(chosen, below, level, least_db)
        below = level
    return Mixed(replace(config, precisions=tuple(sorted(chosen.items()))), tuple(search.steps))


class _Search:
    def __init__(
        self,
        calibrated: Calibrated,
        config: QuantConfig,
        judge: Judge,
        progress: Callable[[str], None],
    ) -> None:
        self.calibrated, self.config, self.judge = calibrated, config, judge
        self.progress = progress
        self.steps: list[TradeOff] = []
        names = {node.name: config.precision for node in calibrated.graph.nodes}
        self.fused = fused_activations(calibrated, names)

    def raise_level(
        self,
        chosen: dict[str, NodePrecision],
        below: NodePrecision,
        level: NodePrecision,
        least_db: float,
    ) -> TradeOff:
        """Adds to `chosen` the layers to raise; returns the last trade-off."""
        order = self._order(below, level)
        low, high = 0, len(order)
        tried: dict[int, TradeOff] = {}
        for count in sorted({max(1, round(share * len(order))) for share in SHARES}):
            tried[count] = self.measure(self._raised(chosen, order[:count], level))
            if tried[count].sqnr_db >= least_db:
                high = count
                break
            low = count
        for _ in range(REFINEMENTS):
            middle = (low + high) // 2
            if middle <= low:  # also where the budget did not hold with all: low is high
                break
            tried[middle] = self.measure(self._raised(chosen, order[:middle], level))
            low, high = (low, middle) if tried[middle].sqnr_db >= least_db else (middle, high)
        chosen.update(self._raised({}, order[:high], level))
        if high in tried and self.steps[-1] is not tried[high]:
            self.steps.append(tried[high])  # the last step is the one that was taken
        return self.steps[-1]

    def _order(self, below: NodePrecision, level: NodePrecision) -> list[str]:
        """Returns the layers that can gain by `level`, the one that loses most at `below` first."""
        names = layers(self.calibrated)
        if level == "w16a16":
            graph = self.calibrated.graph
            by_name = {node.name: node for node in graph.nodes}
            names = [
                name
                for name in names
                if by_name[name].op_type in WITH_WEIGHTS
                and any(one in graph.constants for one in by_name[name].input[:2])
            ]
        at = replace(self.config, **_types(below))
        text = f"ranking {len(names)} layers in {below}"
        ranked = rank_layers(
            self.calibrated,
            at,
            self.judge,
            names,
            lambda done, total: self.progress(f"{text}: {done} of {total}"),
        )
        return [one.node for one in ranked]

    def _raised(
        self, chosen: dict[str, NodePrecision], names: Sequence[str], level: NodePrecision
    ) -> dict[str, NodePrecision]:
        raised = {**chosen, **dict.fromkeys(names, level)}
        # A Relu that its layer's grid performs stays with its layer.
        return {**raised, **{self.fused[n]: raised[n] for n in raised if n in self.fused}}

    def measure(self, chosen: dict[str, NodePrecision]) -> TradeOff:
        """Returns, and keeps, what quantizing with these exceptions gives."""
        config = replace(self.config, precisions=tuple(sorted(chosen.items())))
        model = insert_pairs(self.calibrated, config)
        precision: dict[str, NodePrecision] = {
            node.name: chosen.get(node.name, config.precision)
            if takes_pairs(node, self.calibrated)
            else "float"
            for node in self.calibrated.graph.nodes
        }
        counted = [precision[name] for name in layers(self.calibrated)]
        kinds = sorted(set(counted))
        step = TradeOff(
            self.judge(model),
            weight_bytes(model) if is_large(model) else model.ByteSize(),
            tuple((kind, counted.count(kind)) for kind in kinds),
            tuple(mac_shares(self.calibrated, precision).items()),
        )
        self.steps.append(step)
        self.progress(describe(step))
        return step


def describe(step: TradeOff) -> str:
    """Returns a trade-off in one line."""
    eight = dict(step.macs).get("w8a8", 0.0)
    counts = ", ".join(f"{count} {kind}" for kind, count in step.layers)
    return (
        f"{step.sqnr_db:.1f} dB, {step.bytes / 1e6:.2f} MB, {eight:.0%} of MACs in int8"
        f" (layers: {counts})"
    )


def _types(precision: NodePrecision) -> dict[str, Any]:
    from edgeport.quantize.config import CONFIGS

    own = CONFIGS[precision]
    return {"precision": precision, "activation": own.activation, "weight": own.weight}
