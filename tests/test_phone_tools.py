"""What benchmark_model and qnn-net-run print and write: text recorded in their formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from phone_tools import LITE_NEW, LITE_OLD, PROFILE, tool, unpacked_sdk
from support import conv_net, save

from edgeport.errors import InputError, StageFailed
from edgeport.places import benchmark_model, qnn_net_run
from edgeport.types import TensorSpec


def test_benchmark_model_of_today() -> None:
    report = benchmark_model.parse(LITE_NEW)
    assert report == benchmark_model.Report(
        4125, 9125, 2990.25, 1003, 2940, 4200, 75, 2981, 21.75 * 2**20, 8.5 * 2**20
    )
    found = {m.metric: m for m in benchmark_model.measurements(report, "device", {"a": "b"})}
    assert {name: one.value for name, one in found.items()} == {
        "latency_ms": 2.981,
        "latency_mean_ms": 2.99025,
        "first_latency_ms": 9.125,
        "load_ms": 4.125,
        "peak_bytes": 21.75 * 2**20,
        "memory_growth_bytes": 8.5 * 2**20,
    }
    assert {one.provenance for one in found.values()} == {"device"}
    assert found["latency_mean_ms"].environment["min_ms"] == "2.94"
    assert found["latency_mean_ms"].warnings == ("a mean: benchmark_model gives no samples",)


def test_benchmark_model_of_2020_warns_of_few_and_wide_runs() -> None:
    report = benchmark_model.parse(LITE_OLD)
    assert (report.mean_us, report.count, report.median_us) == (2.95034e6, 12, None)
    assert (report.peak_bytes, report.growth_bytes) == (None, 46 * 2**20)
    found = {m.metric: m for m in benchmark_model.measurements(report, "host", {})}
    assert "latency_ms" not in found  # a mean is no median
    assert [w.split(":")[0] for w in found["latency_mean_ms"].warnings] == [
        "a mean",
        "few runs",
        "wide spread",
    ]


@pytest.mark.parametrize("text", ["", "ERROR: Failed to load model model.tflite\n", LITE_NEW[:600]])
def test_benchmark_model_that_did_not_run(text: str) -> None:
    with pytest.raises(StageFailed, match="benchmark_model measured nothing: ") as caught:
        benchmark_model.parse(text)
    if text.startswith("ERROR"):
        assert str(caught.value).endswith("ERROR: Failed to load model model.tflite")


def test_a_qnn_profile() -> None:
    sections = qnn_net_run.parse_profile(PROFILE)
    assert list(sections) == ["Init", "De-Init", "Execute (Average)", "Execute (Overall)"]
    found = {m.metric: m.value for m in qnn_net_run.measurements(PROFILE, "device", {})}
    assert found == {"latency_mean_ms": 1.25, "accelerator_mean_ms": 0.875, "load_ms": 31.25}
    with pytest.raises(StageFailed, match="shows no execution"):
        qnn_net_run.measurements(PROFILE.partition("Execute")[0], "device", {})


def test_outputs_of_qnn_net_run_by_name_and_size(tmp_path: Path) -> None:
    first, second = np.arange(6, dtype="f4").reshape(2, 3), np.arange(4, dtype="u1")
    (tmp_path / "Result_0").mkdir()
    first.tofile(tmp_path / "Result_0" / "_head_out.raw")
    second.tofile(tmp_path / "Result_0" / "b_native.raw")
    specs = [TensorSpec("/head/out", "float32", (2, 3)), TensorSpec("b", "uint8", (4,))]
    (sample,) = qnn_net_run.read_outputs(tmp_path, specs, 1)
    assert np.array_equal(sample["output_0"], first)
    assert np.array_equal(sample["output_1"], second)
    with pytest.raises(StageFailed, match=r"has 24 bytes, not those of /head/out:float32\[7\]"):
        qnn_net_run.read_outputs(tmp_path, [replace(specs[0], shape=(7,)), specs[1]], 1)
    with pytest.raises(StageFailed, match=r"wrote no c\.raw into Result_0: _head_out\.raw, b_"):
        qnn_net_run.read_outputs(tmp_path, [replace(specs[0], name="c"), specs[1]], 1)


def test_what_an_unpacked_sdk_has(tmp_path: Path) -> None:
    bare = tool(tmp_path / "qnn-net-run", "")
    with pytest.raises(InputError, match=r"there is no .*libQnnHtp\.so"):
        qnn_net_run.sdk_files(bare, 75, dlc=False)
    program = unpacked_sdk(tmp_path / "sdk")
    assert len(qnn_net_run.sdk_files(program, 75, dlc=False)) == 4
    with pytest.raises(InputError, match=r"libQnnHtpPrepare\.so"):
        qnn_net_run.sdk_files(program, 75, dlc=True)
    with pytest.raises(InputError, match="has no htp_arch"):
        qnn_net_run.sdk_files(program, None, dlc=True)


def test_specs_of_outputs(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    file = save(proto, tmp_path / "net.onnx")
    (spec,) = qnn_net_run.output_specs(file, native=True)
    assert str(spec) == "y:float16[1,4,16,16]"
    (spec,) = qnn_net_run.output_specs(file, native=False)
    assert spec.dtype == "float32"
