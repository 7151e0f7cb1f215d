"""What a choice of precisions costs: bytes of the model, and the share of products in 8 bits."""

from __future__ import annotations

import onnx

from edgeport.macs import node_macs
from edgeport.quantize.config import NodePrecision
from edgeport.quantize.insert import Calibrated


def layer_macs(node: onnx.NodeProto, calibrated: Calibrated) -> int:
    """Returns the multiply-accumulates of a node of a calibrated graph."""
    constants, statistics = calibrated.graph.constants, calibrated.statistics
    shapes = {
        name: tuple(constants[name].dims) if name in constants else statistics[name].shape
        for name in (*node.input, *node.output)
        if name in constants or name in statistics
    }
    return node_macs(node, shapes)


def mac_shares(
    calibrated: Calibrated, precision: dict[str, NodePrecision]
) -> dict[NodePrecision, float]:
    """Returns precision -> share in [0, 1] of all multiply-accumulates, of those that occur."""
    macs = {node.name: layer_macs(node, calibrated) for node in calibrated.graph.nodes}
    total = max(sum(macs.values()), 1)
    return {
        kind: sum(count for name, count in macs.items() if precision[name] == kind) / total
        for kind in sorted(set(precision.values()))
    }
