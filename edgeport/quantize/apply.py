"""ONNX -> ONNX with QuantizeLinear and DequantizeLinear pairs, calibrated on real feeds.

onnxruntime's quantizer and its QNN configuration do the work. What that configuration leaves out
is added here: weight types that depend on the operator (`config.HTP_RULES`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeport.errors import EdgeportError, StageFailed
from edgeport.quantize.config import IntegerType, QuantConfig

Feed = Mapping[str, NDArray[Any]]


class _Reader:
    """Gives onnxruntime's calibrator one feed at a time, and counts them."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds
        self.count = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        self.count += feed is not None
        return None if feed is None else dict(feed)


def quantize_file(source: Path, target: Path, config: QuantConfig, feeds: Iterator[Feed]) -> int:
    """Writes the quantized model to `target`; returns how many feeds calibrated it.

    Ranges are the minimum and maximum over all feeds, gathered one feed at a time. Raises
    StageFailed with onnxruntime's first line where it cannot quantize the graph.
    """
    from onnxruntime.quantization import quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    model = onnx.load(source)
    reader = _Reader(feeds)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a preprocessing that has been done
    try:
        options = get_qnn_qdq_config(
            model,
            reader,
            activation_type=_quant_type(config.activation),
            weight_type=_quant_type(config.weight),
            per_channel=config.per_channel,
            init_overrides=_overrides(model, config),
        )
        quantize(source, target, options)
    except EdgeportError:  # of the feeds
        raise
    except Exception as error:  # onnxruntime's quantizer raises whatever it meets
        line = next(iter(str(error).splitlines()), "")
        raise StageFailed("quantize", f"{type(error).__name__}: {line}") from error
    finally:
        logging.root.setLevel(level)
    return reader.count


def _quant_type(name: IntegerType) -> Any:
    from onnxruntime.quantization import QuantType

    types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8, "uint16": QuantType.QUInt16}
    return types[name]


def _overrides(model: onnx.ModelProto, config: QuantConfig) -> dict[str, list[dict[str, Any]]]:
    """Returns onnxruntime's per-tensor overrides for the weights that the rules name."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[rule.input_index]: [
            {"quant_type": _quant_type(rule.dtype), "symmetric": rule.symmetric}
        ]
        for rule in config.rules
        for node in model.graph.node
        if node.op_type == rule.op and node.input[rule.input_index] in weights
    }


def boundary_scales(path: Path) -> dict[str, dict[str, Any]]:
    """Returns, per graph input and output, the type, scale and zero point it is quantized with."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    scales = {}
    for node in model.graph.node:
        for op, tensor, boundary in (
            ("QuantizeLinear", node.input[0] if node.input else "", inputs),
            ("DequantizeLinear", node.output[0] if node.output else "", outputs),
        ):
            if node.op_type == op and tensor in boundary:
                scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
                scales[tensor] = {
                    "type": str(zero.dtype),
                    "scale": float(scale),
                    "zero_point": int(zero),
                }
    return scales
