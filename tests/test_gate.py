"""The gate's rules, and the baseline's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeport.baseline import read_baseline, updated, write_baseline
from edgeport.errors import InputError
from edgeport.gate import RULES, Known, about, judge_changes, judge_claims
from edgeport.types import Claim, Measurement

MACHINE = "a processor, 2 cores, 2 threads"
SQNR = Measurement("sqnr_db:tflite", 30.0, "dB", "host")
SPEED = Measurement("speedup:block", 2.0, "ratio", "host", interval=(1.96, 2.04), noise_floor=0.02)


def claim(metric: str, op: str, limit: float, *provenance: str) -> Claim:
    return Claim(metric, op, limit, provenance or ("host",), "the paper: 2x")


def outcome(one: Claim, *measured: Measurement) -> str:
    (verdict,) = judge_claims("net", [one], measured)
    assert (verdict.subject, verdict.kind, verdict.why) == ("net", "claim", "the paper: 2x")
    return verdict.outcome


# Claims


@pytest.mark.parametrize(
    ("metric", "limit", "expected"),
    [
        ("sqnr_db:tflite", 29.0, "pass"),
        ("sqnr_db", 29.0, "pass"),
        ("sqnr_db", 31.0, "fail"),
        ("sqnr_db:onnx", 1.0, "missing"),
        ("sqnr", 1.0, "missing"),
    ],
)
def test_a_claim_is_about_its_metric(metric: str, limit: float, expected: str) -> None:
    assert outcome(claim(metric, ">=", limit), SQNR) == expected


def test_the_worst_of_what_a_claim_is_about_decides() -> None:
    worse = replace(SQNR, metric="sqnr_db:onnx", value=10.0)
    (verdict,) = judge_claims("net", [claim("sqnr_db", ">=", 20.0)], [SQNR, worse])
    assert verdict.outcome == "fail" and verdict.measurement == worse


@pytest.mark.parametrize("provenance", ["emulated", "modelled", "host"])
def test_another_provenance_is_missing_and_says_which(provenance: str) -> None:
    one = replace(SPEED, provenance=provenance)
    (verdict,) = judge_claims("net", [claim("speedup", ">=", 1.0, "device")], [one])
    assert verdict.outcome == "missing" and verdict.reason == f"measured as {provenance} only"


@pytest.mark.parametrize(
    ("op", "limit", "expected"),
    [
        (">=", 1.9, "pass"),
        (">=", 2.1, "fail"),
        (">=", 1.99, "inconclusive"),
        (">=", 1.965, "inconclusive"),  # inside the floor, below the interval's end
        ("<=", 2.1, "pass"),
        ("<=", 1.9, "fail"),
        ("<=", 2.0, "inconclusive"),
    ],
)
def test_a_ratio_of_times_is_judged_with_its_noise(op: str, limit: float, expected: str) -> None:
    assert outcome(claim("speedup", op, limit), SPEED) == expected


def test_a_number_without_noise_is_judged_as_it_is() -> None:
    one = replace(SQNR, interval=(10.0, 50.0))
    assert outcome(claim("sqnr_db", ">=", 30.0), one) == "pass"


def test_a_prefix_is_no_metric() -> None:
    assert about("size_bytes", "size_bytes:onnx")
    assert not about("size", "size_bytes:onnx")


# Changes


def known(one: Measurement, **changes: object) -> Known:
    fields = ("metric", "value", "unit", "provenance", "noise_floor")
    timed = one.noise_floor is not None
    start = Known(
        subject="net",
        **{name: getattr(one, name) for name in fields},
        interval=one.interval if timed else None,
        machine=MACHINE if timed else "",
    )
    return replace(start, **changes)


def change(before: Known, *now: Measurement, machine: str = MACHINE) -> tuple[str, str]:
    (verdict,) = judge_changes("net", [before], now, machine)
    return verdict.outcome, verdict.reason


@pytest.mark.parametrize(
    ("value", "expected"), [(30.0, "pass"), (29.6, "pass"), (27.0, "fail"), (33.0, "pass")]
)
def test_parity_may_fall_by_its_tolerance(value: float, expected: str) -> None:
    assert change(known(SQNR), replace(SQNR, value=value))[0] == expected


@pytest.mark.parametrize("metric", ["size_bytes:onnx", "cpu_ops:tflite", "peak_activation_bytes"])
def test_sizes_and_placement_are_exact(metric: str) -> None:
    one = Measurement(metric, 100.0, "B", "host")
    assert change(known(one), one)[0] == "pass"
    assert change(known(one), replace(one, value=101.0))[0] == "fail"
    better, reason = change(known(one), replace(one, value=99.0))
    assert better == "pass" and "--update-baseline" in reason


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, "pass"), (1.2, "pass"), (0.9, "fail"), (0.96, "inconclusive")]
)
def test_a_speedup_may_fall_within_the_noise(factor: float, expected: str) -> None:
    assert change(known(SPEED), faster(factor))[0] == expected


def faster(factor: float) -> Measurement:
    ends = (1.96 * factor, 2.04 * factor)
    return replace(SPEED, value=2.0 * factor, interval=ends)


def test_twice_the_floor_is_a_fall() -> None:
    noisy = replace(SPEED, noise_floor=0.08)
    assert change(known(noisy), replace(faster(1 / 1.16), noise_floor=0.08))[0] == "fail"
    assert change(known(noisy), replace(faster(0.95), noise_floor=0.08))[0] != "fail"


def test_a_speedup_of_another_machine_says_nothing() -> None:
    outcome_, reason = change(known(SPEED), faster(0.5), machine="another")
    assert outcome_ == "inconclusive" and MACHINE in reason


def test_what_is_no_longer_measured_is_missing() -> None:
    assert change(known(SQNR))[0] == "missing"
    assert change(known(SQNR), replace(SQNR, provenance="emulated"))[0] == "missing"


def test_other_subjects_are_left_alone() -> None:
    assert judge_changes("other", [known(SQNR)], [SQNR], MACHINE) == []


def test_exact_parity_stays_exact() -> None:
    exact = replace(SQNR, value=float("inf"))
    assert change(known(exact), exact)[0] == "pass"
    assert change(known(exact), SQNR)[0] == "fail"


def test_every_rule_says_which_way_is_better() -> None:
    assert {rule.better for rule in RULES.values()} == {"less", "more"}


# The file


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "baseline.jsonl"
    exact = replace(SQNR, metric="sqnr_db:onnx", value=float("inf"))
    first = updated([], [("net", SPEED), ("net", SQNR), ("net", exact)], MACHINE, "the first")
    diff = write_baseline(file, first)
    assert read_baseline(file) == first and diff.count("\n+{") == 3
    assert {one.why for one in first} == {"the first"}
    assert [one.machine for one in first if one.metric.startswith("sqnr")] == ["", ""]


def test_only_what_changed_gets_the_new_reason(tmp_path: Path) -> None:
    file = tmp_path / "baseline.jsonl"
    other = known(SQNR, subject="other")
    first = updated([other], [("net", SPEED), ("net", SQNR)], MACHINE, "the first")
    write_baseline(file, first)
    now = [("net", SPEED), ("net", replace(SQNR, value=31.0))]
    second = updated(first, now, MACHINE, "a better quantizer")
    diff = write_baseline(file, second)
    assert other in second and len(second) == 3
    assert diff.count("\n-{") == diff.count("\n+{") == 1 and "a better quantizer" in diff


def test_a_number_that_is_gone_leaves_the_baseline() -> None:
    first = updated([], [("net", SPEED), ("net", SQNR)], MACHINE, "the first")
    assert [one.metric for one in updated(first, [("net", SQNR)], MACHINE, "w")] == [SQNR.metric]


@pytest.mark.parametrize("line", ["{", "[]", '{"subject": "net"}', '{"interval": null, "x": 1}'])
def test_a_line_that_is_none_names_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "baseline.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_baseline(file)


def test_no_file_is_an_empty_baseline(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "none.jsonl") == []
