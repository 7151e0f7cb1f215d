"""Finding what the user names, and building it: every refusal says what, where and what next."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import FACTORY, INPUT
from torch import nn

from edgeport import catalog
from edgeport.catalog import Source, all_recipes, find_source, parse_spec
from edgeport.errors import InputError, UnknownName
from edgeport.sources import build_module
from edgeport.types import TensorSpec


def source_of(path: Path, attribute: str = "build", weights: Path | None = None) -> Source:
    return find_source(f"{path}:{attribute}", inputs=[INPUT], weights=weights)


def written(path: Path, body: str) -> Path:
    path.write_text(body)
    return path


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:float32[1,3,32,32]", TensorSpec("x", "float32", (1, 3, 32, 32))),
        (" ids:int64[ 1 , 7 ] ", TensorSpec("ids", "int64", (1, 7))),
        ("s:float16[4]", TensorSpec("s", "float16", (4,))),
    ],
)
def test_parse_spec(text: str, expected: TensorSpec) -> None:
    assert parse_spec(text) == expected
    assert parse_spec(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write it as"),
        ("x", "write it as"),
        ("x:float32", "write it as"),
        ("x:float32[]", "write it as"),
        ("x:float32[1,-3]", "write it as"),
        ("x:float32[1,N]", "write it as"),
        ("1x:float32[1]", "write it as"),
        ("x:float32[1,,3]", "empty size"),
        ("x:float32[1 2]", "empty size"),
        ("x:float32[1,0,3]", "size of 0"),
        ("x:float33[1]", "Did you mean 'float32'"),
    ],
)
def test_malformed_specs(text: str, words: str) -> None:
    with pytest.raises(InputError, match=r"input|element") as caught:
        parse_spec(text)
    assert words in one_line(caught)


def test_sources(tmp_path: Path) -> None:
    recipe = find_source("padre")
    assert (recipe.kind, recipe.variant, recipe.options["grid"]) == ("recipe", "padre3", 14)
    model = written(tmp_path / "model.onnx", "")
    assert find_source(str(model)).kind == "onnx"
    path = written(tmp_path / "net.py", FACTORY)
    assert source_of(path).kind == "factory"
    assert source_of(path).path == path.resolve()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "padrre"}, "unknown recipe 'padrre'. Did you mean 'padre'?"),
        ({"text": "padre", "variant": "padre4"}, "Did you mean 'padre"),
        ({"text": "padre", "options": {"gridd": 14}}, "Did you mean 'grid'"),
        ({"text": "padre", "options": {"grid": "14"}}, "takes int, not '14'"),
        ({"text": "padre", "options": {"part": "nett"}}, "Did you mean 'net'"),
        ({"text": "padre", "inputs": ["x:float32[1]"]}, "takes no --input"),
        ({"text": "padre", "weights": Path(__file__)}, "takes no --weights"),
        ({"text": "padre", "weights": Path("nowhere.pth")}, "nowhere.pth: no such file"),
        ({"text": "nowhere.onnx"}, "nowhere.onnx: no such file"),
        ({"text": "nowhere.pt2"}, "nowhere.pt2: no such file"),
        ({"text": "nowhere.of.this:build", "inputs": [INPUT]}, "no module 'nowhere' can be"),
        ({"text": "tim:resnet18", "inputs": [INPUT]}, "did you mean timm:resnet18?"),
        ({"text": "email.message:Message"}, "add --input"),
        ({"text": __file__.replace("test_catalog.py", "support.py")}, "after the colon"),
        ({"text": str(Path(__file__).parent)}, "is no model; a source is a recipe"),
        ({"text": "padre", "pretrained": True}, "takes no --pretrained"),
        ({"text": f"{__file__}:build", "inputs": [INPUT], "pretrained": True}, "--pretrained"),
        ({"text": "timm:resnet18", "pretrained": True, "offline": True}, "--offline forbids"),
        ({"text": "timm:resnet 18"}, "write it as timm:NAME"),
        ({"text": "timm:"}, "write it as timm:NAME"),
        ({"text": "hf:"}, "write it as hf:TYPE"),
        ({"text": "hf:,a=1"}, "write it as hf:TYPE"),
        ({"text": "hf:bert,layers"}, "'layers' is no key=value"),
        ({"text": "hf:some/where"}, "no such folder; one on the hub is downloaded"),
        ({"text": f"hf:{Path(__file__).parent}"}, "no config.json"),
        ({"text": "nowhere.py:build", "inputs": [INPUT]}, "nowhere.py: no such file"),
        ({"text": f"{__file__}:build"}, "add --input"),
        ({"text": f"{__file__}:", "inputs": [INPUT]}, "after the colon"),
        ({"text": f"{__file__}:a b", "inputs": [INPUT]}, "after the colon"),
        ({"text": __file__, "inputs": [INPUT]}, "after the colon"),
        ({"text": f"{__file__}:build", "inputs": [INPUT, INPUT]}, "twice"),
        ({"text": f"{__file__}:build", "inputs": [INPUT], "variant": "a"}, "takes no --variant"),
        ({"text": f"{__file__}:build", "inputs": [INPUT], "options": {"a": 1}}, "option"),
    ],
)
def test_refused_sources(arguments: dict, words: str) -> None:
    text = arguments.pop("text")
    with pytest.raises(InputError) as caught:
        find_source(text, **arguments)
    assert words in one_line(caught)


@pytest.mark.parametrize(
    ("text", "kind", "attribute", "options"),
    [
        ("timm:resnet18.a1_in1k", "timm", "resnet18.a1_in1k", {}),
        ("hf:bert", "hf", "bert", {}),
        (
            "hf:segformer,depths=[1,1,1,1],dropout=0.5,act=gelu,tied=False,size=12",
            "hf",
            "segformer",
            {"depths": [1, 1, 1, 1], "dropout": 0.5, "act": "gelu", "tied": False, "size": 12},
        ),
    ],
)
def test_library_models(text: str, kind: str, attribute: str, options: dict) -> None:
    source = find_source(text)
    assert (source.kind, source.attribute, dict(source.options)) == (kind, attribute, options)
    assert json.loads(json.dumps(source.describe()))["options"] == options


def test_a_missing_library_is_named_with_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.LIBRARIES, "timm", "a_library_that_nobody_has")
    with pytest.raises(InputError, match=r'pip install "edgeport\[timm\]"'):
        find_source("timm:resnet18")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("")
    with pytest.raises(InputError, match="holds weights, no model"):
        find_source(str(tmp_path / "w.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"write it as hf:{tmp_path}"):
        find_source(str(tmp_path))
    source = find_source(f"hf:{tmp_path}")
    assert source.path == tmp_path.resolve()
    with pytest.raises(InputError, match="takes no key=value"):
        find_source(f"hf:{tmp_path},a=1")
    with pytest.raises(InputError, match="takes no --pretrained"):
        find_source(f"hf:{tmp_path}", pretrained=True)


def test_a_module_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "nets").mkdir(parents=True)
    written(tmp_path / "mine" / "__init__.py", "")
    written(tmp_path / "mine" / "nets" / "__init__.py", "from mine.nets.small import build")
    written(tmp_path / "mine" / "nets" / "small.py", FACTORY)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.nets.small", "mine.nets"):
        source = find_source(f"{name}:build", inputs=[INPUT])
        assert source.path is not None and source.path.is_relative_to(tmp_path)
        assert isinstance(build_module(source, 0), nn.Sequential)
    with pytest.raises(UnknownName, match=r"factory in mine\.nets\.small.*Did you mean 'build'"):
        build_module(find_source("mine.nets.small:built", inputs=[INPUT]), 0)


def test_a_module_that_is_installed() -> None:
    source = find_source("torch.nn:ReLU", inputs=[INPUT])
    assert source.path is None
    assert isinstance(build_module(source, 0), nn.ReLU)


def test_every_recipe_is_found_by_its_folder() -> None:
    import edgeport_recipes

    (root,) = edgeport_recipes.__path__
    folders = {path.parent.name for path in Path(root).glob("*/recipe.py")}
    assert folders == set(all_recipes())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def build(): raise RuntimeError('no such thing')", "RuntimeError: no such thing"),
        ("def build(): raise RuntimeError()", "RuntimeError"),
        ("def build():\n    import sys\n    sys.exit(7)", "SystemExit: 7"),
        ("import nothing_of_this_name\ndef build(): ...", "ModuleNotFoundError"),
        ("def build(:", "SyntaxError"),
        ("def build(): return 3", "gave a int, not a torch.nn.Module"),
        ("def build(): return None", "gave a NoneType"),
        ("from torch import nn\ndef build(): return nn.ReLU", "gave a type"),
        ("def build(x): return x", "TypeError"),
        ("def built(): ...", "Did you mean 'built'"),
        ("build = 3", "unknown factory in"),
        ("# -*- coding: latin-1 -*-\ndef build(): raise ValueError('a\\nb')", "ValueError: a"),
    ],
)
def test_factories_that_fail(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        build_module(source_of(written(tmp_path / "bad.py", body)), 0)
    assert words in one_line(caught)


def test_a_class_is_a_factory_and_the_module_is_in_eval_mode(tmp_path: Path) -> None:
    body = "from torch import nn\nclass Net(nn.Dropout): ..."
    module = build_module(source_of(written(tmp_path / "net.py", body), "Net"), 0)
    assert not module.training


def test_the_seed_decides_random_weights_and_leaves_the_generator_alone(factory: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        build_module(source_of(factory), seed).state_dict()["0.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_a_factory_prints_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "from torch import nn\nprint('import')\ndef build():\n print('call')\n return nn.ReLU()"
    build_module(source_of(written(tmp_path / "loud.py", body)), 0)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "import\ncall\n")


def test_a_factory_imports_its_neighbour_and_the_path_is_restored(tmp_path: Path) -> None:
    import sys

    written(tmp_path / "neighbour_a.py", FACTORY)
    path = written(tmp_path / "net.py", "from neighbour_a import build")
    before = list(sys.path)
    build_module(source_of(path), 0)
    assert sys.path == before
    assert not list(tmp_path.rglob("__pycache__"))  # nothing is written beside the user's code


def slope_of(source: Source) -> float:
    return float(build_module(source, 0)(torch.ones(1)))


def scale_net(folder: Path, factor: int) -> Source:
    folder.mkdir(exist_ok=True)
    written(folder / "layers.py", f"FACTOR = {factor}")
    body = """from torch import nn
from layers import FACTOR
class Net(nn.Module):
    def forward(self, x):
        return x * FACTOR
"""
    return source_of(written(folder / "net.py", body), "Net")


def test_a_neighbour_is_read_again_in_one_process(tmp_path: Path) -> None:
    """Else an edited layer would be exported as it was, under the edited file's cache key."""
    source = scale_net(tmp_path / "a", 3)
    assert slope_of(source) == 3
    layers = tmp_path / "a" / "layers.py"
    stat = layers.stat()
    layers.write_text("FACTOR = 4")
    os.utime(layers, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as an archive's unpacking does
    assert slope_of(source) == 4


def test_neighbours_of_one_name_in_two_folders(tmp_path: Path) -> None:
    one, other = scale_net(tmp_path / "a", 3), scale_net(tmp_path / "b", 5)
    assert [slope_of(one), slope_of(other), slope_of(one)] == [3, 5, 3]


def test_modules_that_were_imported_before_stay(tmp_path: Path) -> None:
    """Reading neighbours again must not replace torch, or the program's own modules."""
    import sys

    slope_of(scale_net(tmp_path / "a", 3))
    before = {name: id(module) for name, module in sys.modules.items()}
    before = {k: v for k, v in before.items() if k not in ("layers", "edgeport_source_net")}
    slope_of(scale_net(tmp_path / "a", 3))
    after = {name: id(module) for name, module in sys.modules.items()}
    assert {name: after.get(name) for name in before} == before


# Weights


@pytest.fixture
def state(factory: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        k: torch.randn_like(v) for k, v in build_module(source_of(factory), 0).state_dict().items()
    }


@pytest.mark.parametrize(
    ("suffix", "wrapper"),
    [
        (".safetensors", None),
        (".pth", None),
        (".pt", "state_dict"),
        (".pth", "model"),
    ],
)
def test_weights_are_loaded(
    tmp_path: Path, factory: Path, state: dict, suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    module = build_module(source_of(factory, weights=path), 0)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), "lack 0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "have unknown extra"),
        (
            lambda s: s.update({"2.bias": torch.zeros(7)}),
            "differ: 2.bias is (7,), the model has (4,)",
        ),
        (lambda s: s.clear(), "lack 0.weight, 0.bias, 2.weight and 1 more"),
    ],
)
def test_weights_that_do_not_match_are_named(
    tmp_path: Path, factory: Path, state: dict, change, words: str
) -> None:
    change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        build_module(source_of(factory, weights=path), 0)
    assert words in one_line(caught)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_weights_that_cannot_be_read(
    tmp_path: Path, factory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = {
        "garbage.pth": b"no weights here",
        "garbage.safetensors": b"\xff" * 64,
        "empty.pth": b"",
        "empty.safetensors": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    torch.save(Bomb(), tmp_path / "pickle.pth")
    torch.save(nn.ReLU(), tmp_path / "module.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    np.savez(tmp_path / "arrays.pth", a=np.zeros(3))
    os.replace(tmp_path / "arrays.pth.npz", tmp_path / "arrays.pth")
    names = (*bad, "pickle.pth", "module.pth", "list.pth", "numbers.pth", "arrays.pth")
    for name in names:
        with pytest.raises(InputError, match=name) as caught:
            build_module(source_of(factory, weights=tmp_path / name), 0)
        one_line(caught)
    assert not (tmp_path / "exploded").exists()


def test_a_factory_may_raise_an_error_of_edgeport(tmp_path: Path) -> None:
    body = (
        "from edgeport.errors import UnknownName\ndef build(): raise UnknownName('a', 'b', ['c'])"
    )
    with pytest.raises(UnknownName, match="unknown a 'b'"):
        build_module(source_of(written(tmp_path / "net.py", body)), 0)
