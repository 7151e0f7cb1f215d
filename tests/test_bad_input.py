"""The command with bad input: one line that names the mistake, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from support import (
    FACTORY,
    INPUT,
    ON_HOST,
    OUT,
    S24,
    TINY,
    Command,
    check_refusal,
    conv_net,
    model,
    needs_compiler,
    needs_pillow,
    node,
    save,
    shrink_net,
    tree,
)

from edgeport.cli import main

PLAN_ERRORS = {
    "recipe": (("export", "padrre", *S24, *OUT), "Did you mean 'padre'"),
    "device": (("export", "padre", "--device", "s42", *OUT), "Did you mean 's2"),
    "chipset": (("export", "padre", "--chipset", "sm8651", *OUT), "Did you mean 'sm8650'"),
    "no device": (("export", "padre", *OUT), "--device NAME or --chipset NAME"),
    "both": (("export", "padre", *S24, "--chipset", "sm8650", *OUT), "--device NAME or"),
    "precision": (
        ("export", "padre", *S24, "--precision", "w8a17", *OUT),
        "Did you mean 'w8a1?[68]'.*qnn_context_binary: float, w8a8, w8a16",
    ),
    "variant": (("export", "padre", *S24, "--variant", "padre4", *OUT), "Did you mean 'padre[23]'"),
    "runtime": (
        ("export", "padre", *S24, "--target-runtime", "qnn_contxt_binary", *OUT),
        "Did you mean 'qnn_context_binary'",
    ),
    "runtime of the device": (
        ("export", "padre", "--device", "pixel-6", "--target-runtime", "qnn_context_binary", *OUT),
        "Pixel 6 takes no qnn_context_binary; .* onnx: float",
    ),
    "calibration": (
        (*TINY, *S24, "--precision", "w8a8", "--calibration", "mean", *OUT),
        "unknown calibration 'mean'.*entropy, minmax, mse, percentile",
    ),
    "min-sqnr of float": ((*TINY, *S24, "--min-sqnr", "35", *OUT), "float is not quantized"),
    "min-sqnr of w8a8": (
        (*TINY, *S24, "--precision", "w8a8", "--min-sqnr", "35", *OUT),
        "no wider weights.*--precision auto",
    ),
    "min-sqnr of a chip": (
        (*TINY, "--device", "s22", "--precision", "w8a16", "--min-sqnr", "35", *OUT),
        "S22.* no wider weights",
    ),
    "min-sqnr nan": (
        (*TINY, *S24, "--precision", "auto", "--min-sqnr", "nan", *OUT),
        "give a number of dB",
    ),
    "sensitivity of float": (("sensitivity", *TINY[1:], "--precision", "float"), "not quantized"),
    "sensitivity's source": (("sensitivity", "no.onnx"), "no.onnx: no such file"),
    "fp16": (("export", "padre", "--device", "rb3-gen2", *OUT), "no 16-bit float.*w8a8, w8a16"),
    "option": (("export", "padre", *S24, "--gridd", "14", *OUT), "--grid"),
    "option's type": (("export", "padre", *S24, "--grid", "x", *OUT), "'x' is not a valid int"),
    "option's choice": (("export", "padre", *S24, "--part", "nett", *OUT), "'net', 'block'"),
    "flag": (("export", "padre", *S24, "--precison", "float", *OUT), "--precision"),
    "no output": (("export", "padre", *S24), "output-dir"),
    "no model": (("export", "tiny.py.txt", *S24, *OUT), "unknown recipe 'tiny.py.txt'"),
    "no library model": (("export", "tim:resnet18", *S24, *OUT), "did you mean timm:resnet18"),
    "both weights": (
        ("export", "padre", "--pretrained", *S24, *OUT),
        "padre is a recipe and takes no --pretrained",
    ),
    "offline": (
        ("export", "hf:a/b", "--pretrained", "--offline", *S24, *OUT),
        "--offline forbids it",
    ),
    "no source": (("export", *S24, *OUT), "SOURCE"),
    "command": (("exprot", "padre"), "export|No such command"),
    "list": (("list", "recipe"), "recipes"),
    "no file": (("export", "no.onnx", *S24, *OUT), "no.onnx: no such file"),
    "no factory file": (("export", "no.py:f", "--input", INPUT, *S24, *OUT), "no such file"),
    "no --input": (("export", "tiny.py:build", *S24, *OUT), "add --input"),
    "no colon": (("export", "tiny.py", "--input", INPUT, *S24, *OUT), "after the colon"),
    "spec": (("export", "tiny.py:build", "--input", "x[1]", *S24, *OUT), "write it as"),
    "spec's type": (("export", "tiny.py:build", "--input", "x:f32[1]", *S24, *OUT), "float32"),
    "input of a recipe": (("export", "padre", "--input", INPUT, *S24, *OUT), "takes no --input"),
    "weights": ((*TINY, "--weights", "no.pth", *S24, *OUT), "no.pth: no such file"),
    "calib-samples": (("export", "padre", *S24, "--calib-samples", "0", *OUT), "at least 1"),
    "parity-samples": (("export", "padre", *S24, "--parity-samples", "-3", *OUT), "at least 1"),
    "seed": (("export", "padre", *S24, "--seed", "-1", *OUT), "seeds are 0 or more"),
    "seed too large": (("export", "padre", *S24, "--seed", str(1 << 70), *OUT), "--seed"),
    "timeout": (("export", "padre", *S24, "--timeout", "0", *OUT), "--timeout"),
    "timeout nan": (("export", "padre", *S24, "--timeout", "nan", *OUT), "--timeout"),
    "memory": (("export", "padre", *S24, "--memory", "nan", *OUT), "--memory"),
    "memory infinite": (("export", "padre", *S24, "--memory", "inf", *OUT), "--memory"),
    "output is a file": (("export", "padre", *S24, "-o", "tiny.py"), "not a directory"),
    "output is not ours": (("export", "padre", *S24, "-o", "theirs"), "not written by edgeport"),
    "output is here": (("export", "padre", *S24, "-o", "."), "current directory"),
    "output in a file": (("export", "padre", *S24, "-o", "tiny.py/x"), "directory"),
    "no calibration data": (
        (*TINY, *S24, "--precision", "w8a8", "--calib-data", "nowhere", *OUT),
        "nowhere: no such file or folder",
    ),
}


@pytest.mark.parametrize("case", PLAN_ERRORS)
def test_bad_requests(case: str, tmp_path: Path, factory: Path, run_cli: Command) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("important")
    before = tree(tmp_path)
    arguments, words = PLAN_ERRORS[case]
    done = run_cli(*arguments)
    check_refusal(done.returncode, done.stdout, done.stderr, words)
    assert tree(tmp_path) == before


def test_verbose_shows_the_traceback(tmp_path: Path, run_cli: Command) -> None:
    done = run_cli("export", "padrre", *S24, *OUT, "-v")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: unknown recipe")


def run_here(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs the command in this process, which has imported torch already."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return (int(left.value.code or 0), *capfd.readouterr())


MODULE = """from torch import nn

class build(nn.Module):
    def forward(self, x):
"""


def write_sources(folder: Path) -> None:
    """Writes files that are bad each in its own way."""
    factory = {
        "raises": "def build(): raise RuntimeError('no\\nthing')",
        "leaves": "def build():\n    import sys\n    sys.exit(0)",
        "gives": "def build(): return 'a net'",
        "syntax": "def build(:",
        "nan": FACTORY + "    net[0].weight.data[0] = float('nan')\n    return net\n",
        "float": FACTORY.replace("return", "net =") + "    return net.double()\n",
        "ends": "class Ended(BaseException): pass\ndef build(): raise Ended('odd')",
        "quits": MODULE + "        raise SystemExit(0)\n",
        "constant": MODULE + "        return x.new_ones(3)\n",
        "branches": MODULE + "        return x * 2 if x.sum() > 0 else x + 1\n",
    }
    factory["nan"] = factory["nan"].replace("return nn.Seq", "net = nn.Seq")
    for name, body in factory.items():
        (folder / f"{name}.py").write_text(body)
    content = conv_net().SerializeToString()
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])
    (folder / "text.onnx").write_text("no model")
    (folder / "empty.onnx").write_bytes(b"")
    dynamic = conv_net()
    dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    save(dynamic, folder / "dynamic.onnx")
    lost = folder / "lost.onnx"
    onnx.save(conv_net(), lost, save_as_external_data=True, location="lost.bin", size_threshold=0)
    (folder / "lost.bin").unlink()
    for name, domain in (("unknown", ""), ("custom", "my.company")):
        strange = conv_net()
        strange.graph.node[1].op_type, strange.graph.node[1].domain = "Frobnicate", domain
        if domain:
            strange.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        save(strange, folder / f"{name}.onnx")
    write_odd_graphs(folder)
    state = {"0.weight": torch.zeros(8, 3, 3, 3), "0.bias": torch.zeros(9)}
    torch.save(state, folder / "short.pth")
    torch.save({**state, "2.weight": torch.zeros(4, 8, 1, 1), "2.bias": torch.zeros(4)}, "odd.pth")
    (folder / "garbage.pth").write_text("no weights")
    np.savez(folder / "nan.npz", image=np.full((4, 3, 16, 16), np.nan))
    np.savez(folder / "shape.npz", image=np.zeros((4, 3, 15, 16)))
    np.savez(folder / "other.npz", picture=np.zeros((4, 3, 16, 16)))
    np.savez(folder / "one.npz", image=np.zeros((1, 3, 16, 16)))
    (folder / "cut.npz").write_bytes((folder / "one.npz").read_bytes()[:500])
    for name in ("broken", "text"):
        (folder / name).mkdir()
    (folder / "broken" / "a.png").write_text("no image")
    (folder / "text" / "a.txt").write_text("no data")


def write_odd_graphs(folder: Path) -> None:
    """Writes ONNX files that can be read, and cannot be used."""
    for name, dtype in (("double", TensorProto.DOUBLE), ("string", TensorProto.STRING)):
        net = model([node("Identity", "x", "y")], {"x": [2]}, {"y": [2]}, dtype=dtype)
        save(net, folder / f"{name}.onnx")
    save(model([node("Relu", "x", "y")], {"x": [0, 3]}, {"y": [0, 3]}), folder / "zero.onnx")
    save(model([], {"x": [2]}, {"x": [2]}), folder / "nothing.onnx")
    rankless = model([node("Relu", "x", "y")], {"x": [2]}, {"y": [2]})
    rankless.graph.input[0].type.tensor_type.ClearField("shape")
    save(rankless, folder / "rankless.onnx")
    dangling, newer, twice = conv_net(), conv_net(), conv_net()
    dangling.graph.node[1].input[0] = "nowhere"
    newer.opset_import[0].version = 99
    twice.graph.node[2].output[0] = "c"
    save(dangling, folder / "dangling.onnx")
    save(newer, folder / "newer.onnx")
    save(twice, folder / "twice.onnx")


BUILD_ERRORS: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        name: (("export", f"{name}.py:build", "--input", INPUT), words)
        for name, words in {
            "raises": "RuntimeError: no",
            "leaves": "SystemExit",
            "gives": "gave a str, not a torch.nn.Module",
            "syntax": "SyntaxError",
            "nan": r"weight 0\.weight holds NaN or infinity",
            "float": "the model fails on image",
            "ends": "ends.py:build raised Ended: odd",
            "quits": "the model fails on image.*SystemExit",
            "constant": "computes nothing from its inputs",
        }.items()
    },
    "no such factory": (("export", "tiny.py:built", "--input", INPUT), "Did you mean 'build'"),
    "wrong rank": (("export", "tiny.py:build", "--input", "x:float32[3,16]"), "fails on x"),
    "wrong channels": (("export", "tiny.py:build", "--input", "x:float32[1,4,16,16]"), "fails on"),
    "wrong type": (("export", "tiny.py:build", "--input", "x:int64[1,3,16,16]"), "fails on"),
    "impossible option": (("export", "padre", "--dim", "33", "--heads", "2"), "heads"),
    "cut.onnx": (("export", "cut.onnx"), "not a readable ONNX model"),
    "text.onnx": (("export", "text.onnx"), "not a readable ONNX model"),
    "empty.onnx": (("export", "empty.onnx"), "not a readable ONNX model"),
    "dynamic.onnx": (("export", "dynamic.onnx"), r"open shape.*batch.*--input image:float32\["),
    "pinned wrongly": (
        ("export", "dynamic.onnx", "--input", "image:float32[3,16,16]"),
        "does not fit image",
    ),
    "lost.onnx": (("export", "lost.onnx"), "lost.bin"),
    "double.onnx": (("export", "double.onnx"), "input x is of double"),
    "string.onnx": (("export", "string.onnx"), "input x is of string"),
    "zero.onnx": (("export", "zero.onnx"), r"float32\[0, 3\], which cannot be compared"),
    "nothing.onnx": (("export", "nothing.onnx"), "its graph has no node"),
    "rankless.onnx": (("export", "rankless.onnx"), "has no shape, not even a rank"),
    "dangling.onnx": (("export", "dangling.onnx"), "Node input 'nowhere'"),
    "newer.onnx": (("export", "newer.onnx"), "needs opset 99"),
    "twice.onnx": (("export", "twice.onnx"), "'c' is redeclared"),
    "short weights": ((*TINY, "--weights", "short.pth"), "lack 2.weight, 2.bias"),
    "odd weights": ((*TINY, "--weights", "odd.pth"), r"0.bias is \(9,\)"),
    "garbage weights": ((*TINY, "--weights", "garbage.pth"), "cannot be read"),
    **{
        f"calibration {data}": ((*TINY, "--precision", "w8a8", "--calib-data", data), words)
        for data, words in {
            "nan.npz": "NaN",
            "shape.npz": "the model takes",
            "other.npz": "has no array 'image'",
            "one.npz": "leaves no sample",
            "cut.npz": "not a readable array",
            "text": "holds no image",
            "tiny.py": "not a readable array",
        }.items()
    },
}


@pytest.mark.parametrize("case", [*BUILD_ERRORS, pytest.param("image", marks=needs_pillow)])
def test_bad_sources(
    case: str,
    tmp_path: Path,
    factory: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = (*TINY, "--precision", "w8a8", "--calib-data", "broken")
    arguments, words = {**BUILD_ERRORS, "image": (image, "a.png is not a readable image")}[case]
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    before = tree(tmp_path)
    code, out, err = run_here(capfd, *arguments, *ON_HOST, *OUT, "--json")
    check_refusal(code, out, err, words)
    assert tree(tmp_path) == before  # no output, no .failed, no staging


@pytest.mark.parametrize(
    ("source", "words"),
    [("unknown.onnx", "Frobnicate, which ONNX has not"), ("custom.onnx", "domain my.company")],
)
def test_operators_that_nobody_knows(
    source: str,
    words: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    code, out, err = run_here(capfd, "export", source, *ON_HOST, *OUT)
    check_refusal(code, out, err, words)
    assert not (tmp_path / "out").exists()


def test_a_path_that_depends_on_values(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that fails, and torch's listing of the graph stays off the terminal."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    source = ("export", "branches.py:build", "--input", INPUT)
    code, out, err = run_here(capfd, *source, *ON_HOST, *OUT)
    check_refusal(code, out, err, r"path depends on values: use torch\.where", expected=3)


@pytest.mark.parametrize("source", ["text.onnx", "custom.onnx", "double.onnx", "nan.py:build"])
@pytest.mark.parametrize("command", [("doctor", *S24), ("sensitivity",)])
def test_other_commands_refuse_alike(
    source: str,
    command: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    before = tree(tmp_path)
    inputs = ("--input", INPUT) if ":" in source else ()
    code, out, err = run_here(capfd, command[0], source, *inputs, *command[1:])
    check_refusal(code, out, err, "not a readable|my.company|is of double|holds NaN")
    assert tree(tmp_path) == before


def test_a_failing_factory_in_a_real_process(tmp_path: Path, run_cli: Command) -> None:
    write_sources_cwd = tmp_path / "raises.py"
    write_sources_cwd.write_text("print('hello')\ndef build(): raise RuntimeError('no')")
    done = run_cli("export", "raises.py:build", "--input", INPUT, *ON_HOST, *OUT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "hello\nerror: raises.py:build raised RuntimeError: no\n"
    assert tree(tmp_path) == {"raises.py"}


@needs_compiler
def test_an_operator_that_the_npu_has_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(shrink_net(), tmp_path / "shrink.onnx")
    code, out, err = run_here(capfd, "export", "shrink.onnx", *S24, *OUT)
    check_refusal(code, out, err, r"1 of 3 ops would run on the CPU.*1 Shrink", expected=3)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed" / "optimized.onnx").is_file()
    assert json.loads((tmp_path / "out.failed" / "failure.json").read_text())["stage"] == "lower"
    code, out, err = run_here(capfd, "bisect", "out.failed", "--stage", "passes")
    assert (code, err) == (0, "") and "nothing parts" in out  # what was made can be looked at
    code, *_ = run_here(capfd, "export", "shrink.onnx", *ON_HOST, *OUT)
    assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shrink.onnx"]
