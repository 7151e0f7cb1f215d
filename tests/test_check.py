"""`edgeport check`: on a small padre with faults put into it, and on a user's own claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import conv_net, gaussian, save

from benchmarks.gate_faults import AS_IT_IS, NOTICED, check_padre
from edgeport.baseline import read_baseline
from edgeport.catalog import shipped_recipes
from edgeport.check import check, find_subjects
from edgeport.cli import main
from edgeport.errors import InputError, UnknownName

BLOCK = """(
            "one block, 4,096 tokens",
            MappingProxyType({"part": "block", "grid": 64, "trained": UNTRAINED}),
        ),"""
SMALLER = {
    '"precision": "w8a16"': '"precision": "w8a16", "options": {"depth": 2, "dim": 48}',
    '("the net as exported", MappingProxyType({})),': "",
    BLOCK: "",
    'evaluate="edgeport_recipes.padre.evaluate:measure",': "",
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["check", *words])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


# Faults


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    file = folder / "baseline.jsonl"
    words = ("--baseline", str(file), "--update-baseline", "--why", "the first numbers")
    check_padre(AS_IT_IS, folder, *words, smaller=SMALLER)
    return file


def changes(verdicts: list[dict[str, Any]]) -> dict[str, str]:
    return {one["metric"]: one["outcome"] for one in verdicts if one["kind"] == "regression"}


def test_what_did_not_change_holds(baseline: Path, tmp_path: Path) -> None:
    _, verdicts = check_padre(AS_IT_IS, tmp_path, "--baseline", str(baseline), smaller=SMALLER)
    found = changes(verdicts)
    assert len(found) == 6 and set(found.values()) == {"pass"}


@pytest.mark.parametrize("fault", [one for one in NOTICED if one != "slower"])
def test_a_fault_fails_the_gate_and_is_named(baseline: Path, tmp_path: Path, fault: str) -> None:
    code, verdicts = check_padre(fault, tmp_path, "--baseline", str(baseline), smaller=SMALLER)
    assert code == 1 and changes(verdicts)[NOTICED[fault]] == "fail"
    stopped = [one["metric"] for one in verdicts if "the export failed" in one["reason"]]
    assert ("sqnr_db:qnn_context_binary" in stopped) == (fault == "a node on the CPU")


# A user's own claims


def project(folder: Path, *claims: str) -> None:
    save(conv_net(), folder / "net.onnx")
    tables = "".join(
        f'[[claim]]\nsource = "net.onnx"\ndevice = "pixel-6"\n{one}\n' for one in claims
    )
    (folder / "edgeport.toml").write_text(tables)


SQNR = 'metric = "sqnr_db:onnx"\nop = ">="\nlimit = {limit}\nprovenance = ["host"]\nwhy = "ours"'


@pytest.mark.parametrize(("limit", "code", "outcome"), [("1e9", 0, "pass"), ("9", 1, "fail")])
def test_a_claim_of_edgeport_toml_is_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: str,
    code: int,
    outcome: str,
) -> None:
    size = SQNR.format(limit=limit).replace("sqnr_db", "size_bytes").replace(">=", "<=")
    project(tmp_path, size + '\ntarget_runtime = "onnx"')
    monkeypatch.chdir(tmp_path)
    left, out, _ = run(capsys, "--json")
    (verdict,) = json.loads(out)["verdicts"]
    assert (left, verdict["outcome"], verdict["why"]) == (code, outcome, "ours")
    assert verdict["subject"] == "net.onnx float on pixel-6, onnx"


def test_a_speedup_over_another_model_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = (
        'metric = "speedup"\nop = ">="\nlimit = 0.2\nprovenance = ["host"]\nbaseline = "old.onnx"'
    )
    project(tmp_path, claim + '\ntarget_runtime = "onnx"')
    save(conv_net(), tmp_path / "old.onnx")
    monkeypatch.chdir(tmp_path)
    steps: list[str] = []
    first = check(baseline=tmp_path / "none.jsonl", seconds=3.0)
    (verdict,) = first.verdicts
    assert verdict.outcome in ("pass", "inconclusive")  # tests run beside it
    assert verdict.measurement is not None
    assert verdict.measurement.noise_floor is not None
    again = check(baseline=tmp_path / "none.jsonl", seconds=3.0, progress=steps.append)
    assert again.verdicts == first.verdicts and not any("block" in step for step in steps)


def test_the_baseline_is_written_with_a_reason_and_then_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, SQNR.format(limit="60") + '\ntarget_runtime = "onnx"')
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "--update-baseline")[0] == 2
    assert not (tmp_path / "edgeport-baseline.jsonl").exists()
    code, out, _ = run(capsys, "--update-baseline", "--why", "the first numbers")
    assert code == 0 and '+{"subject": "net.onnx float on pixel-6, onnx"' in out
    file = tmp_path / "edgeport-baseline.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["why"] for line in lines} == {"the first numbers"}
    size = next(line for line in lines if line["metric"] == "size_bytes:onnx")
    size["value"] -= 1.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = run(capsys, "--json")
    failed = [one for one in json.loads(out)["verdicts"] if one["outcome"] == "fail"]
    assert code == 1 and [one["metric"] for one in failed] == ["size_bytes:onnx"]


@pytest.mark.parametrize(("op", "now", "outcome"), [(">=", 0.9, "fail"), ("<=", 0.9, "pass")])
def test_a_users_own_metric_is_held_at_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, now: float, outcome: str
) -> None:
    """Which way is better follows from the claim: a loss may fall, an accuracy may not."""
    limit = 0.5 if op == ">=" else 2
    claim = f'metric = "share"\nop = "{op}"\nlimit = {limit}\nprovenance = ["host"]\n'
    more = 'data = "val.npz"\nevaluate = "metrics.py:share"\ntarget_runtime = "onnx"'
    project(tmp_path, claim + more)
    np.savez(tmp_path / "val.npz", image=gaussian([4, 3, 16, 16]), label=np.arange(4))
    monkeypatch.chdir(tmp_path)

    def score(value: float) -> None:
        text = f"def share(outputs, targets):\n    return {value} * len(targets['label']) / 4\n"
        (tmp_path / "metrics.py").write_text(text)

    score(1.0)
    file = tmp_path / "baseline.jsonl"
    first = check(baseline=file, update=True, why="the first numbers")
    assert [one.outcome for one in first.verdicts] == ["pass"]
    score(now)
    found = check(baseline=file).verdicts
    changed = {one.metric: one.outcome for one in found if one.metric.startswith("share:")}
    assert set(changed) >= {"share:capture", "share:passes"} and set(changed.values()) == {outcome}


def test_nothing_judged_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = SQNR.format(limit="1").replace('"host"', '"device"') + '\ntarget_runtime = "onnx"'
    project(tmp_path, device)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys)
    assert code == 1 and "nothing was judged" in out


def test_missing_fails_only_a_strict_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = SQNR.format(limit="1").replace('"host"', '"device"') + '\ntarget_runtime = "onnx"'
    project(tmp_path, SQNR.format(limit="1") + '\ntarget_runtime = "onnx"', device)
    monkeypatch.chdir(tmp_path)
    assert run(capsys)[0] == 0
    assert run(capsys, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ('metric = "sqnr_db"', "op is missing"),
        (SQNR.format(limit='"a"'), "limit 'a' is of the wrong type"),
        (SQNR.format(limit="1").replace(">=", "=="), "neither <= nor >="),
        (SQNR.format(limit="1").replace('"host"', '"phone"'), "provenance"),
        (SQNR.format(limit="1") + "\nprecison = 1", "precison"),
        (SQNR.format(limit="1") + '\ndata = "x.npz"', "belong together"),
    ],
)
def test_a_claim_that_is_wrong_names_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str, said: str
) -> None:
    project(tmp_path, claim)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, UnknownName), match=r"\[\[claim\]\] 1") as raised:
        find_subjects([])
    assert said in str(raised.value)


def test_without_claims_edgeports_own_recipes_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [one.source for one in find_subjects([])] == list(shipped_recipes())


def test_every_recipe_says_how_its_claims_are_judged_and_has_a_baseline() -> None:
    """And padre's is what the repository holds: each metric that a change could make worse."""
    known = read_baseline(Path(__file__).parents[1] / "benchmarks" / "baseline.jsonl")
    for recipe in shipped_recipes().values():
        assert recipe.claims and all(claim.why for claim in recipe.claims)
        (subject,) = find_subjects([recipe.name])
        metrics = {one.metric for one in known if one.subject == subject.name}
        assert {pair.metric for pair in subject.pairs} <= metrics
        graph = {"sqnr_db:onnx", "size_bytes:onnx", "peak_activation_bytes:onnx"}
        written = {"sqnr_db:webgpu", "size_bytes:webgpu", "speedup:webgpu"}
        assert (written if recipe.exporter else graph) <= metrics
    assert all(one.why for one in known)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("padr",), "padr"),
        (("padre", "--seconds", "0"), "--seconds 0"),
        (("padre", "--update-baseline"), "takes a reason"),
        (("padre", "--update-baseline", "--why", "x", "--baseline", "no/b.jsonl"), "no/b.jsonl"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and said in err and len(err.strip().splitlines()) == 1


RECIPE = """
from edgeport.types import Recipe, TensorSpec

RECIPE = Recipe(
    name="mine",
    title="mine",
    paper="none",
    variants={{"net": "edgeport_recipes.padre.model:padre2"}},
    default_variant="net",
    inputs=lambda **_: (TensorSpec("x", "float32", (1, 2)),),
    calibration="edgeport_recipes._shared.images:feeds",
    check={check},
)
"""


@pytest.mark.parametrize(
    ("check_options", "said"),
    [("{}", "does not say how it is checked"), ('{"devise": "s24"}', "devise")],
)
def test_a_users_recipe_says_how_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_options: str, said: str
) -> None:
    (tmp_path / "edgeport.toml").write_text('[recipes]\npaths = ["mine"]\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.py").write_text(RECIPE.format(check=check_options))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        find_subjects(["mine"])


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="padr"):
        check(["padr"], baseline=tmp_path / "none.jsonl")
