"""What the benchmarks compute from their rows; the suites themselves are run by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from support import needs_pillow

from benchmarks.cifar_vit import wilson_interval
from benchmarks.data import CIFAR, cifar_images
from benchmarks.padre_tables import _crossover
from benchmarks.tables import DEFAULT, NOT_RUN, Results, Row, cell
from edgeport.errors import InputError


def test_wilson_interval_of_a_textbook_case() -> None:
    low, high = wilson_interval(15, 50)
    assert low == pytest.approx(0.191, abs=0.001)
    assert high == pytest.approx(0.438, abs=0.001)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_crossover_is_interpolated_and_never_hidden() -> None:
    assert _crossover([]) == NOT_RUN
    assert _crossover([(100, 0.5), (400, 2.0)]).startswith("200 tokens")
    assert "slower at 400" in _crossover([(100, 0.5), (400, 0.9)])
    assert "faster at every size" in _crossover([(100, 1.5), (400, 2.0)])


def test_results_are_kept_and_finished_groups_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = Row("padre", "block 196", "padre3", "latency_ms", 1.5, "ms", interval=(1.0, 2.0))
    Results(path, DEFAULT).add([row])
    again = Results(path, DEFAULT)
    assert again.finished("block 196")
    assert not again.finished("block 1024")
    assert cell(again.find("latency_ms", "padre3")[0]) == "1.50 (1.00 to 2.00)"
    assert cell(None) == NOT_RUN


@needs_pillow
def test_images_of_a_file_that_is_sorted_by_class_are_of_all_classes(tmp_path: Path) -> None:
    from PIL import Image

    def jpeg(grey: int) -> bytes:
        kept = io.BytesIO()
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(kept, "JPEG")
        return kept.getvalue()

    labels = np.repeat(np.arange(10, dtype=np.uint8), 3)
    files = [jpeg(20 * int(label)) for label in labels]
    offsets = np.cumsum([0, *map(len, files)])
    (tmp_path / CIFAR).parent.mkdir()
    np.savez(
        tmp_path / CIFAR,
        test_jpeg=np.frombuffer(b"".join(files), np.uint8),
        test_offsets=offsets,
        test_labels=labels,
    )
    images, found = cifar_images(tmp_path, "test", 10)
    assert found.tolist() == list(range(10)) and images.shape == (10, 3, 32, 32)
    np.testing.assert_allclose(images[:, 0, 16, 16] * 255, 20 * found, atol=2)
    assert len(cifar_images(tmp_path, "test", 7)[1]) == 7
    with pytest.raises(InputError, match="has 30 test images, not 31"):
        cifar_images(tmp_path, "test", 31)
