"""A .tflite by the whole way, in a child process, also of another interpreter."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
from support import (
    LIMITS,
    conv_net,
    gaussian,
    manifest_of,
    save,
)

import edgeport
from edgeport.devices import find_device
from edgeport.errors import InputError
from edgeport.places import find_place
from edgeport.running import read_manifest, run_at
from edgeport.runtimes import CompileRequest, find_runtime
from edgeport.runtimes.lowering import compile_for
from edgeport.runtimes.samples import save_samples

pytest.importorskip("litert_torch", reason="needs tflite: pip install 'edgeport[tflite]'")

from edgeport.runtimes import tflite

S24 = find_device("s24")
S24_TFLITE = {"device": "s24", "target_runtimes": ("tflite",)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    made = edgeport.export(
        str(save(conv_net(), folder / "net.onnx")),
        **S24_TFLITE,
        precision="w8a8",
        calib_samples=4,
        output_dir=folder / "out",
    )
    return made.directory


def test_an_export_that_has_only_tflite(exported: Path) -> None:
    manifest = manifest_of(exported)
    assert {"model.tflite", "optimized_gpu.onnx"} <= set(manifest["files"])
    assert not {"optimized.onnx", "quantized.onnx"} & set(manifest["files"])
    assert manifest["placement"]["tflite"]["cpu"] == 0
    assert "npu" not in manifest["placement"]["tflite"]
    run = next(one for one in manifest["artifacts"] if one["stage"] == "run")
    assert run["computed"] == "w8a8" and run["parity"][0]["provenance"] == "host"
    assert 28 < float(run["parity"][0]["value"]) < 50
    assert "calibrated" in " ".join(edgeport.report.summary_lines(manifest))


def test_its_instructions_are_for_litert_alone(exported: Path) -> None:
    text = (exported / "DEPLOY.md").read_text()
    assert "CompiledModel.Options(Accelerator.GPU)" in text
    assert "inputs[0].writeFloat(values0)  // image: FloatArray of 768" in text
    assert "outputs[0].readFloat()  // y" in text
    assert "OrtEnvironment" not in text and "onnxruntime-android" not in text


def test_it_runs_again_at_a_place(exported: Path) -> None:
    (run,) = run_at(exported, find_place("local"), limits=LIMITS)
    first = next(one for one in read_manifest(exported)["artifacts"] if one["stage"] == "run")
    assert run.artifact.to_dict()["parity"] == first["parity"]


def environment(folder: Path, packages: Path | None) -> None:
    """Makes a virtual environment in `folder`, and the edgeport.toml that names it."""
    real = Path(sys.executable).resolve()
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(real)
    (folder / "venv" / "pyvenv.cfg").write_text(
        f"home = {real.parent}\ninclude-system-site-packages = false\n"
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = folder / "venv" / "lib" / version
    library.mkdir(parents=True)
    if packages is not None:
        (library / "site-packages").symlink_to(packages)
    (folder / "edgeport.toml").write_text('[runtimes.tflite]\npython = "venv/bin/python"\n')


def test_another_interpreter_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process whose sets have another order, too."""
    environment(tmp_path, Path(sysconfig.get_path("purelib")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    feeds, source = tmp_path / "calibration.npz", save(conv_net(), tmp_path / "net.onnx")
    save_samples(feeds, [{"image": gaussian([1, 3, 16, 16], seed)} for seed in range(4)])
    tflite.compile_model(CompileRequest(str(source), str(tmp_path), "w8a8", {}, str(feeds)))
    expected = (tmp_path / tflite.FILE).read_bytes()
    made = tmp_path / "made"
    made.mkdir()
    compile_for("tflite", source, made, S24, "w8a8", LIMITS, feeds)
    assert (made / tflite.FILE).read_bytes() == expected


def test_an_interpreter_that_lacks_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(tmp_path, None)
    monkeypatch.chdir(tmp_path)
    assert find_runtime("tflite")
    source = save(conv_net(), tmp_path / "net.onnx")
    with pytest.raises(InputError) as caught:
        compile_for("tflite", source, tmp_path, S24, "float", LIMITS)
    text, python = str(caught.value), tmp_path / "venv" / "bin" / "python"
    assert text.startswith(f"runtime tflite: {python} of edgeport.toml lacks numpy, litert_torch")
    assert text.endswith(f'{python} -m pip install "edgeport[tflite]"')
    assert "\n" not in text
