"""The sizes of a network, and the files of trained ones; imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeport_recipes._shared.vision.weights import read_config

from edgeport.errors import InputError

UNTRAINED = "none"
HEADS = ("pooled", "dense")


@dataclass(frozen=True)
class Shape:
    """The sizes of a network: `grid` patches of `patch` pixels a side, `keep` the share that passes
    a selective layer, `head` one set of outputs an image or one a patch."""

    grid: int = 14
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp: int = 4
    patch: int = 16
    keep: float = 0.5
    outputs: int = 1000
    head: str = "pooled"

    @property
    def tokens(self) -> int:
        """The number of tokens N."""
        return self.grid * self.grid

    @property
    def kept(self) -> int:
        """The number of tokens K that pass a selective layer: the same for every image."""
        return max(1, round(self.keep * self.tokens))

    def check(self) -> None:
        """Raises InputError, in one line, for sizes of which no network can be built."""
        for name in ("grid", "dim", "depth", "heads", "mlp", "patch", "outputs"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"tosa: {name} is {value}; give 1 or more.")
        if self.depth % 2:
            raise InputError(f"tosa: depth is {self.depth}; layers come in pairs, give an even one")
        if self.dim % self.heads:
            raise InputError(f"tosa: {self.heads} heads do not divide dim {self.dim}")
        if not 0 < self.keep <= 1:
            raise InputError(f"tosa: keep is {self.keep}; give a share above 0, up to 1.")
        if self.head not in HEADS:
            raise InputError(f"tosa: unknown head {self.head!r}; give one of {', '.join(HEADS)}.")


# Trained networks

SHIPPED = Path(__file__).with_name("weights")

ARMS = {
    "full": "full",
    "full_longer": "full",
    "tosa": "topk",
    "copy": "copy",
    "random": "random",
    "drop": "drop",
    "merge": "merge",
}
"""The arms that train.py trains, and the variant of the model that each one is."""


BASELINE, OURS = "full_longer", "tosa"
"""The arms that claims compare: what is fine-tuned is held to a full network trained as long."""

ARM_OF = {"full": BASELINE, "topk": OURS}
"""The arm whose weights come with edgeport, by variant."""


@dataclass(frozen=True)
class Config:
    """What a trained net is, beside its weights."""

    task: str
    arm: str
    seed: int
    shape: Shape

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


def open_config(path: Path) -> Config:
    """Returns the configuration of a file that `save` wrote; raises InputError for another."""
    table = read_config(path)
    try:
        shape = Shape(**{field.name: table["shape"][field.name] for field in fields(Shape)})
        config = Config(table["task"], table["arm"], table["seed"], shape)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no weights of tosa ({error}); train them with train.py."
        ) from error
    if config.arm not in ARMS:
        raise InputError(f"{path}: weights of an unknown arm {config.arm!r}; train them again.")
    return config


def find_weights(variant: str, weights: str) -> Path:
    """Returns the file: `weights` is a path, or the name of a task with weights of ours."""
    arm = ARM_OF.get(variant, variant)
    shipped = SHIPPED / f"{weights}-{arm}.safetensors"
    if shipped.exists():
        return shipped
    if not Path(weights).is_file():
        names = ", ".join(sorted({file.stem.split("-")[0] for file in our_files()}))
        raise InputError(
            f"tosa: no weights {weights} of {arm}; give a file of train.py, or one of ours by its"
            f" task: {names or 'there are none'}."
        )
    return Path(weights)


def our_files() -> list[Path]:
    """Returns the files of weights that come with edgeport."""
    return sorted(SHIPPED.glob("*.safetensors"))


def config_of(weights: str) -> Config:
    """Returns the configuration of a file, or of any net that was trained for a task of ours."""
    ours = [file for file in our_files() if file.stem.split("-")[0] == weights]
    return open_config(ours[0] if ours else find_weights("topk", weights))
