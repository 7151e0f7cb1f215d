"""Which layers lose the most: SQNR of the outputs when one layer alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort

from edgeport.compare import sqnr_db
from edgeport.errors import StageFailed
from edgeport.quantize.config import NodePrecision, QuantConfig
from edgeport.quantize.cost import layer_macs
from edgeport.quantize.graph import Array, Feed, loadable
from edgeport.quantize.insert import Calibrated, fused_activations, insert_pairs, takes_pairs
from edgeport.quantize.tensors import MOVES
from edgeport.runtimes.onnx import REWRITES_FLOAT_LAYERS
from edgeport.types import Serialisable

RANKING_FEEDS = 1  # the order of layers needs no more: it is the choice that is judged on several
Progress = Callable[[int, int], None]
"""Is told how many of how many layers are done."""


@dataclass(frozen=True)
class LayerLoss(Serialisable):
    """One layer: the SQNR in dB of the outputs with it alone quantized, on one feed.

    `macs` are its multiply-accumulates; a Relu or Clip that is fused into it is not listed.
    """

    node: str
    op: str
    sqnr_db: float
    macs: int


class Judge:
    """Compares quantized forms of one graph with its float outputs on a few feeds."""

    def __init__(self, calibrated: Calibrated, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self._references = self._run(calibrated.graph.model, feeds)

    def __call__(self, model: onnx.ModelProto, most: int | None = None) -> float:
        """Returns the least SQNR in dB over outputs and feeds, or the first `most` feeds."""
        answers = self._run(model, self._feeds[:most])
        pairs = zip(self._references[:most], answers, strict=True)
        return min(sqnr_db(*pair) for one in pairs for pair in zip(*one, strict=True))

    def _run(self, model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[list[Array]]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The numbers of the pairs as they stand; what fuses them takes longer than it saves here.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            with loadable(model) as source:
                session = ort.InferenceSession(
                    source,
                    options,
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=REWRITES_FLOAT_LAYERS,
                )
            return [[np.asarray(one) for one in session.run(None, dict(feed))] for feed in feeds]
        except Exception as error:  # onnxruntime's binding raises a class per status code
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise StageFailed("quantize", f"onnxruntime cannot run the graph: {line}") from error


def rank_layers(
    calibrated: Calibrated,
    config: QuantConfig,
    judge: Judge,
    names: Sequence[str] | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[LayerLoss, ...]:
    """Returns the loss of each layer, or of those in `names`, the worst first.

    Only the layer's inputs, constants and outputs are rounded; the rest of the graph is float.
    """
    wanted = layers(calibrated) if names is None else list(names)
    fused = fused_activations(calibrated, _everywhere(calibrated, config))
    by_name = {node.name: node for node in calibrated.graph.nodes}
    found = []
    alone = replace(config, precisions=())
    for done, name in enumerate(wanted):
        progress(done, len(wanted))
        members = frozenset({name, fused.get(name, name)})
        loss = judge(insert_pairs(calibrated, alone, members), RANKING_FEEDS)
        node = by_name[name]
        found.append(LayerLoss(name, node.op_type, loss, layer_macs(node, calibrated)))
    progress(len(wanted), len(wanted))
    return tuple(sorted(found, key=lambda one: one.sqnr_db))


def layers(calibrated: Calibrated) -> list[str]:
    """Returns the names of the nodes that compute on float data: none that only move values."""
    hidden: set[str] = set()
    everywhere = {node.name: _ANY for node in calibrated.graph.nodes}
    hidden.update(fused_activations(calibrated, everywhere).values())
    return [
        node.name
        for node in calibrated.graph.nodes
        if takes_pairs(node, calibrated) and node.op_type not in MOVES and node.name not in hidden
    ]


_ANY: NodePrecision = "w8a8"


def _everywhere(calibrated: Calibrated, config: QuantConfig) -> Mapping[str, NodePrecision]:
    return {
        node.name: config.precision if takes_pairs(node, calibrated) else "float"
        for node in calibrated.graph.nodes
    }
