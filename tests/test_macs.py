"""Multiply-accumulates, against numbers that were worked out by hand."""

from __future__ import annotations

import pytest
from onnx import helper

from edgeport.macs import node_macs


def count(op: str, inputs: list[tuple[int, ...]], output: tuple[int, ...], **attributes) -> int:
    names = [f"i{index}" if shape else "" for index, shape in enumerate(inputs)]
    shapes = dict([*zip(names, inputs), ("y", output)])
    return node_macs(helper.make_node(op, names, ["y"], **attributes), shapes)


@pytest.mark.parametrize(
    ("op", "inputs", "output", "attributes", "expected"),
    [
        # 8 x 16 x 16 outputs, each 3 x 3 x 3 products.
        ("Conv", [(1, 3, 16, 16), (8, 3, 3, 3), (8,)], (1, 8, 16, 16), {}, 8 * 256 * 27),
        # Depthwise: 9 products an output.
        ("Conv", [(2, 6, 5, 5), (6, 1, 3, 3)], (2, 6, 5, 5), {"group": 6}, 2 * 6 * 25 * 9),
        ("Conv", [(1, 4, 10), (2, 4, 3)], (1, 2, 8), {}, 2 * 8 * 12),
        # Each of 4 x 5 x 5 inputs is spread over 2 channels of 2 x 2.
        ("ConvTranspose", [(1, 4, 5, 5), (4, 2, 2, 2)], (1, 2, 10, 10), {}, 100 * 8),
        ("MatMul", [(3, 4, 5), (5, 6)], (3, 4, 6), {}, 3 * 4 * 5 * 6),
        ("MatMul", [(5,), (5,)], (), {}, 5),
        ("Gemm", [(5, 4), (6, 5)], (4, 6), {"transA": 1, "transB": 1}, 4 * 5 * 6),
        ("Gemm", [(4, 5), (5, 6), (6,)], (4, 6), {}, 4 * 5 * 6),
        (
            "Einsum",
            [(1, 2, 3, 4, 8), (4, 6, 8)],
            (1, 2, 3, 4, 6),
            {"equation": "byhwc,wkc->byhwk"},
            2 * 3 * 4 * 8 * 6,
        ),
        ("Einsum", [(7, 2, 3), (3, 5)], (7, 2, 5), {"equation": "...ij, jk -> ...ik"}, 210),
        ("Einsum", [(2, 3)], (3, 2), {"equation": "ij->ji"}, 0),
        ("Einsum", [(2,), (3,), (4,)], (2, 3, 4), {"equation": "i,j,k->ijk"}, 48),
        # 2 x 3 heads, 5 queries, 7 keys: width 4 for the scores, 6 for the values.
        (
            "Attention",
            [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)],
            (2, 3, 5, 6),
            {},
            2 * 3 * 5 * 7 * 10,
        ),
        (
            "Attention",
            [(2, 5, 12), (2, 7, 12), (2, 7, 18)],
            (2, 5, 18),
            {"q_num_heads": 3, "kv_num_heads": 3},
            2 * 3 * 5 * 7 * 10,
        ),
        # 11 steps, batch 2: 4 gates of 5 from 3 inputs and 5 states.
        (
            "LSTM",
            [(11, 2, 3), (1, 20, 3), (1, 20, 5)],
            (11, 1, 2, 5),
            {"hidden_size": 5},
            22 * (60 + 100),
        ),
        (
            "GRU",
            [(11, 2, 3), (2, 15, 3), (2, 15, 5)],
            (11, 2, 2, 5),
            {"hidden_size": 5},
            22 * 2 * (45 + 75),
        ),
        ("Softmax", [(4, 4)], (4, 4), {}, 0),
        ("Mul", [(4, 4), (4, 4)], (4, 4), {}, 0),
    ],
)
def test_by_hand(op, inputs, output, attributes, expected) -> None:
    assert count(op, inputs, output, **attributes) == expected
