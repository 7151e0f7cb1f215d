"""What an export builds again, and what it takes from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import FACTORY, INPUT, gaussian, reference, tiny

import edgeport
from edgeport import stages


@pytest.mark.usefixtures("quick")
def test_what_rebuilds_a_factory(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from layers import build\n")
    (tmp_path / "layers.py").write_text(FACTORY + "\nSCALE = 3\n")
    first = tiny(tmp_path)
    before = reference(tmp_path)
    assert first.cached_steps == 0

    (tmp_path / "notes.txt").write_text("unrelated")
    (tmp_path / "other.py").write_text("unrelated = 1")
    again = tiny(tmp_path)
    assert again.cached_steps == again.steps
    assert again.manifest == first.manifest

    layers = (tmp_path / "layers.py").read_text()
    (tmp_path / "layers.py").write_text(layers.replace("nn.ReLU()", "nn.SiLU()"))
    assert tiny(tmp_path).cached_steps == 0
    assert not np.array_equal(reference(tmp_path), before)

    (tmp_path / "layers.py").write_text(layers)  # as it was: the old entries are still good
    assert tiny(tmp_path).cached_steps == first.steps
    assert np.array_equal(reference(tmp_path), before)

    (tmp_path / "layers.py").write_text(layers.replace("SCALE = 3", "SCALE = 4"))  # one byte
    assert tiny(tmp_path).cached_steps == 0
    assert np.array_equal(reference(tmp_path), before)

    assert tiny(tmp_path, seed=1).cached_steps == 0
    assert not np.array_equal(reference(tmp_path), before)


@pytest.mark.usefixtures("quick")
def test_what_rebuilds_the_factory_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "__init__.py").write_text("")
    (tmp_path / "project" / "net.py").write_text("from project.layers import build\n")
    layers = tmp_path / "project" / "layers.py"
    layers.write_text(FACTORY)

    def export() -> Any:
        return edgeport.export("project.net:build", output_dir="out", **request)

    request: dict[str, Any] = {"device": "s24", "target_runtimes": ("onnx",), "inputs": (INPUT,)}
    first = export()
    assert (first.cached_steps, export().cached_steps) == (0, first.steps)
    before = reference(tmp_path)
    layers.write_text(FACTORY.replace("nn.ReLU()", "nn.SiLU()"))
    assert export().cached_steps == 0
    assert not np.array_equal(reference(tmp_path), before)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "kind",
    [
        "numpy",
        "torch",
        "safetensors",
    ],
)
def test_weights_that_a_factory_reads_itself(tmp_path: Path, kind: str) -> None:
    """The factory's own files belong to the key, whatever library opens them."""
    readers = {
        "numpy": "torch.from_numpy(numpy.load(HERE / 'w.npy'))",
        "torch": "torch.load(HERE / 'w.pt')['w']",
        "safetensors": "safetensors.torch.load_file(HERE / 'w.safetensors')['w']",
    }

    def write(value: float) -> None:
        tensor = torch.full((8,), value)
        np.save(tmp_path / "w.npy", tensor.numpy())
        torch.save({"w": tensor}, tmp_path / "w.pt")
        save_file({"w": tensor}, tmp_path / "w.safetensors")

    body = FACTORY.replace("    return", "    net =").replace(
        "from torch",
        "import numpy, pathlib, safetensors.torch, torch\n"
        "HERE = pathlib.Path(__file__).parent\nfrom torch",
    )
    (tmp_path / "net.py").write_text(
        f"{body}    net[0].bias.data = {readers[kind]}\n    return net\n"
    )
    write(1.0)
    tiny(tmp_path)
    before = reference(tmp_path)
    again = tiny(tmp_path)
    assert again.cached_steps == again.steps
    write(2.0)
    assert tiny(tmp_path).cached_steps == 0
    assert not np.array_equal(reference(tmp_path), before)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_given_by_the_user(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    shapes = {"0.weight": (8, 3, 3, 3), "0.bias": (8,), "2.weight": (4, 8, 1, 1), "2.bias": (4,)}
    path = tmp_path / f"weights{suffix}"

    def write(seed: int) -> None:
        torch.manual_seed(seed)
        state = {name: torch.randn(shape) for name, shape in shapes.items()}
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)

    write(1)
    first = tiny(tmp_path, weights=path)
    one = reference(tmp_path)
    assert first.manifest["source"]["weights"] == path.name
    write(2)
    assert tiny(tmp_path, weights=path).cached_steps == 0
    two = reference(tmp_path)
    assert not np.array_equal(one, two)
    tiny(tmp_path)
    assert not np.array_equal(reference(tmp_path), two)


@pytest.mark.usefixtures("quick")
def test_what_rebuilds_the_quantized_model(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    data = tmp_path / "data.npz"
    samples = gaussian([6, 3, 16, 16])
    np.savez(data, image=samples)
    common = {"precision": "w8a8", "calib_data": data}

    def fresh(**options: Any) -> set[str]:
        """Returns the stages that were built, and not found in the cache."""
        built = []
        request = {**common, **options}

        def note(name: str, build: Any) -> Any:
            def run(*arguments: Any, **keywords: Any) -> Any:
                built.append(name)
                return build(*arguments, **keywords)

            return run

        with pytest.MonkeyPatch.context() as patch:
            for name in ("capture", "quantize"):
                patch.setattr(stages, name, note(name, getattr(stages, name)))
            result = tiny(tmp_path, **request)
        assert result.manifest["calibrated_on"] <= 5
        return set(built)

    assert fresh() == {"capture", "quantize"}
    assert fresh() == set()
    assert fresh(precision="w8a16") == {"quantize"}
    assert fresh(calib_samples=3) == {"quantize"}
    samples[5, 0, 0, 0] += 0.5
    np.savez(data, image=samples)
    assert "quantize" in fresh()
    assert fresh(device="s23") == set()  # nothing up to here depends on the device
