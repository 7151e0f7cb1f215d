"""What the benchmarks compute from their rows; the suites themselves are run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cifar_vit import wilson_interval
from benchmarks.padre_tables import _crossover
from benchmarks.tables import DEFAULT, NOT_RUN, Results, Row, cell


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
