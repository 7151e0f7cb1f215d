"""`edgeport run`: an export's files at a place, judged and recorded in its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import LIMITS, conv_net, needs_compiler, save

import edgeport
from edgeport.errors import InputError, StageFailed
from edgeport.places import JOURNAL, find_place
from edgeport.places.same_machine import boot_id, provenance_of
from edgeport.running import read_manifest, run_at


@needs_compiler
def test_local_gives_what_the_export_gave_and_records_it(export: Path) -> None:
    runs = run_at(export, find_place("local"), limits=LIMITS)
    assert [run.artifact.runtime for run in runs] == ["onnx", "qnn_context_binary"]
    assert [run.artifact.parity[0].provenance for run in runs] == ["host", "emulated"]
    manifest = read_manifest(export)
    first = {
        one["runtime"]: one["parity"] for one in manifest["artifacts"] if one["stage"] == "run"
    }
    for run, recorded in zip(runs, manifest["run"]["places"], strict=True):
        assert run.artifact.to_dict()["parity"] == first[run.artifact.runtime]
        assert recorded == json.loads(json.dumps(run.to_dict()))
    run_at(export, find_place("local"), ["onnx"], limits=LIMITS)
    assert (
        len(read_manifest(export)["run"]["places"]) == 2
    )  # it stands in the place of the earlier one


@needs_compiler
def test_a_missed_tolerance_is_an_error_after_it_was_recorded(export: Path) -> None:
    manifest = read_manifest(export)
    manifest["options"]["tolerance_db"] = 90.0
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StageFailed, match=r"on local is .* dB from the reference; 90 dB"):
        run_at(export, find_place("local"), ["onnx"], limits=LIMITS)
    manifest = read_manifest(export)
    assert any(one["artifact"]["runtime"] == "onnx" for one in manifest["run"]["places"])
    manifest["options"]["tolerance_db"] = None
    (export / "manifest.json").write_text(json.dumps(manifest))


@needs_compiler
def test_an_export_that_has_run_somewhere_may_be_replaced(export: Path, made: Path) -> None:
    run_at(export, find_place("local"), ["onnx"], limits=LIMITS)
    (export / JOURNAL).write_text('{"job": "j1"}\n')
    edgeport.export(
        str(made.parent / "net.onnx"),
        device="s24",
        precision="w8a8",
        output_dir=export,
        on="local",
    )
    assert (export / JOURNAL).read_text() == '{"job": "j1"}\n'
    assert [one["place"] for one in read_manifest(export)["run"]["places"]] == ["local", "local"]


@needs_compiler
def test_integer_inputs_and_outputs_are_compared_as_real_numbers(tmp_path: Path) -> None:
    made = edgeport.export(
        str(save(conv_net(), tmp_path / "net.onnx")),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        quantize_io=True,
        output_dir=tmp_path / "out",
    )
    for run in run_at(tmp_path / "out", find_place("local"), limits=LIMITS):
        exported = made.artifact("run", run.artifact.runtime)
        assert run.artifact.parity[0].value == exported.parity[0].value > 30


def test_what_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no export: manifest\.json cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="was not written by edgeport"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"generator": "edgeport", "schema_version": 1}')
    with pytest.raises(InputError, match="has schema 1, this edgeport reads 2: export it again"):
        read_manifest(tmp_path)


@needs_compiler
def test_a_changed_file_is_named(export: Path) -> None:
    before = (export / "quantized.onnx").read_bytes()
    (export / "quantized.onnx").write_bytes(before[:-1])
    with pytest.raises(InputError, match=r"quantized\.onnx was changed"):
        read_manifest(export)
    (export / "quantized.onnx").write_bytes(before)
    with pytest.raises(InputError, match="has no tflite; it has onnx, qnn_context_binary"):
        run_at(export, find_place("local"), ["tflite"], limits=LIMITS)


def test_places_by_name() -> None:
    assert find_place("local").text == "local"
    with pytest.raises(InputError, match="a place is local, hub, ssh://user@host or adb:SERIAL"):
        find_place("moon")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1", "0.0.0.0"])
def test_this_machine_by_any_address_is_the_host(host: str) -> None:
    assert provenance_of(host) == "host"


def test_another_machine_is_a_device_unless_its_kernel_is_ours() -> None:
    assert provenance_of("192.0.2.1") == "device"  # TEST-NET-1: nobody's address
    assert provenance_of("192.0.2.1", "another boot") == "device"
    assert provenance_of("192.0.2.1", boot_id()) == "host"
    assert provenance_of("no-such-host.invalid") == "device"
