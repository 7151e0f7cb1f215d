"""How far a stage's file is from the reference, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeport import compare
from edgeport.catalog import Source
from edgeport.errors import StageFailed
from edgeport.feeds import PARITY_INPUTS, PARITY_OUTPUTS
from edgeport.fingerprint import file_sha256
from edgeport.quantize.integer_io import decode_outputs, encode_feed, load_edges
from edgeport.runtimes.onnx import Session
from edgeport.runtimes.samples import Sample, load_samples, named_outputs
from edgeport.types import Artifact, Measurement, NodeReport, Precision, Provenance


def tolerance_db(source: Source, precision: Precision) -> float:
    """Returns the least SQNR that the source's recipe accepts, minus infinity without one."""
    tolerances = source.recipe.tolerance_db if source.recipe is not None else {}
    return tolerances.get(precision, float("-inf"))


def proven(
    path: Path,
    stage: str,
    computed_in: str,
    captured: Path,
    least_db: float,
    steps: tuple[tuple[str, int], ...] = (),
    notes: tuple[str, ...] = (),
    runtime: str = "",
) -> Artifact:
    """Returns the artifact of a model that this machine runs, compared with the reference.

    Raises StageFailed where it is less than `least_db` near.
    """
    session, edges = Session(path), load_edges(path)
    names = session.output_names()
    actual = [
        named_outputs(decode_outputs(session.run(encode_feed(feed, edges)), names, edges))
        for feed in load_samples(captured / PARITY_INPUTS)
    ]
    parity = compared(load_samples(captured / PARITY_OUTPUTS), actual, "host", file_sha256(path))
    hold(parity, least_db, stage, path.name)
    return described(
        path, stage, computed_in, steps=steps, notes=notes, parity=parity, runtime=runtime
    )


def described(
    path: Path,
    stage: str,
    computed_in: str,
    *,
    steps: tuple[tuple[str, int], ...] = (),
    notes: tuple[str, ...] = (),
    nodes: tuple[NodeReport, ...] = (),
    parity: tuple[Measurement, ...] = (),
    runtime: str = "",
) -> Artifact:
    """Returns the artifact that stands for a file; its seconds are not known yet.

    Its bytes count the weights that lie in a file beside it; its sha256 is the file's own.
    """
    size = sum(
        file.stat().st_size
        for file in (path, path.with_name(f"{path.name}.data"))
        if file.is_file()
    )
    sha = file_sha256(path)
    return Artifact(
        stage, path.name, computed_in, sha, size, 0.0, steps, notes, nodes, parity, runtime
    )


def compared(
    references: Sequence[Sample], actual: Sequence[Sample], provenance: Provenance, sha256: str
) -> tuple[Measurement, ...]:
    """Returns sqnr_db and max_abs: worst over all, and per sample worst over outputs."""
    pairs = [
        [(reference[name], answer[name]) for name in reference]
        for reference, answer in zip(references, actual, strict=True)
    ]
    sqnr = tuple(min(compare.sqnr_db(*pair) for pair in sample) for sample in pairs)
    error = tuple(max(compare.max_abs(*pair) for pair in sample) for sample in pairs)
    return (
        Measurement("sqnr_db", min(sqnr), "dB", provenance, sqnr, artifact_sha256=sha256),
        Measurement("max_abs", max(error), "1", provenance, error, artifact_sha256=sha256),
    )


def hold(parity: Sequence[Measurement], least_db: float, stage: str, name: str) -> None:
    """Raises StageFailed where the parity's SQNR is below `least_db`."""
    sqnr_db = parity[0].value
    if sqnr_db < least_db:
        raise StageFailed(
            stage,
            f"{name} is {sqnr_db:.1f} dB from the reference; {least_db:.0f} dB are needed",
        )
