"""Transposes that meet and cancel, and Linears that become convolutions between them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_passes_htp import applied, gaussian, operators

from edgeport.passes.expands import drop_expands
from edgeport.passes.linear_conv import linear_to_conv
from edgeport.passes.transposes import remove_transposes

SHAPE = (2, 3, 4, 5)


class Writer:
    """Writes a random graph of rank 4 as text, in operators that know no fixed order of axes."""

    def __init__(self, picks: random.Random) -> None:
        self.picks = picks
        self.lines: list[str] = []
        self.tensors = [("x", SHAPE)]
        self.perms = [picks.sample(range(4), 4) for _ in range(2)]
        self.perms += [np.argsort(perm).tolist() for perm in self.perms]

    def write(self, size: int) -> str:
        for _ in range(size):
            name, shape = self.picks.choice(self.tensors[-4:])
            kind = self.picks.choice([self.turn] * 3 + [self.unary, self.join, self.along])
            kind(name, shape)
        outputs = [self.tensors[-1], self.picks.choice(self.tensors[1:])]
        declared = []
        for index, (name, shape) in enumerate(outputs):
            self.lines.append(f"y{index} = Neg({name})")
            declared.append(f"float[{', '.join(map(str, shape))}] y{index}")
        return (
            f"example (float[2, 3, 4, 5] x) => ({', '.join(declared)})\n"
            f"<float[1] one = {{1.5}}> {{ {chr(10).join(self.lines)} }}"
        )

    def turn(self, name: str, shape: tuple[int, ...]) -> None:
        perm = self.picks.choice(self.perms)
        self.add(f"Transpose <perm = {perm}> ({name})", tuple(shape[axis] for axis in perm))

    def unary(self, name: str, shape: tuple[int, ...]) -> None:
        self.add(self.picks.choice([f"Abs({name})", f"Tanh({name})", f"Mul({name}, one)"]), shape)

    def along(self, name: str, shape: tuple[int, ...]) -> None:
        axis = self.picks.randrange(4)
        joined = tuple(size * (1 + (at == axis)) for at, size in enumerate(shape))
        if max(joined) <= 20 and self.picks.random() < 0.5:
            self.add(f"Concat <axis = {axis}> ({name}, {name})", joined)
        else:
            self.add(f"Softmax <axis = {axis}> ({name})", shape)

    def join(self, name: str, shape: tuple[int, ...]) -> None:
        others = [other for other, its in self.tensors if its == shape]
        self.add(f"Add({name}, {self.picks.choice(others)})", shape)

    def add(self, operation: str, shape: tuple[int, ...]) -> None:
        self.tensors.append((f"t{len(self.tensors)}", shape))
        self.lines.append(f"{self.tensors[-1][0]} = {operation}")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 14))
def test_any_graph_keeps_its_answer_and_loses_as_many_as_it_counts(seed: int, size: int) -> None:
    text = Writer(random.Random(seed)).write(size)
    before = text.count("Transpose")
    result = applied(remove_transposes, text, x=gaussian(*SHAPE))
    assert operators(result).count("Transpose") == before - result.count
    assert remove_transposes(result.model).count == 0


def left(text: str, **feed: np.ndarray) -> list[str]:
    return operators(applied(remove_transposes, text, **feed))


@pytest.mark.parametrize(
    "between",
    [
        "b = LeakyRelu <alpha = 0.1> (a)",
        "c = Relu(a) b = Add(c, a)",
        "b = ReduceMean <keepdims = 1> (a, channels)",
        "c, d = Split <axis = 3, num_outputs = 2> (a) b = Concat <axis = -1> (d, c)",
        "b = Slice(a, start, stop, channels)",
        "b = Slice(a, start, stop)",
        "b = Pad(a, pads)",
        "b = Softmax <axis = 1> (a)",
        "b = Where(mask, a, zero)",
        "b = Mul(a, gamma)",
    ],
)
def test_what_stands_between_a_pair_moves(between: str) -> None:
    text = f"""example (float[2, 4, 3, 5] x) => (float[n, c, h, w] y)
    <int64[1] channels = {{3}}, int64[1] start = {{0}}, int64[1] stop = {{2}}, float zero = {{0}},
     int64[8] pads = {{0, 1, 0, 2, 0, 0, 3, 0}},
     bool[3, 1, 1] mask = {{1, 0, 1}}, float[4] gamma = {{1, 2, 3, 4}}> {{
      a = Transpose <perm = [0, 2, 3, 1]> (x)
      {between}
      y = Transpose <perm = [0, 3, 1, 2]> (b)
    }}"""
    assert "Transpose" not in left(text, x=gaussian(2, 4, 3, 5))


def test_a_mean_without_its_axes_reads_what_was_transposed() -> None:
    text = """example (float[2, 4, 3, 5] x) => (float[2, 4] y) <int64[2] axes = {1, 2}> {
      a = Transpose <perm = [0, 2, 3, 1]> (x)
      y = ReduceMean <keepdims = 0> (a, axes)
    }"""
    assert left(text, x=gaussian(2, 4, 3, 5)) == ["ReduceMean"]


def test_a_layer_norm_over_channels_and_a_softmax_on_the_last_axis_stay() -> None:
    for operator in ("LayerNormalization(a, scale)", "Softmax <axis = -1> (a)"):
        text = f"""example (float[2, 4, 3, 5] x) => (float[2, 4, 3, 5] y)
        <float[4] scale = {{1, 2, 3, 4}}> {{
          a = Transpose <perm = [0, 2, 3, 1]> (x)
          b = {operator}
          y = Transpose <perm = [0, 3, 1, 2]> (b)
        }}"""
        assert left(text, x=gaussian(2, 4, 3, 5)).count("Transpose") == 2


def test_a_reshape_between_two_is_passed() -> None:
    text = """example (float[1, 8, 3, 5] x) => (float[1, 8, 3, 5] y)
    <int64[3] line = {1, 15, 8}, int64[4] picture = {1, 8, 3, 5}> {
      a = Transpose <perm = [0, 2, 3, 1]> (x)
      b = Reshape(a, line)
      c = Transpose <perm = [0, 2, 1]> (b)
      y = Reshape(c, picture)
    }"""
    assert "Transpose" not in left(text, x=gaussian(1, 8, 3, 5))


def test_a_reshape_that_cuts_across_axes_keeps_both() -> None:
    text = """example (float[4, 6] x) => (float[8, 3] y) <int64[2] line = {3, 8}> {
      a = Transpose <perm = [1, 0]> (x)
      b = Reshape(a, line)
      y = Transpose <perm = [1, 0]> (b)
    }"""
    result = applied(remove_transposes, text, x=gaussian(4, 6))
    assert operators(result).count("Transpose") == 2 - result.count


def test_a_branch_that_needs_the_old_order_gets_one_transpose() -> None:
    text = """example (float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 4, 3] z) {
      a = Transpose <perm = [0, 2, 1]> (x)
      b = Relu(a)
      z = Tanh(b)
      y = Transpose <perm = [0, 2, 1]> (b)
    }"""
    assert left(text, x=gaussian(2, 3, 4)).count("Transpose") == 1


MLP = """example (float[1, 4, 3, 5] x) => (float[1, 4, 3, 5] y)
<float[4, 8] wide, float[8] bias, float[8, 4] narrow, float[4] gamma, float[4, 4] filters> {
  a = Transpose <perm = [0, 2, 3, 1]> (x)
  HEAD
  c = MatMul(b, wide)
  d = Add(bias, c)
  e = Relu(d)
  f = MatMul(e, narrow)
  g = Mul(gamma, f)
  h = Transpose <perm = [0, 3, 1, 2]> (g)
  y = Add(h, x)
}"""


def mlp(head: str) -> str:
    numbers = iter(np.random.default_rng(1).standard_normal(200).round(3))
    text = MLP.replace("HEAD", head).replace(", float[4, 4] filters", "")
    for shape, size in (("[4, 8] wide", 32), ("[8] bias", 8), ("[8, 4] narrow", 32)):
        text = text.replace(
            shape, f"{shape} = {{{', '.join(str(next(numbers)) for _ in range(size))}}}"
        )
    return text.replace("[4] gamma", "[4] gamma = {1, 2, 3, 4}")


def test_an_mlp_between_transposes_becomes_convolutions() -> None:
    result = applied(linear_to_conv, mlp("b = Identity(a)"), x=gaussian(1, 4, 3, 5))
    assert result.count == 2
    assert operators(result) == ["Identity", "Conv", "Relu", "Conv", "Mul", "Add"]


def test_an_mlp_behind_a_layer_norm_saves_nothing_and_stays() -> None:
    head = "b = LayerNormalization(a, gamma)"
    result = applied(linear_to_conv, mlp(head), x=gaussian(1, 4, 3, 5))
    assert (result.count, operators(result).count("MatMul")) == (0, 2)


def test_an_expand_stays_where_a_reader_needs_it() -> None:
    text = """example (float[2, 3] x, float[2, 1] z) => (float[2, 3] y, float[3, 2] t)
    <int64[2] shape = {2, 3}> {
      wide = Expand(z, shape)
      y = Div(x, wide)
      t = Transpose(wide)
    }"""
    result = applied(drop_expands, text, x=gaussian(2, 3), z=gaussian(2, 1))
    assert (result.count, operators(result)) == (1, ["Expand", "Div", "Transpose"])
    alone = text.replace("Div(x, wide)", "Mul(wide, wide)")
    assert applied(drop_expands, alone, x=gaussian(2, 3), z=gaussian(2, 1)).count == 1
