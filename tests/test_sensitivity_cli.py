"""`edgeport sensitivity`, and `edgeport export --precision auto`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import ON_HOST, OUT, TINY, Command, manifest_of, tree

SENSITIVITY = ("sensitivity", *TINY[1:])


def test_layers_come_worst_first(tmp_path: Path, factory: Path, run_cli: Command) -> None:
    before = tree(tmp_path)
    done = run_cli(*SENSITIVITY, "--json", "--precision", "w4a16")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["op"] for one in found] == ["Conv", "Conv"]  # the ReLU is part of its layer
    losses = [float(one["sqnr_db"]) for one in found]
    assert losses == sorted(losses)
    assert all(5 < loss < 60 for loss in losses)
    assert {one["macs"] for one in found} == {16 * 16 * 8 * 27, 16 * 16 * 4 * 8}
    assert tree(tmp_path) == before


def test_the_table_shows_as_many_as_asked(factory: Path, run_cli: Command) -> None:
    done = run_cli(*SENSITIVITY, "--top", "1")
    assert done.returncode == 0, done.stderr
    head, layer, rest = done.stdout.splitlines()
    assert head.split()[:2] == ["SQNR", "dB"]
    assert "Conv" in layer
    assert rest.startswith("and 1 layers")


@pytest.mark.parametrize(
    ("flags", "least_db", "kinds"),
    [
        (("--precision", "auto", "--min-sqnr", "20"), 20.0, {"w8a8"}),
        (("--precision", "auto", "--min-sqnr", "45"), 45.0, {"w8a8", "w8a16", "w16a16", "float"}),
        (("--precision", "w8a16", "--min-sqnr", "50"), 50.0, {"w8a16", "w16a16"}),
    ],
)
def test_the_budget_holds_and_the_way_is_printed(
    tmp_path: Path,
    factory: Path,
    run_cli: Command,
    flags: tuple[str, ...],
    least_db: float,
    kinds: set[str],
) -> None:
    done = run_cli("export", *TINY[1:], *ON_HOST, *OUT, *flags)
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(tmp_path / "out")
    (quantized,) = (one for one in manifest["artifacts"] if one["stage"] == "quantize")
    assert set(quantized["computed"].split("+")) <= kinds
    assert quantized["parity"][0]["value"] >= least_db
    assert manifest["options"]["min_sqnr"] == least_db
    steps = manifest["trade_off"]
    assert steps[-1]["sqnr_db"] >= least_db
    assert len(steps) == 1 or steps[0]["sqnr_db"] < least_db + 2
    for step in steps:
        assert f"note: {step['sqnr_db']:.1f} dB, {step['bytes'] / 1e6:.2f} MB" in done.stdout
        assert "of MACs in int8" in done.stdout


def test_what_cannot_be_held_ends_with_one_line(
    tmp_path: Path, factory: Path, run_cli: Command
) -> None:
    done = run_cli("export", *TINY[1:], *ON_HOST, *OUT, "--precision", "w8a16", "--min-sqnr", "200")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no choice of precisions holds 200 dB" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_another_calibration_gives_another_model(
    tmp_path: Path, factory: Path, run_cli: Command, method: str
) -> None:
    common = ("export", *TINY[1:], *ON_HOST, "--precision", "w8a8")
    for name, flags in (("a", ()), ("b", ("--calibration", method))):
        done = run_cli(*common, *flags, "-o", name)
        assert done.returncode == 0, done.stderr
    found = [manifest_of(tmp_path / name)["io_scales"] for name in ("a", "b")]
    assert found[0] != found[1]
    assert manifest_of(tmp_path / "b")["options"]["calibration"] == method
