"""The forms in which each pass meets its pattern, and those that it must leave."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from backend_suite import load, run, same
from onnx import TensorProto, helper
from support import gaussian, model, node

from edgeport.passes.activation import fuse_activations
from edgeport.passes.batch_norm import fold_batch_norm
from edgeport.passes.dft import dft_to_matmul
from edgeport.passes.einsum import einsum_to_matmul
from edgeport.passes.gather_view import gather_to_view
from edgeport.passes.layer_norm import fuse_layer_norm
from edgeport.passes.merge_identity import merge_identity
from edgeport.passes.parallel_conv import merge_parallel_convolutions


def rewrite(one, proto: onnx.ModelProto, scale: float = 1.0) -> tuple[int, list[str], tuple]:
    """Returns the count, the operators after it, and the refusals; the answer must be the same."""
    onnx.checker.check_model(proto, full_check=True)
    feed = {
        value.name: gaussian([d.dim_value for d in value.type.tensor_type.shape.dim], 1, scale)
        for value in proto.graph.input
    }
    result = one(load(proto))
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    reference, actual = run(proto, feed), run(after, feed)
    assert reference is not None and actual is not None
    assert same(reference, actual, 100)
    return result.count, [n.op_type for n in after.graph.node], result.refused


EQUATIONS = {
    "ij,jk->ik": ((3, 4), (4, 5)),
    "bhqd,bhkd->bhqk": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "byhwc,wkc->byhwk": ((1, 2, 3, 4, 8), (4, 6, 8)),
    "nctkv,kvw->nctw": ((2, 3, 4, 2, 5), (2, 5, 6)),
    "i,j->ij": ((3,), (4,)),
    "i,i->": ((3,), (3,)),
    "bi,bi->b": ((2, 3), (2, 3)),
    "abc,cd->ad": ((2, 3, 4), (4, 5)),
    "ab,cd->ac": ((2, 3), (4, 5)),
    "ab,b->ba": ((2, 3), (3,)),
    "...ij,...jk->...ik": ((2, 6, 3, 4), (2, 6, 4, 5)),
    "ij,jk": ((3, 4), (4, 5)),
    "bij,kj->bik": ((2, 3, 4), (5, 4)),
    "hwc->chw": ((2, 3, 4),),
    "ijk->j": ((2, 3, 4),),
    "...i->...": ((2, 3, 4),),
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str, constant: bool) -> None:
    shapes = EQUATIONS[equation]
    names = ["a", "b"][: len(shapes)]
    output = np.einsum(equation, *(np.zeros(shape) for shape in shapes)).shape
    inputs = dict(zip(names, shapes))
    weights = {"b": gaussian(inputs.pop("b"))} if constant and len(shapes) == 2 else {}
    proto = model(
        [node("Einsum", " ".join(names), "y", equation=equation)], inputs, {"y": output}, weights
    )
    count, operators, refused = rewrite(einsum_to_matmul, proto)
    assert (count, refused) == (1, ())
    assert "Einsum" not in operators


@pytest.mark.parametrize(
    ("equation", "shapes", "output", "word"),
    [
        ("ii->i", ((3, 3),), (3,), "diagonal"),
        ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 5)), (2, 5), "3 operands"),
        ("...i,...i->...", ((2, 3), (1, 3)), (2,), "broadcasts"),
    ],
)
def test_einsum_that_is_refused(equation, shapes, output, word) -> None:
    names = "abc"[: len(shapes)]
    nodes = [node("Einsum", " ".join(names), "y", equation=equation)]
    proto = model(nodes, dict(zip(names, shapes)), {"y": output})
    count, operators, (sentence,) = rewrite(einsum_to_matmul, proto)
    assert (count, operators) == (0, ["Einsum"])
    assert sentence.startswith("n_y: ") and word in sentence


@pytest.mark.parametrize("axis", [1, 2, -2])
@pytest.mark.parametrize(
    ("parts", "mode"),  # onnx defines one side for real input only
    [(1, {}), (1, {"onesided": 1}), (1, {"inverse": 1}), (2, {}), (2, {"inverse": 1})],
)
@pytest.mark.parametrize("length", [None, 4, 9])
def test_dft(parts: int, axis: int, mode: dict[str, int], length: int | None) -> None:
    shape = [2, 6, 5, parts]
    bins = length or shape[axis]
    out = [*shape[:3], 2]
    out[axis] = bins // 2 + 1 if mode.get("onesided") else bins
    weights = {"axis": np.array(axis, np.int64)}
    if length:
        weights["n"] = np.array(length, np.int64)
    dft = helper.make_node("DFT", ["x", "n" if length else "", "axis"], ["y"], name="dft", **mode)
    count, operators, _ = rewrite(dft_to_matmul, model([dft], {"x": shape}, {"y": out}, weights))
    assert count == 1 and operators.count("MatMul") == 1 and "DFT" not in operators


def strided(shape, strides, base=0) -> np.ndarray:
    grids = np.indices(shape)
    return np.asarray(base + sum(s * g for s, g in zip(strides, grids)), np.int64)


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (strided((1, 24, 1, 1), (0, 1, 0, 0)), ["Reshape"]),
        (strided((4, 6), (1, 4)), ["Reshape", "Transpose"]),
        (strided((2, 3, 4), (1, 8, 2)), ["Reshape", "Transpose"]),
        (strided((12,), (1,), 6), ["Reshape", "Slice"]),
        (strided((12,), (2,), 1), ["Reshape", "Slice", "Reshape"]),
        (strided((2, 3), (12, 1), 3), ["Reshape", "Slice"]),
        (strided((24,), (1,)) - 24, ["Reshape"]),
    ],
)
def test_gather_that_is_a_view(indices, expected) -> None:
    nodes = [node("Reshape", "x flat", "line"), node("Gather", "line i", "y")]
    weights = {"flat": np.array([-1]), "i": indices}
    proto = model(nodes, {"x": [2, 3, 4]}, {"y": list(indices.shape)}, weights)
    count, operators, _ = rewrite(gather_to_view, proto)
    assert (count, operators) == (1, expected)


@pytest.mark.parametrize(
    "indices",
    [np.array([0, 1, 3]), np.array([5, 4, 3]), strided((3, 3), (1, 1)), np.array([0, 0])],
    ids=["uneven", "backwards", "overlapping", "repeated"],
)
def test_gather_that_is_no_view_stays(indices) -> None:
    proto = model(
        [node("Gather", "x i", "y")], {"x": [24]}, {"y": list(indices.shape)}, {"i": indices}
    )
    assert rewrite(gather_to_view, proto)[:2] == (0, ["Gather"])


def statistics(channels: int) -> dict[str, np.ndarray]:
    names = zip("sbmv", range(4))
    arrays = {name: gaussian([channels], 10 + seed) for name, seed in names}
    return {**arrays, "v": arrays["v"] ** 2 + 0.1}


LINEAR = {
    "Conv": ([node("Conv", "x w", "c")], [1, 4, 5, 5], [6, 4, 1, 1], [1, 6, 5, 5]),
    "ConvTranspose of groups": (
        [node("ConvTranspose", "x w", "c", group=2)],
        [1, 4, 5, 5],
        [4, 3, 1, 1],
        [1, 6, 5, 5],
    ),
    "Gemm": ([node("Gemm", "x w", "c", transB=1)], [5, 4], [6, 4], [5, 6]),
    "MatMul": ([node("MatMul", "x w", "c")], [5, 4], [4, 6], [5, 6]),
    "MatMul, Add, Transpose": (
        [
            node("MatMul", "x w", "p"),
            node("Add", "p b", "a"),
            node("Transpose", "a", "c", perm=[0, 2, 1]),
        ],
        [2, 5, 4],
        [4, 6],
        [2, 6, 5],
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_batch_norm_after_a_linear_operator(case: str) -> None:
    nodes, shape, weight, out = LINEAR[case]
    last = node("BatchNormalization", "c s b m v", "y")
    proto = model(
        [*nodes, last], {"x": shape}, {"y": out}, {"w": gaussian(weight), **statistics(6)}
    )
    count, operators, _ = rewrite(fold_batch_norm, proto)
    assert count == 1 and "BatchNormalization" not in operators


def test_batch_norm_stays_where_the_linear_operator_has_another_reader() -> None:
    nodes = [node("MatMul", "x w", "c"), node("BatchNormalization", "c s b m v", "n")]
    nodes.append(node("Add", "n c", "y"))
    weights = {"w": gaussian([4, 6]), **statistics(6)}
    assert rewrite(fold_batch_norm, model(nodes, {"x": [5, 4]}, {"y": [5, 6]}, weights))[0] == 0


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_layer_norm_in_parts(axis: int, square: str) -> None:
    column = [6, 1, 1] if axis == 1 else [5]
    nodes = [
        node("ReduceMean", "x axes", "m"),
        node("Sub", "x m", "d"),
        node("Mul", "d d", "q") if square == "Mul" else node("Pow", "d two", "q"),
        node("ReduceMean", "q axes", "v"),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "s"),
        node("Div", "d s", "n"),
        node("Mul", "n g", "z"),
        node("Add", "z b", "y"),
    ]
    weights = {
        "axes": np.array([axis]),
        "eps": np.float32(1e-5),
        "two": np.float32(2),
        "g": gaussian(column, 2),
        "b": gaussian(column, 3),
    }
    proto = model(nodes, {"x": [2, 6, 4, 5]}, {"y": [2, 6, 4, 5]}, weights)
    count, operators, _ = rewrite(fuse_layer_norm, proto)
    parts = [n.op_type for n in nodes]  # channels-first, they need no Transpose
    assert (count, operators) == ((0, parts) if axis == 1 else (1, ["LayerNormalization"]))


CHAINS = {
    "Gelu": "d=Div(x,r) e=Erf(d) a=Add(e,one) h=Mul(x,half) y=Mul(h,a)",
    "Gelu of Mul": "d=Mul(x,i) e=Erf(d) a=Add(one,e) h=Mul(a,half) y=Mul(h,x)",
    "HardSwish": "a=Add(x,three) c=Clip(a,zero,six) m=Mul(x,c) y=Div(m,six)",
    "HardSwish of HardSigmoid": "s=HardSigmoid<alpha=0.16666667,beta=0.5>(x) y=Mul(x,s)",
    "Mish": "s=Softplus(x) t=Tanh(s) y=Mul(x,t)",
}
SCALARS = {"r": 2**0.5, "i": 0.5**0.5, "one": 1, "half": 0.5, "three": 3, "zero": 0, "six": 6}


def chain(text: str) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 21]> g (float[2, 50] x) => (float[2, 50] y)'
    proto = onnx.parser.parse_model(f"{header} {{ {text} }}")
    for name, value in SCALARS.items():
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        proto.graph.initializer.append(tensor)
    return proto


@pytest.mark.parametrize("case", CHAINS)
def test_activation_in_parts(case: str) -> None:
    count, operators, _ = rewrite(fuse_activations, chain(CHAINS[case]), 3.0)
    assert (count, operators) == (1, [case.split()[0]])


@pytest.mark.parametrize(
    "text",
    [
        "d=Div(x,r) e=Erf(d) a=Add(e,one) h=Mul(x,half) m=Mul(h,a) y=Add(m,x)",
        "e=Erf(x) a=Add(e,one) h=Mul(x,half) y=Mul(h,a)",
        "a=Add(x,three) c=Clip(a,zero,six) y=Mul(x,c)",
        "s=HardSigmoid(x) y=Mul(x,s)",
    ],
    ids=["used again", "without the root", "six times", "another slope"],
)
def test_what_only_looks_like_an_activation(text: str) -> None:
    proto = chain(text)
    count, operators, _ = rewrite(fuse_activations, proto, 3.0)
    kept = [n.op_type for n in proto.graph.node]
    assert operators == (["Gelu", "Add"] if text.endswith("Add(m,x)") else kept)
    assert count == text.endswith("Add(m,x)")


@pytest.mark.parametrize("operator", ["Add", "Sub"])
@pytest.mark.parametrize("groups", [1, 6])
def test_three_parallel_branches(operator: str, groups: int) -> None:
    nodes = [
        node("Conv", "x w1", "c1", pads=[1, 1, 1, 1], group=groups),
        node("Conv", "x w2", "c2", group=groups),
        node("BatchNormalization", "x s b m v", "n"),
        node("Add", "c2 n", "a"),
        node(operator, "a c1", "y"),
    ]
    width = 6 // groups
    weights = {"w1": gaussian([6, width, 3, 3]), "w2": gaussian([6, width, 1, 1], 1)}
    proto = model(nodes, {"x": [1, 6, 5, 5]}, {"y": [1, 6, 5, 5]}, {**weights, **statistics(6)})
    assert rewrite(merge_identity, proto)[:2] == (1, ["Conv", "Conv", operator])
    both = load(proto)
    merge_identity(both)
    assert rewrite(merge_parallel_convolutions, ir.to_proto(both))[:2] == (1, ["Conv"])


def test_branches_with_other_strides_or_centres_stay() -> None:
    nodes = [
        node("Conv", "x w", "c1", pads=[0, 0, 2, 2]),
        node("Conv", "x w", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c1 c2", "y"),
    ]
    weights = {"w": gaussian([6, 6, 3, 3])}
    proto = model(nodes, {"x": [1, 6, 5, 5]}, {"y": [1, 6, 5, 5]}, weights)
    assert rewrite(merge_parallel_convolutions, proto)[0] == 0
