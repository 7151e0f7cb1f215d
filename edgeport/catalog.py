"""Finds what the user names, by one grammar for every command; imports nothing heavy.

    padre                      a recipe, edgeport's or one that edgeport.toml names
    model.onnx                 an ONNX file, with or without external data
    model.pt2                  a saved torch.export.ExportedProgram
    path/file.py:factory       a function or class in a file that gives an nn.Module
    package.module:factory     the same in a module, also of the current directory
    timm:NAME                  a timm model
    hf:TYPE[,key=value...]     a transformers model by its type, with settings of its config
    hf:DIRECTORY               a transformers checkpoint on disk
    hf:OWNER/NAME              the same on the hub, with --pretrained

`edgeport.sources` builds the nn.Module, and only then is the user's code run.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from edgeport.config import load_config
from edgeport.errors import InputError, UnknownName
from edgeport.importing import importable, load_file, user_code
from edgeport.types import Option, Recipe, TensorSpec

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
LIBRARIES = {"timm": "timm", "hf": "transformers"}
_SPEC = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<dtype>\w+)\[(?P<shape>[\d,\s]+)\]")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FORMS = (
    "a recipe (edgeport list recipes), model.onnx, model.pt2, file.py:factory,"
    " package.module:factory, timm:NAME, hf:TYPE or hf:DIRECTORY"
)


@dataclass(frozen=True)
class Source:
    """A model that was found: which kind, where, and what it takes.

    `inputs` is empty where the model states its own (ONNX, pt2, timm, hf) and none was given.
    `options` are the recipe's, with every default filled in, or the settings of an hf config.
    `path` is the file or folder on this disk, `module` the dotted name of a factory's module, and
    `attribute` the factory, the timm name, or the hf type.
    """

    kind: Literal["recipe", "onnx", "exported", "factory", "timm", "hf"]
    text: str
    inputs: tuple[TensorSpec, ...] = ()
    recipe: Recipe | None = None
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    module: str = ""
    attribute: str = ""
    weights: Path | None = None
    pretrained: bool = False
    offline: bool = False

    @property
    def folder(self) -> Path | None:
        """Returns where the code of a user's recipe or file looks for its neighbours."""
        return self.path.parent if self.path and self.kind in ("recipe", "factory") else None

    @property
    def writes(self) -> bool:
        """Whether a recipe's exporter writes files from it."""
        return self.recipe is not None and self.recipe.exporter is not None

    def files(self) -> list[Path]:
        """Returns the files that it names: its own, its weights, a recipe's, a checkpoint's."""
        files = [*([self.weights] if self.weights else []), *self._option_files()]
        if self.path is None:
            return files
        if self.kind == "hf":
            return [*files, *sorted(file for file in self.path.iterdir() if file.is_file())]
        if self.kind == "recipe":
            return [*files, *sorted(self.path.parent.rglob("*.py"))]
        return [*files, self.path]

    def _option_files(self) -> list[Path]:
        """Returns the files that a recipe's options name."""
        options = self.recipe.options if self.recipe is not None else ()
        values = [str(self.options[one.name]) for one in options if one.path]
        named = [Path(value) for value in values if value]
        return [
            file
            for path in named
            for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if file.is_file()
        ]

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the source in a manifest and in a cache key."""
        return {
            "kind": self.kind,
            "name": self.text,
            "variant": self.variant,
            "options": dict(self.options),
            "inputs": [str(spec) for spec in self.inputs],
            "weights": self.weights.name if self.weights else "",
            "pretrained": self.pretrained,
        }


def all_recipes() -> Mapping[str, Recipe]:
    """Returns every recipe by name, edgeport's and those that edgeport.toml names.

    Their declarations import nothing heavy. Raises InputError for a user's recipe that fails.
    """
    return {**shipped_recipes(), **{name: recipe for name, (recipe, _) in own_recipes().items()}}


@cache
def shipped_recipes() -> Mapping[str, Recipe]:
    """Returns the recipes that come with edgeport, by name."""
    import edgeport_recipes

    folders = [m.name for m in pkgutil.iter_modules(edgeport_recipes.__path__) if m.ispkg]
    modules = [
        importlib.import_module(f"edgeport_recipes.{folder}.recipe")
        for folder in sorted(folders)
        if not folder.startswith("_")
    ]
    return {module.RECIPE.name: module.RECIPE for module in modules}


def own_recipes() -> Mapping[str, tuple[Recipe, Path]]:
    """Returns the recipes that edgeport.toml names, each with its recipe.py."""
    own: dict[str, tuple[Recipe, Path]] = {}
    for file in load_config().recipes:
        stats = [neighbour.stat() for neighbour in sorted(file.parent.glob("*.py"))]
        version = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
        recipe = _load_recipe(file, version)
        if recipe.name in own or recipe.name in shipped_recipes():
            other = own[recipe.name][1] if recipe.name in own else "edgeport's own"
            raise InputError(f"{file}: a recipe {recipe.name!r} is there already ({other})")
        own[recipe.name] = (recipe, file)
    return own


def recipe_file(name: str) -> Path:
    """Returns the recipe.py that declares a recipe."""
    own = own_recipes()
    if name in own:
        return own[name][1]
    import edgeport_recipes

    return Path(next(iter(edgeport_recipes.__path__)), name, "recipe.py")


@lru_cache(maxsize=64)
def _load_recipe(file: Path, version: tuple[tuple[int, int], ...]) -> Recipe:
    del version  # part of the cache's key: an edited recipe is read again
    with user_code(str(file)), importable(file.parent):
        recipe = getattr(load_file(file), "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{file} has no RECIPE that is an edgeport.types.Recipe")
    return recipe


def parse_spec(text: str) -> TensorSpec:
    """Returns the input spec written as `name:float32[1,3,224,224]`; raises InputError."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise InputError(f"input {text!r} is not a spec; write it as name:float32[1,3,224,224]")
    if match["dtype"] not in DTYPES:
        raise UnknownName("element type", match["dtype"], DTYPES)
    try:
        shape = tuple(int(size) for size in match["shape"].split(","))
    except ValueError:
        raise InputError(f"input {text!r} has an empty size; write it as [1,3,224,224]") from None
    if 0 in shape:
        raise InputError(f"input {text!r} has a size of 0; every size is 1 or more")
    return TensorSpec(match["name"], match["dtype"], shape)


def find_source(
    text: str,
    *,
    inputs: Sequence[str] = (),
    weights: Path | None = None,
    variant: str | None = None,
    options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    offline: bool = False,
) -> Source:
    """Returns the source that `text` names, checked as far as possible without importing it.

    Raises InputError or UnknownName for a file that is not there, a library that is missing, an
    input spec that is missing or malformed, and flags that this kind of source does not take.
    """
    specs = tuple(parse_spec(spec) for spec in inputs)
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError(f"--input {', '.join(inputs)} names an input twice")
    if weights is not None and not weights.is_file():
        raise InputError(f"weights {weights}: no such file")
    if pretrained and offline:
        raise InputError("--pretrained downloads and --offline forbids it; leave one out")
    if text in all_recipes():
        refused = {"--input": specs, "--weights": weights, "--pretrained": pretrained}
        _refuse(text, "a recipe", refused)
        source = _recipe_source(text, variant, options or {})
    else:
        _refuse(text, "no recipe", {"--variant": variant, "a recipe's option": options})
        source = _find_model(text, specs, weights, pretrained)
    return replace(source, offline=offline)


def _find_model(
    text: str, specs: tuple[TensorSpec, ...], weights: Path | None, pretrained: bool
) -> Source:
    prefix, _, name = text.partition(":")
    if prefix in LIBRARIES and text != prefix:
        if pretrained and weights is not None:
            raise InputError(f"{text}: --pretrained and --weights both give weights; leave one out")
        _need(prefix)
        find = _timm_source if prefix == "timm" else _hf_source
        source = find(text, name, pretrained)
        return replace(source, inputs=specs, weights=weights, pretrained=pretrained)
    _refuse(text, "neither timm: nor hf:", {"--pretrained": pretrained})
    if text.endswith(".onnx"):
        _refuse(text, "an ONNX file", {"--weights": weights})
        return Source("onnx", text, specs, path=_existing(Path(text)))
    if text.endswith(".pt2"):
        return Source("exported", text, specs, path=_existing(Path(text)), weights=weights)
    file, _, attribute = text.rpartition(":")
    if text.endswith(".py") or file.endswith(".py"):
        path = _existing(Path(file)) if attribute.isidentifier() else Path(file)
        return _factory_source(text, path, "", attribute, specs, weights)
    if ":" in text and _DOTTED.fullmatch(file):
        return _factory_source(text, _find_module(text, file), file, attribute, specs, weights)
    raise _no_model(text)


def _no_model(text: str) -> InputError:
    """Returns the error for a name that is nothing, or a file that is no model."""
    path = Path(text)
    if path.is_file() and path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        return InputError(f"{text} holds weights, no model: give file.py:factory --weights {text}")
    if path.is_dir() and (path / "config.json").is_file():
        return InputError(f"{text} is a folder with a config.json: write it as hf:{text}")
    if path.exists():
        return InputError(f"{text} is no model; a source is {_FORMS}")
    error = UnknownName("recipe", text, all_recipes())
    return error if ":" not in text else InputError(f"{text}: not understood; a source is {_FORMS}")


def _refuse(text: str, kind: str, given: Mapping[str, object]) -> None:
    for flag, value in given.items():
        if value:
            raise InputError(f"{text} is {kind} and takes no {flag}; leave it out")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.resolve()


def _need(prefix: str) -> None:
    if importlib.util.find_spec(LIBRARIES[prefix]) is None:
        library = LIBRARIES[prefix]
        raise InputError(
            f'{prefix}: needs {library}, not installed: pip install "edgeport[{prefix}]"'
        )


def _factory_source(
    text: str,
    path: Path | None,
    module: str,
    attribute: str,
    specs: tuple[TensorSpec, ...],
    weights: Path | None,
) -> Source:
    if not attribute.isidentifier():
        raise InputError(f"{text}: name the function or class after the colon, as file.py:build")
    if not specs:
        raise InputError(f"{text} needs its inputs: add --input name:float32[1,3,224,224]")
    return Source(
        "factory", text, specs, path=path, module=module, attribute=attribute, weights=weights
    )


def _find_module(text: str, module: str) -> Path | None:
    """Returns the file of a dotted module below the current directory, None for an installed one.

    Nothing is imported: only the first package is looked for where it is installed.
    """
    top, *rest = module.split(".")
    place = Path.cwd().joinpath(top, *rest)
    for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if file.is_file():
            return file.resolve()
    if importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) is None:
        near = difflib.get_close_matches(top, LIBRARIES, n=1)
        name = text.partition(":")[2]
        hint = f"did you mean {near[0]}:{name}?" if near else "install it, or start where it lies"
        raise InputError(f"{text}: no module {top!r} can be imported from here; {hint}")
    return None


def _timm_source(text: str, name: str, pretrained: bool) -> Source:
    del pretrained  # every timm name may have weights; timm says which
    if not re.fullmatch(r"[\w.\-]+", name):
        raise InputError(f"{text}: write it as timm:NAME, as timm:resnet18")
    return Source("timm", text, attribute=name)


def _hf_source(text: str, name: str, pretrained: bool) -> Source:
    if not name or name.startswith(","):
        raise InputError(f"{text}: write it as hf:TYPE, hf:TYPE,key=value or hf:DIRECTORY")
    name, *settings = re.split(r",(?![^\[]*\])", name)  # no comma within [...]
    options = dict(_setting(text, setting) for setting in settings)
    path = Path(name)
    if (path / "config.json").is_file():
        if options or pretrained:
            refused = "key=value" if options else "--pretrained"
            raise InputError(f"{text} is a checkpoint on this disk and takes no {refused}")
        return Source("hf", text, path=path.resolve())
    if path.is_dir():
        raise InputError(f"{text}: the folder has no config.json")
    if "/" in name and not pretrained:
        raise InputError(f"{text}: no such folder; one on the hub is downloaded by --pretrained")
    return Source("hf", text, attribute=name, options=options)


def _setting(text: str, setting: str) -> tuple[str, Any]:
    key, equals, value = setting.partition("=")
    if not equals or not key.isidentifier():
        raise InputError(f"{text}: {setting!r} is no key=value; write it as hf:TYPE,key=value")
    return key, parse_value(value)


def parse_value(text: str) -> Any:
    """Returns what a config's value means: bool, none, int, float, a list of these, or a string."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [parse_value(item) for item in re.split(r",(?![^\[]*\])", text[1:-1]) if item]
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _recipe_source(text: str, variant: str | None, given: Mapping[str, Any]) -> Source:
    recipe = all_recipes()[text]
    variant = variant or recipe.default_variant
    if variant not in recipe.variants:
        raise UnknownName(f"variant of {recipe.name}", variant, recipe.variants)
    options = {option.name: option.default for option in recipe.options}
    for name, value in given.items():
        options[name] = _checked_option(recipe, name, value)
    path = own_recipes()[text][1] if text not in shipped_recipes() else None
    with user_code(f"inputs of {text}"):
        specs = recipe.inputs(**options)
    return Source("recipe", text, specs, recipe=recipe, variant=variant, options=options, path=path)


def _checked_option(recipe: Recipe, name: str, value: Any) -> int | float | str:
    known: dict[str, Option] = {option.name: option for option in recipe.options}
    if name not in known:
        raise UnknownName(f"option of {recipe.name}", name, known)
    option = known[name]
    if option.choices and value not in option.choices:
        raise UnknownName(f"value of --{name}", str(value), option.choices)
    if not isinstance(value, type(option.default)):
        expected = type(option.default).__name__
        raise InputError(f"option {name} of {recipe.name} takes {expected}, not {value!r}")
    return value
