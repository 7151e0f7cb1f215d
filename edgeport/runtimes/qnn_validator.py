"""Reads why Qualcomm's validator refused a node, from the provider's verbose log.

Per node unit (an operator with its QuantizeLinear and DequantizeLinear) the log has

    ... Validation FAILED for 1 nodes in OrtNodeUnit (Einsum) :
        Operator type: Einsum Node name: node_einsum Node index: 3
        REASON : Einsum unsupported equation: byhc,wkc->byhwk
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FAILED = re.compile(r"Validation FAILED for \d+ nodes? in ")
_NODE = re.compile(r"^\s*Operator type: \S+ Node name: (?P<name>.*?) Node index: \d+")
_REASON = re.compile(r"^\s*REASON : (?P<text>.+)")
_CODE = re.compile(r"error code:? (?P<code>\d+)")
# The validator's own words for its codes; source: QNN API reference, QnnOpPackage and QnnCommon.
_CODES = {
    "3110": "the NPU does not take this operator with this rank, shape or element type",
    "1002": "the compiler ran out of memory",
}


@dataclass(frozen=True)
class Refusal:
    """Why a node was refused: in words, and the validator's own line ("" where it gave none)."""

    reason: str
    raw: str


def read_refusals(log: str) -> dict[str, Refusal]:
    """Returns node name -> why the validator refused it, in one line each."""
    refusals: dict[str, Refusal] = {}
    for block in _failed_blocks(log):
        names = [match["name"] for line in block if (match := _NODE.match(line))]
        said = [match["text"] for line in block if (match := _REASON.match(line))]
        refusal = (
            Refusal(_translate(said[0]), said[0].strip())
            if said
            else Refusal("refused without a reason", "")
        )
        refusals.update(dict.fromkeys(names, refusal))
    return refusals


def read_reasons(log: str) -> dict[str, str]:
    """Returns node name -> why the validator refused it, in words."""
    return {name: refusal.reason for name, refusal in read_refusals(log).items()}


def _failed_blocks(log: str) -> Iterator[list[str]]:
    """Yields the indented lines below each FAILED line."""
    block: list[str] = []
    failed = False
    for line in log.splitlines():
        if failed and line.startswith(("\t", " ")) and line.strip():
            block.append(line)
            continue
        yield block  # empty where nothing failed
        block, failed = [], _FAILED.search(line) is not None
    yield block


def _translate(reason: str) -> str:
    code = _CODE.search(reason)
    words = _CODES.get(code["code"]) if code else None
    if "are not supported by QNN EP" in reason:
        return "onnxruntime's QNN provider has no such operator"
    if reason.strip().rstrip(".") == "Failed to add node":
        return "the NPU does not take this operator with these element types or attributes"
    return f"{words} (code {code['code']})" if code and words else reason.strip().rstrip(".")
