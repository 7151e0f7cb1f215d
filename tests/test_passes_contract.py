"""The contract of every pass: on its own example, on a model it has no business in, and on ONNX's
backend suite, whose table it prints: cases, those skipped, and how many each pass rewrote.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from backend_suite import NOT_RUNNABLE, Case, cases, load, rewritten, run, same
from support import conv_net

from edgeport.passes import EXACT_DB, all_passes, module_of, tolerance_db
from edgeport.passes.simplify import simplify
from edgeport.runtimes.worker import Limits, run_in_child

PASSES = [pytest.param(one, id=one.__name__) for one in all_passes()]
# onnxsim runs in a child process, a second each: it gets a sample of the suite, in one child.
SUITE_PASSES = [one for one in all_passes() if one is not simplify]
SAMPLE = 200
# The suite has one operator a case, and expansions of some into their parts.
UNREACHABLE = {
    "inline functions": "(no case has a local function)",
    "fold BatchNormalization": "(no case has a linear operator before a BatchNormalization)",
    "merge parallel convolutions": "(no case has two convolutions)",
    "merge identity": "(no case has a convolution beside a BatchNormalization)",
    "separate activation": "(no case has a product before an activation)",
    "single-pixel Conv to Gemm": "(no case has a view of rank 5 behind a convolution)",
    "mean before the view": "(no case has a mean of a transposed view)",
    "SiLU of few rows apart": "(no case has a SiLU behind a convolution)",
    "select before the view": "(no case selects from a transposed view)",
    "Linear to 1x1 Conv": "(no case has a MatMul between Transposes)",
    "split large kernels": "(no case has a kernel above 7)",
    "drop Expand": "(no case has an operator after an Expand)",
    "LayerNormalization over one axis": "(the cases also give the mean and deviation)",
    "Log of a quotient": "(no case has a Log after a Div)",
    "Pow of a constant to Exp": "(no case raises a constant)",
    "CumSum to MatMul": "(the axis is an input in all cases)",
    "pad the corner by Concat": "(no case pads the lower right corner alone)",
    "bounded warp": "(no case bounds the points that it samples)",
}


def feed_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns Gaussian floats and integers 0 or 1, for inputs of static shape."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        numbers = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feed[value.name] = np.asarray(numbers, dtype)
    return feed


def operators(model: ir.Model) -> list[tuple[str, str | None]]:
    return [(node.op_type, node.name) for graph in model.graphs() for node in graph]


@pytest.mark.parametrize("one", PASSES)
def test_its_example_is_rewritten_once_with_the_same_answer(one) -> None:
    module = module_of(one)
    example = onnx.parser.parse_model(module.EXAMPLE)
    onnx.checker.check_model(example, full_check=True)
    first = one(load(example))
    assert (first.name, first.refused) == (module.NAME, ())
    assert first.count >= 1
    after = ir.to_proto(first.model)
    onnx.checker.check_model(after, full_check=True)
    for seed in range(3):
        feed = feed_of(example, seed)
        reference, actual = run(example, feed), run(after, feed)
        assert reference is not None and actual is not None
        assert same(reference, actual, tolerance_db(one, EXACT_DB))
    once = operators(first.model)
    second = one(first.model)
    assert (second.count, operators(second.model)) == (0, once)


@pytest.mark.parametrize("one", PASSES)
def test_a_model_that_is_none_of_its_business_stays_as_it_is(one) -> None:
    given = load(conv_net())
    before = operators(given)
    result = one(given)
    assert (result.count, result.refused, operators(result.model)) == (0, (), before)


@pytest.mark.parametrize("one", PASSES)
def test_its_file_says_what_it_replaces(one) -> None:
    first = (module_of(one).__doc__ or "").partition("\n")[0]
    assert first[:1].isupper() and len(first) > 30


def test_names_are_unique() -> None:
    names = [module_of(one).NAME for one in all_passes()]
    assert len(set(names)) == len(names)


def _run_suite(picked: Sequence[Case]) -> tuple[Counter[str], Counter[str], list[str]]:
    """Returns per pass how many cases it rewrote, how many of them run nowhere, and what is wrong.

    Prints nothing: onnxscript's warnings on odd cases are no news.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    counts: Counter[str] = Counter()
    unrun: Counter[str] = Counter()
    bad = []
    limits = [tolerance_db(one, EXACT_DB) for one in SUITE_PASSES]
    for one, case, why in rewritten(SUITE_PASSES, picked, limits):
        name = module_of(one).NAME
        counts[name] += 1
        if why == NOT_RUNNABLE:
            unrun[name] += 1
        elif why:
            bad.append(f"{name}, {case.name}: {why}")
    return counts, unrun, bad


def test_the_whole_backend_suite_keeps_its_answers(capsys: pytest.CaptureFixture[str]) -> None:
    every, skipped = cases()
    counts, unrun, bad = _run_suite(every)
    names = [module_of(one).NAME for one in SUITE_PASSES]
    frozen = sum(case.name.endswith(", constants") for case in every)
    with capsys.disabled():
        print(f"\n{len(every)} models of {len(every) - frozen} cases; skipped: {dict(skipped)}")
        for name in names:
            told = UNREACHABLE.get(name, "")
            print(f"  {counts[name]:4} rewritten, {unrun[name]:3} run nowhere  {name}  {told}")
    assert bad == []
    reached = {name for name in names if counts[name] > unrun[name]}
    assert reached == set(names) - set(UNREACHABLE)


def test_a_sample_of_the_backend_suite_keeps_its_answers_in_onnxsim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, _ = cases()
    picked = random.Random(0).sample([case for case in every if _static(case)], SAMPLE)
    for index, case in enumerate(picked):
        onnx.save(case.model, tmp_path / f"{index}.onnx")
    run_in_child(
        "worker_targets:simplify_folder",
        {"folder": str(tmp_path)},
        stage="simplify",
        workdir=tmp_path,
        limits=Limits(300, 8 << 30),
    )
    made = {case.name: tmp_path / f"{index}.simple" for index, case in enumerate(picked)}
    kept = [case for case in picked if made[case.name].exists()]
    bad = []
    for case in kept:
        reference = run(case.model, case.feed)
        actual = run(onnx.load(made[case.name]), case.feed)
        if reference is not None and (actual is None or not same(reference, actual, EXACT_DB)):
            bad.append(case.name)
    with capsys.disabled():
        print(f"\n  onnxsim took {len(kept)} of a sample of {SAMPLE}")
    assert len(kept) > SAMPLE / 2
    assert bad == []


def _static(case: Case) -> bool:
    """Returns whether all inputs are tensors, which onnxsim's command takes."""
    return all(isinstance(value, np.ndarray) for value in case.feed.values())
