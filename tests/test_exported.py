"""A saved torch.export.ExportedProgram: its inputs, and files that are broken or would run code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import check_refusal, tree
from torch import nn

import edgeport
from edgeport.catalog import find_source
from edgeport.cli import main
from edgeport.errors import InputError, UnknownName
from edgeport.sources import Built, build
from edgeport.sources.archive import is_arithmetic

IMAGE = (1, 3, 16, 16)


class Lookup(nn.Module):
    """Takes ids, a mask and a keyword; the batch is open."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, ids, mask, *, scale):
        return self.table(ids).sum(-1) * mask + scale


def convolution() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.fixture
def convolution_file(tmp_path: Path) -> Path:
    program = torch.export.export(convolution(), (torch.randn(IMAGE),))
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


@pytest.fixture
def lookup_file(tmp_path: Path) -> Path:
    batch = torch.export.Dim("batch")
    ids = torch.randint(0, 3, (2, 7))
    program = torch.export.export(
        Lookup(),
        (ids, torch.ones(2, 7)),
        {"scale": torch.ones(1)},
        dynamic_shapes={"ids": {0: batch}, "mask": {0: batch}, "scale": None},
    )
    torch.export.save(program, tmp_path / "lookup.pt2")
    return tmp_path / "lookup.pt2"


def built(path: Path, *inputs: str) -> Built:
    return build(find_source(str(path), inputs=inputs), 0)


def test_a_program_is_the_module_it_was_exported_from(convolution_file: Path) -> None:
    one = built(convolution_file)
    assert [str(spec) for spec in one.inputs] == ["input:float32[1,3,16,16]"]
    image = torch.randn(IMAGE)
    assert torch.equal(one.module(image), convolution()(image))


def test_its_inputs_are_its_examples_or_the_users(lookup_file: Path) -> None:
    one = built(lookup_file)
    assert list(map(str, one.inputs)) == ["ids:int64[2,7]", "mask:float32[2,7]", "scale:float32[1]"]
    assert one.integer_ranges == {"ids": (0, 50)}  # the table's rows, not the example's 0..2
    three = built(lookup_file, "ids:int64[3,7]", "mask:float32[3,7]")
    arguments = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in three.inputs]
    assert three.module(*arguments).shape == (3, 7)


@pytest.mark.usefixtures("quick")
def test_it_is_exported_and_rebuilt_when_it_changes(convolution_file: Path) -> None:
    request = {"device": "s24", "target_runtimes": ("onnx",)}
    out = convolution_file.parent / "out"
    first = edgeport.export(str(convolution_file), output_dir=out, **request)
    assert first.artifact("capture").parity[0].value > 80
    again = edgeport.export(str(convolution_file), output_dir=out, **request)
    assert again.cached_steps == again.steps
    changed = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    torch.export.save(torch.export.export(changed, (torch.randn(IMAGE),)), convolution_file)
    assert edgeport.export(str(convolution_file), output_dir=out, **request).cached_steps == 0


def test_weights_replace_those_in_the_file(convolution_file: Path, tmp_path: Path) -> None:
    state = {key: torch.ones_like(value) for key, value in convolution().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    source = find_source(str(convolution_file), weights=tmp_path / "w.safetensors")
    module = build(source, 0).model
    assert module is not None
    assert all((value == 1).all() for value in module.state_dict().values())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["idss:int64[2,7]"], "Did you mean 'ids'"),
        (["ids:int32[2,7]"], r"does not fit the program's ids:int64\[2,7\]"),
        (["ids:int64[7]"], "does not fit the program's"),
    ],
)
def test_inputs_that_it_has_not(lookup_file: Path, inputs: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        built(lookup_file, *inputs)


def test_an_unknown_input_is_an_unknown_name(lookup_file: Path) -> None:
    with pytest.raises(UnknownName):
        built(lookup_file, "nothing:int64[1]")


# Broken files, and files that would run code


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Writes the archive again with `change(name, content)` as each record's content."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    prefix = records[0][0].partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            archive.writestr(name, change(name.removeprefix(f"{prefix}/"), content))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_document(name: str, change: Callable[[dict], None]) -> Callable[[str, bytes], bytes]:
    def rewritten(record: str, content: bytes) -> bytes:
        if record != name:
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return rewritten


def target(document: dict) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.mkdir"


def library(document: dict) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.load_library"


def tree_spec(document: dict) -> None:
    call = document["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"] + ' "default_factory_module" '


def expression(document: dict) -> None:
    document["graph_module"]["graph"]["expr_str"] = "__import__('os').mkdir('exploded')"


def weight(document: dict) -> None:
    next(iter(document["config"].values()))["use_pickle"] = True


def test_the_rewriting_itself_keeps_a_sound_file(convolution_file: Path) -> None:
    rewrite(convolution_file, lambda name, content: content)
    assert built(convolution_file).inputs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda n, c: pickled(((Bomb(),), {})) if n.startswith("data/sample") else c,
            r"sample_inputs/model\.pt is a pickle of more than tensors",
        ),
        (with_document("data/weights/model_weights_config.json", weight), "is a pickle of more"),
        (with_document("models/model.json", target), r"target 'torch\.os\.mkdir', which could run"),
        (with_document("models/model.json", library), "load_library', which could run code"),
        (with_document("models/model.json", expression), "expr_str .* which could run code"),
        (with_document("models/model.json", tree_spec), "in_spec .* which could run code"),
    ],
)
def test_a_file_that_would_run_code_is_refused(
    convolution_file: Path, monkeypatch: pytest.MonkeyPatch, change, words: str
) -> None:
    monkeypatch.chdir(convolution_file.parent)
    rewrite(convolution_file, change)
    with pytest.raises(InputError, match=words) as caught:
        built(convolution_file)
    assert "\n" not in str(caught.value)
    assert not Path("exploded").exists()


def test_torch_itself_runs_that_code(
    convolution_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what is refused here is what torch.export.load would have run."""
    monkeypatch.chdir(convolution_file.parent)
    bomb = pickled(((Bomb(),), {}))
    rewrite(convolution_file, lambda n, c: bomb if n.startswith("data/sample") else c)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever it raises after it ran)
        torch.export.load(convolution_file).module()(None)
    assert Path("exploded").exists()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("s0", True),
        ("2*s0 + 1", True),
        ("Max(1, s0)", True),
        ("Symbol('s23', positive=True, integer=True)", True),
        ("FloorDiv(s0, 2)", True),
        ("__import__('os')", False),
        ("eval('x')", False),
        ("Symbol('os.system(1)')", False),
        ("(1).__class__", False),
        ("[x for x in y]", False),
        ("open(1)", False),
        ("s0 +", False),
    ],
)
def test_expressions(text: str, plain: bool) -> None:
    assert is_arithmetic(text) is plain


def test_files_that_are_no_program(
    convolution_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convolution_file.parent
    monkeypatch.chdir(folder)
    content = convolution_file.read_bytes()
    (folder / "cut.pt2").write_bytes(content[: len(content) // 2])
    (folder / "text.pt2").write_text("no program")
    (folder / "empty.pt2").write_bytes(b"")
    torch.save(convolution().state_dict(), folder / "state.pt2")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    os.replace(folder / "arrays.npz", folder / "arrays.pt2")
    torch.jit.trace(convolution(), torch.randn(IMAGE)).save(folder / "script.pt2")
    before = tree(folder)
    for name in ("cut", "text", "empty", "state", "arrays", "script"):
        capfd.readouterr()
        words = ["export", f"{name}.pt2", "--device", "s24", "--target-runtime", "onnx", "-o", "o"]
        with pytest.raises(SystemExit) as left:
            main(words)
        out, err = capfd.readouterr()
        check_refusal(int(str(left.value.code)), out, err, f"{name}.pt2 is no program saved by")
        assert tree(folder) == before
