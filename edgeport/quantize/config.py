"""What each precision means to the quantizer, and what an NPU demands, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeport.types import Precision

IntegerType = Literal["int8", "uint8", "uint16"]


@dataclass(frozen=True)
class WeightRule:
    """The weight type that an operator demands: (operator, its weight's input) -> type."""

    op: str
    input_index: int
    dtype: IntegerType
    symmetric: bool
    why: str


@dataclass(frozen=True)
class QuantConfig:
    """A static quantization: types of activations and weights, granularity, and exceptions."""

    activation: IntegerType
    weight: IntegerType
    per_channel: bool
    rules: tuple[WeightRule, ...]


HTP_RULES = (
    WeightRule(
        "LayerNormalization",
        1,
        "uint8",
        False,
        "the HTP validator refuses an int8 weight beside 16-bit activations and takes uint8",
    ),
)

CONFIGS: dict[Precision, QuantConfig] = {
    # Weights are symmetric int8 per output channel of each convolution: depthwise and pointwise
    # filters of one layer differ in range by an order of magnitude, and HTP takes one scale each.
    "w8a8": QuantConfig("uint8", "int8", True, HTP_RULES),
    # 16-bit activations: a product of d mixers, or a residual stream, has tails that 8 bits cut.
    "w8a16": QuantConfig("uint16", "int8", True, HTP_RULES),
}
