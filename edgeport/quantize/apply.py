"""ONNX -> ONNX with QuantizeLinear and DequantizeLinear pairs, calibrated on real feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import onnx

from edgeport.errors import EdgeportError, StageFailed
from edgeport.private import scratch_directory
from edgeport.quantize.calibrate import Feeds, gather
from edgeport.quantize.config import (
    CONFIGS,
    CalibrationMethod,
    NodePrecision,
    QuantConfig,
    Request,
    configured,
)
from edgeport.quantize.equalize import equalize
from edgeport.quantize.graph import Feed, Graph, Probe, save_proto
from edgeport.quantize.insert import Calibrated, insert_pairs
from edgeport.quantize.mixed import TradeOff, promote
from edgeport.quantize.sensitivity import Judge, LayerLoss, Progress, rank_layers
from edgeport.quantize.weights import mean_axes, round_weights

JUDGED_FEEDS = 4  # of the calibration feeds: each tried choice of precisions runs them
MARGIN_DB = 4.0  # other inputs than the few that chose lose up to 3.6 dB more (the suite zoo)


def calibrate_file(
    source: Path,
    config: QuantConfig,
    feeds: Iterable[Feed],
    levels: Iterable[NodePrecision] = (),
    judged: int = 0,
) -> Calibrated:
    """Returns the graph in `source` with the statistics of its tensors over all feeds.

    Its weights are rounded for `config` and for the precisions in `levels`. The first `judged`
    feeds, or half of them where they are few, are kept out, to judge by. Raises StageFailed with
    onnxruntime's first line where it cannot run the graph.
    """
    configs = (config, *(CONFIGS[level] for level in levels if level != "float"))
    try:
        graph = Graph(onnx.load(source))
        if config.equalize:
            equalize(graph)
        with scratch_directory() as folder:
            stored, probe = Feeds(feeds, folder), Probe(graph)
            held = stored.hold_out(judged)
            statistics = gather(probe, stored, config.calibration, mean_axes(graph))
            weights = round_weights(graph, statistics, probe, stored, configs)
    except EdgeportError:
        raise
    except Exception as error:  # onnxruntime's binding raises a class per status code
        line = next(iter(str(error).splitlines()), "")
        raise StageFailed("quantize", f"{type(error).__name__}: {line}") from error
    return Calibrated(graph, statistics, len(stored), weights, tuple(held))


def quantize_file(source: Path, target: Path, config: QuantConfig, feeds: Iterable[Feed]) -> int:
    """Writes the quantized model to `target`; returns how many feeds calibrated it."""
    calibrated = calibrate_file(source, config, feeds)
    save_proto(insert_pairs(calibrated, config), target)
    return calibrated.count


def layer_losses(
    source: Path,
    precision: NodePrecision,
    method: CalibrationMethod,
    feeds: Callable[[], Iterable[Feed]],
    progress: Progress,
) -> tuple[LayerLoss, ...]:
    """Returns what each layer of the model loses when it alone is quantized, the worst first."""
    config = configured(precision, method)
    calibrated = calibrate_file(source, config, feeds(), judged=1)
    judge = Judge(calibrated, calibrated.judged or list(islice(feeds(), 1)))
    return rank_layers(calibrated, config, judge, progress=progress)


@dataclass(frozen=True)
class Quantized:
    """What `quantize_as` did: on how many feeds, to which precisions, by which steps."""

    count: int
    computed: str
    steps: tuple[TradeOff, ...]


def quantize_as(
    source: Path, target: Path, request: Request, feeds: Callable[[], Iterable[Feed]]
) -> Quantized:
    """Writes the model quantized as requested to `target`; `feeds` gives them anew at each call.

    Raises StageFailed where no choice of precisions holds the requested SQNR.
    """
    config = configured(request.precision, request.method)
    config = replace(config, signed_operand=request.signed_operand)
    if request.least_db is None:
        return Quantized(quantize_file(source, target, config, feeds()), request.precision, ())
    calibrated = calibrate_file(source, config, feeds(), request.levels, JUDGED_FEEDS)
    judge = Judge(calibrated, calibrated.judged or list(islice(feeds(), 1)))
    wanted_db = request.least_db + MARGIN_DB
    mixed = promote(calibrated, config, judge, request.levels, wanted_db)
    if mixed.sqnr_db < request.least_db:
        raise StageFailed(
            "quantize",
            f"no choice of precisions holds {request.least_db:g} dB (--min-sqnr): with all layers"
            f" in {request.levels[-1]} it is {mixed.sqnr_db:.1f} dB",
        )
    save_proto(insert_pairs(calibrated, mixed.config), target)
    used = [name for name, _ in mixed.steps[-1].layers]
    return Quantized(calibrated.count, "+".join(used), mixed.steps)
