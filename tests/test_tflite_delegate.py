"""What LiteRT's GPU delegate takes of an operator, by its element types, shapes and constants."""

from __future__ import annotations

import pytest
from support import ROOT

from edgeport.runtimes.tflite_delegate import Operator, Tensor, delegate_facts, why_not


def tensor(
    dtype: str = "FLOAT32", shape: tuple[int, ...] = (1, 2), constant: bool = False
) -> Tensor:
    return Tensor("t", dtype, shape, constant)


ROW = tensor("INT32", (3,), True)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Operator("ADD", (tensor("INT16"), tensor("INT16")), (tensor("INT16"),)), "no INT16"),
        (Operator("ADD", (tensor("INT32"), tensor("INT32")), (tensor("INT32"),)), "no INT32"),
        (Operator("LESS", (tensor(), tensor()), (tensor("BOOL"),)), ""),
        (Operator("CAST", (tensor("INT32"),), (tensor(),)), ""),
        (Operator("CAST", (tensor("INT32"),), (tensor("BOOL"),)), "does not cast INT32 to BOOL"),
        (Operator("SLICE", (tensor(), ROW, ROW), (tensor(),)), "slices rank 2"),
        (Operator("SLICE", (tensor(shape=(1, 2, 3)), ROW, ROW), (tensor(),)), ""),
        (Operator("MEAN", (tensor(), tensor("INT32")), (tensor(),)), "no INT32 in MEAN"),
        (Operator("MEAN", (tensor(), tensor("INT64", (1,), True)), (tensor(),)), "constant INT32"),
        (Operator("GATHER", (tensor(), tensor("INT32", (1, 2))), (tensor(),)), "a line of INT32"),
        (Operator("DEQUANTIZE", (tensor("INT16", (4,), True),), (tensor(),)), "no INT16"),
        (
            Operator("SELECT_V2", (tensor("BOOL"), tensor(), tensor(shape=(2,))), (tensor(),)),
            "of the output's shape",
        ),
    ],
)
def test_the_delegates_conditions(operator: Operator, words: str) -> None:
    assert words in why_not(operator)
    assert bool(words) == bool(why_not(operator))


def test_the_delegates_facts_have_sources() -> None:
    text = (ROOT / "edgeport" / "runtimes" / "litert_gpu.toml").read_text()
    assert text.count("source = ") == len(delegate_facts()) == 5
    assert {"CONV_2D", "BATCH_MATMUL"} <= set(delegate_facts()["operators"])
