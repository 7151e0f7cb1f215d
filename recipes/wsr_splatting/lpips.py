"""LPIPS, the distance of two pictures in the features of AlexNet; its weights must be given.

Source: Zhang, Isola, Efros, Shechtman and Wang, arXiv 1801.03924, version 0.1 of its heads.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeport.errors import InputError

# of pictures in -1..1
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_TAPS = (1, 4, 7, 9, 11)  # after each ReLU of torchvision's `features`


class Lpips(nn.Module):
    """Maps two pictures [h, w, 3] in 0..1 to their distance; 0 for equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU()),
        )
        self.heads = nn.ParameterList(
            torch.zeros(1, channels, 1, 1) for channels in (64, 192, 384, 256, 256)
        )

    def forward(self, image: Tensor, wanted: Tensor) -> Tensor:
        total = image.new_zeros(())
        for one, other, head in zip(self.taps(image), self.taps(wanted), self.heads):
            apart = (F.normalize(one, eps=1e-10) - F.normalize(other, eps=1e-10)).square()
            total = total + F.conv2d(apart, head).mean()
        return total

    def taps(self, image: Tensor) -> list[Tensor]:
        shift, scale = (image.new_tensor(values) for values in (_SHIFT, _SCALE))
        x = ((image * 2 - 1 - shift) / scale).permute(2, 0, 1)[None]
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                found.append(x)
        return found


def load(backbone: Path, heads: Path) -> Lpips:
    """Returns the distance with torchvision's AlexNet and the published heads (alex.pth).

    Raises InputError for files that hold other weights.
    """
    net = Lpips()
    layers = _weights(backbone)
    own = {name: layers[name] for name in net.state_dict() if name in layers}
    published = {name: one for name, one in _weights(heads).items() if name.startswith("lin")}
    own |= {f"heads.{name[3]}": one for name, one in published.items()}
    try:
        net.load_state_dict(own)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(
            f"{backbone}, {heads}: no AlexNet of torchvision and heads of LPIPS ({problem})."
        ) from error
    return net.eval().requires_grad_(False)


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise InputError(f"{path}: no weights of PyTorch ({reason}); give another.") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds no state_dict; give another.")
    return state
