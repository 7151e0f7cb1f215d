"""Finds what the user names: a recipe, an ONNX file, or a factory of an nn.Module in a file.

    padre  |  model.onnx  |  path/to/file.py:factory

Finding imports nothing heavy; `build_module` does, and only then runs the user's code.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeport.errors import EdgeportError, InputError, UnknownName
from edgeport.types import Option, Recipe, TensorSpec

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
_SPEC = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<dtype>\w+)\[(?P<shape>[\d,\s]+)\]")


@dataclass(frozen=True)
class Source:
    """A model that was found: which kind, where, and what it takes.

    `inputs` is empty for an ONNX file, which states its own. `options` are the recipe's, with
    every default filled in.
    """

    kind: Literal["recipe", "onnx", "factory"]
    text: str
    inputs: tuple[TensorSpec, ...] = ()
    recipe: Recipe | None = None
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    attribute: str = ""
    weights: Path | None = None

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the source in a manifest and in a cache key."""
        return {
            "kind": self.kind,
            "name": self.text,
            "variant": self.variant,
            "options": dict(self.options),
            "inputs": [str(spec) for spec in self.inputs],
            "weights": self.weights.name if self.weights else "",
        }


@cache
def all_recipes() -> Mapping[str, Recipe]:
    """Returns every recipe by name; their declarations import nothing heavy."""
    import edgeport_recipes

    folders = [m.name for m in pkgutil.iter_modules(edgeport_recipes.__path__) if m.ispkg]
    modules = [
        importlib.import_module(f"edgeport_recipes.{folder}.recipe")
        for folder in sorted(folders)
        if not folder.startswith("_")
    ]
    return {module.RECIPE.name: module.RECIPE for module in modules}


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
) -> Source:
    """Returns the source that `text` names, checked as far as possible without importing it.

    Raises InputError or UnknownName for a file that is not there, an input spec that is missing
    or malformed, and flags that this kind of source does not take.
    """
    specs = tuple(parse_spec(spec) for spec in inputs)
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError(f"--input {', '.join(inputs)} names an input twice")
    if weights is not None and not weights.is_file():
        raise InputError(f"weights {weights}: no such file")
    file, _, attribute = text.rpartition(":")
    if text in all_recipes():
        _refuse(text, "a recipe", {"--input": specs, "--weights": weights})
        return _recipe_source(all_recipes()[text], text, variant, options or {})
    _refuse(text, "no recipe", {"--variant": variant, "a recipe's option": options})
    if text.endswith(".onnx"):
        _refuse(text, "an ONNX file", {"--input": specs, "--weights": weights})
        return Source("onnx", text, path=_existing(Path(text)))
    if text.endswith(".py") or file.endswith(".py"):
        return _factory_source(text, Path(file), attribute, specs, weights)
    raise UnknownName("recipe", text, all_recipes())


def _refuse(text: str, kind: str, given: Mapping[str, object]) -> None:
    for flag, value in given.items():
        if value:
            raise InputError(f"{text} is {kind} and takes no {flag}; leave it out")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.resolve()


def _factory_source(
    text: str, path: Path, attribute: str, specs: tuple[TensorSpec, ...], weights: Path | None
) -> Source:
    if not attribute.isidentifier():
        raise InputError(f"{text}: name the function or class after the colon, as file.py:build")
    path = _existing(path)
    if not specs:
        raise InputError(f"{text} needs its inputs: add --input name:float32[1,3,224,224]")
    return Source("factory", text, specs, path=path, attribute=attribute, weights=weights)


def _recipe_source(
    recipe: Recipe, text: str, variant: str | None, given: Mapping[str, Any]
) -> Source:
    variant = variant or recipe.default_variant
    if variant not in recipe.variants:
        raise UnknownName(f"variant of {recipe.name}", variant, recipe.variants)
    options = {option.name: option.default for option in recipe.options}
    for name, value in given.items():
        options[name] = _checked_option(recipe, name, value)
    specs = recipe.inputs(**options)
    return Source("recipe", text, specs, recipe=recipe, variant=variant, options=options)


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


def load_function(reference: str) -> Callable[..., Any]:
    """Returns the function that a recipe names as "module:function"."""
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def build_module(source: Source, seed: int) -> nn.Module:
    """Returns the source's nn.Module in eval mode, with its weights loaded.

    What the user's code prints goes to stderr. Raises InputError when it fails, when it gives
    something else, or when the weights do not match.
    """
    from torch import nn, random

    with contextlib.redirect_stdout(sys.stderr), random.fork_rng(devices=[]):
        random.manual_seed(seed)
        if source.recipe is not None:
            build = load_function(source.recipe.variants[source.variant])
            module = build(seed, **source.options)
        else:
            module = _call_factory(source)
    if not isinstance(module, nn.Module):
        raise InputError(f"{source.text} gave a {type(module).__name__}, not a torch.nn.Module")
    if source.weights is not None:
        _load_weights(module, source.weights)
    return module.eval()


def _call_factory(source: Source) -> Any:
    assert source.path is not None
    name = f"edgeport_source_{source.path.stem}"  # never the name of a module that exists
    spec = importlib.util.spec_from_file_location(name, source.path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        with _importable(source.path.parent):
            spec.loader.exec_module(module)
            factory = getattr(module, source.attribute, None)
            if not callable(factory):
                names = [name for name, value in vars(module).items() if callable(value)]
                raise UnknownName(f"factory in {source.path.name}", source.attribute, names)
            return factory()
    except EdgeportError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise InputError(f"{source.text} raised {type(error).__name__}: {_line(error)}") from error


_neighbours: set[str] = set()  # the modules that the last factory imported from its folder


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the file import its neighbours as they are now, and nothing after it.

    What an earlier factory imported is forgotten: a notebook that edits a layer and exports again,
    or exports from two folders with a layers.py each, must not get the module it had before.
    """
    for name in _neighbours:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    before, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a stale .pyc passes for a file edited within its second
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        new = set(sys.modules) - before
        _neighbours.clear()
        _neighbours.update(name for name in new if _lies_in(folder, name))


def _lies_in(folder: Path, name: str) -> bool:
    """Returns whether a module is the user's: in the folder, but not in an environment there."""
    file = getattr(sys.modules[name], "__file__", None)
    if not isinstance(file, str) or name.partition(".")[0] in ("edgeport", "edgeport_recipes"):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(folder) and "site-packages" not in path.parts


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _load_weights(module: nn.Module, path: Path) -> None:
    state = _read_weights(path)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    for problem, keys in (("lack", missing), ("have unknown", surplus), ("differ:", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(f"weights {path} {problem} {', '.join(keys[:3])}{more}")
    module.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Any]:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each of the two libraries has its own tree of read errors
        raise InputError(f"weights {path} cannot be read: {_line(error)}") from error
    for wrapper in ("state_dict", "model"):  # the two usual ways in which trainers wrap it
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(hasattr(v, "shape") for v in state.values()):
        raise InputError(f"weights {path} hold no state_dict of tensors")
    return state
