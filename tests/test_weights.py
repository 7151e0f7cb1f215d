"""Weight files as trainers write them: wrapped, prefixed, and from before batches were counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeport.errors import InputError
from edgeport.sources.weights import load_weights


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_what_a_trainer_wraps_around_them_is_taken_off(
    tmp_path: Path, wrapper: str, prefix: str
) -> None:
    trained = {prefix + key: value + 1 for key, value in net().state_dict().items()}
    torch.save({wrapper: trained} if wrapper else trained, tmp_path / "w.pth")
    module = net()
    load_weights(module, tmp_path / "w.pth")
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, trained[prefix + key])


def test_a_missing_count_of_batches_is_no_missing_weight(tmp_path: Path) -> None:
    state = {k: v for k, v in net().state_dict().items() if "num_batches" not in k}
    torch.save(dict(state), tmp_path / "w.pth")
    load_weights(net(), tmp_path / "w.pth")
    del state["1.running_mean"]
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"lack 1\.running_mean$"):
        load_weights(net(), tmp_path / "w.pth")
