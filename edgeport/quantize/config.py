"""What each precision means to the quantizer, and what an NPU demands, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

IntegerType = Literal["int4", "int8", "uint8", "int16", "uint16", "int32"]
CalibrationMethod = Literal["minmax", "percentile", "mse", "entropy"]
NodePrecision = Literal["w4a16", "w8a8", "w8a16", "w16a16", "float"]
"""What one node computes in: those of a whole model, and 16-bit weights beside 16-bit data."""

METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
BITS: dict[IntegerType, int] = {
    "int4": 4,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
}


@dataclass(frozen=True)
class WeightRule:
    """The weight type that an operator demands: (operator, its weight's input) -> type."""

    op: str
    input_index: int
    dtype: IntegerType
    symmetric: bool
    why: str


@dataclass(frozen=True)
class Calibration:
    """How ranges follow from the values of the calibration feeds.

    `percentile` is the share of values, in percent, that method "percentile" keeps inside the
    range; `bins` is the number of histogram bins per tensor; `group_bytes` bounds how many bytes of
    intermediate tensors one run keeps. `headroom` widens the min-max range of 16-bit tensors: an
    input beyond the calibration's extremes would be clipped, and one clipped value costs more than
    all rounding to 16 bits (efficientnet_b0, random weights of 16 bits: 27 dB at 1.0, 57 at 1.25).
    `small_headroom` is that of tensors of fewer than `small` values, of whose extremes the feeds
    show less (convnext_atto, one of 1,000 outputs clipped: 29 dB in place of 38).
    """

    method: CalibrationMethod = "minmax"
    percentile: float = 99.99
    bins: int = 2048
    group_bytes: int = 256 << 20
    headroom: float = 1.25
    small_headroom: float = 2.0
    small: int = 4096


@dataclass(frozen=True)
class QuantConfig:
    """A static quantization: types of activations and weights, ranges, corrections, exceptions.

    `block` gives MatMul weights one scale per so many input channels, where their number divides;
    0 is one scale per output channel. `signed_operand` stores the second operand of a MatMul of two
    16-bit tensors as int16 around 0: the HTP reads no more than 8 bits of a uint16 one (v75, QAIRT
    2.51, emulated: 42 dB, as with uint8; 69 dB as int16). `precisions` gives single nodes, by name,
    another precision than the configuration's own.
    """

    precision: NodePrecision
    activation: IntegerType
    weight: IntegerType
    per_channel: bool = True
    calibration: Calibration = field(default_factory=Calibration)
    bias_correction: bool = True  # resnet18 in w8a16: 35 dB without, 45 with
    round_by_data: bool = True
    equalize: bool = False
    block: int = 0
    rules: tuple[WeightRule, ...] = ()
    signed_operand: bool = False
    precisions: tuple[tuple[str, NodePrecision], ...] = ()


HTP_RULES = (
    WeightRule(
        "LayerNormalization",
        1,
        "uint8",
        False,
        "the HTP validator refuses an int8 weight beside 16-bit activations and takes uint8",
    ),
    WeightRule(
        "InstanceNormalization",
        1,
        "uint8",
        False,
        "as of LayerNormalization, which the compiler treats the same way",
    ),
)

CONFIGS: dict[NodePrecision, QuantConfig] = {
    # Weights are symmetric int8 per output channel: filters of one layer differ in range by an
    # order of magnitude, and HTP takes one scale each.
    "w8a8": QuantConfig("w8a8", "uint8", "int8", rules=HTP_RULES),
    # 16-bit activations: a product of d mixers, or a residual stream, has tails that 8 bits cut.
    "w8a16": QuantConfig("w8a16", "uint16", "int8", rules=HTP_RULES),
    "w4a16": QuantConfig("w4a16", "uint16", "int4", rules=HTP_RULES),
    # For single layers of a mixed model: v73 and later take 16-bit weights, earlier chips do not.
    "w16a16": QuantConfig("w16a16", "uint16", "int16", rules=HTP_RULES),
}


@dataclass(frozen=True)
class Request:
    """What to quantize to: a precision, a calibration method, and the SQNR that must be held.

    Where `least_db` is given, the layers that lose most are promoted through `levels`, lowest
    first, until the outputs hold it. `signed_operand` is QuantConfig's; chips before v73 refuse it.
    """

    precision: NodePrecision
    method: CalibrationMethod = "minmax"
    least_db: float | None = None
    levels: tuple[NodePrecision, ...] = ()
    signed_operand: bool = False


def levels_above(
    precision: str, *, wide_weights: bool, floats: bool
) -> tuple[NodePrecision, tuple[NodePrecision, ...]]:
    """Returns where "auto" or a precision starts, and through what its layers may be promoted.

    `wide_weights` says whether the chip takes 16-bit weights, `floats` whether it computes in
    float. A precision that was named keeps the type of its data: only its weights get more bits.
    """
    wide: tuple[NodePrecision, ...] = ("w16a16",) if wide_weights else ()
    above: dict[str, tuple[NodePrecision, tuple[NodePrecision, ...]]] = {
        "auto": ("w8a8", ("w8a16", *wide, *(("float",) if floats else ()))),
        "w8a8": ("w8a8", ()),
        "w8a16": ("w8a16", wide),
        "w4a16": ("w4a16", ("w8a16", *wide)),
    }
    return above[precision]


def configured(precision: NodePrecision, method: CalibrationMethod) -> QuantConfig:
    """Returns the configuration of a precision with another calibration method."""
    config = CONFIGS[precision]
    return replace(config, calibration=replace(config.calibration, method=method))
