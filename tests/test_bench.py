"""`edgeport bench`: real files in real processes, and the engine on blocks made up here."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeport.bench import Arm, Bench, Held, Settings, bench
from edgeport.benchmarking import run_benchmark
from edgeport.cli import main
from edgeport.errors import InputError, StageFailed
from edgeport.places.served import Request, Served
from edgeport.runtimes.samples import save_samples
from edgeport.runtimes.worker import Limits

LIMITS = Limits(120.0, 4 << 30)
SIZE = 256


def chain(folder: Path, name: str, products: int) -> Path:
    """Writes a model of so many products of SIZE x SIZE matrices."""
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE**0.5
    tensor = onnx.numpy_helper.from_array(weight, "w")
    names = ["x", *(f"h{i}" for i in range(products - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    value = [
        helper.make_tensor_value_info(one, TensorProto.FLOAT, (SIZE, SIZE)) for one in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / name)
    return folder / name


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["bench", *words])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(chain(folder, "one.onnx", 4)), str(chain(folder, "two.onnx", 20))


# In real processes


@pytest.fixture(scope="module")
def found(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    csv_file = tmp_path_factory.mktemp("samples") / "samples.csv"
    result = run_benchmark(
        models, threads=1, seconds=10.0, blocks=10, samples_out=csv_file, limits=LIMITS
    )
    rows = list(csv.reader(csv_file.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["arm", "block", "turn", "ms"]
    counted = Counter(row[0] for row in rows[1:])
    assert set(counted) == {*models, f"{models[0]} again"}
    assert counted[models[0]] == result.result.calls
    return result.result


def test_five_times_the_work_is_slower(found: Bench) -> None:
    (one,) = found.comparisons
    assert one.verdict == "slower" and 2.0 < one.ratio.value < 12.0
    assert one.ratio.low < one.ratio.value < one.ratio.high


def test_the_first_beside_itself_gives_the_floor(found: Bench) -> None:
    assert 0.0 < found.floor < 0.5
    assert found.floor >= abs(found.again.value - 1.0)


def test_every_figure_is_there_with_its_provenance(found: Bench) -> None:
    for arm in found.arms:
        told = {one.metric: one for one in arm.measurements}
        assert told["latency_ms"].value <= told["p90_ms"].value <= told["p99_ms"].value
        assert told["cold_ms"].value > told["load_ms"].value > 0
        assert told["first_ms"].value > 0 and told["peak_bytes"].value > 20e6
        assert told["size_bytes"].value > SIZE * SIZE * 4
        assert {one.provenance for one in arm.measurements} == {"host"}
        assert len(told["cold_ms"].samples) == found.blocks >= 6
        assert told["latency_ms"].samples and told["latency_ms"].interval


def test_the_conditions_are_told(found: Bench) -> None:
    told = found.environment
    assert told["threads"] == "1" and told["onnxruntime"] and told["os"] and told["cpu"]
    assert {"governor", "clock_mhz", "temperature_c", "cores"} <= set(told)


def test_the_command_prints_conditions_table_and_parity(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, models[0], models[0], "--seconds", "6", "--blocks", "6")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("host: ") and "threads" in lines[1] and "blocks of" in lines[2]
    for word in ("cold ms", "load", "first", "p50", "p90", "p99", "peak MB", "noise floor"):
        assert word in out
    assert f"{models[0]}#2" in out and "exact dB" in out


def test_json_is_one_document(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *models, "--seconds", "6", "--blocks", "6", "--json")
    table = json.loads(out)
    assert code == 0 and [arm["name"] for arm in table["result"]["arms"]] == list(models)
    assert table["result"]["comparisons"][0]["verdict"] in ("slower", "inconclusive")
    assert table["settings"]["blocks"] == 6


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    feeds = tmp_path / "x.npz"
    save_samples(feeds, [{"x": np.zeros((1,), np.float32)}])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"none")
    request = Request("onnx", str(broken), str(feeds), str(tmp_path / "out.npz"), 1)
    with pytest.raises(StageFailed, match=r"broken\.onnx: the process that runs it ended \(1\)"):
        Served(request, tmp_path / "work")


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    feeds = tmp_path / "x.npz"
    save_samples(feeds, [{"x": np.zeros((SIZE, SIZE), np.float32)}])
    model = chain(tmp_path, "one.onnx", 1)
    request = Request("onnx", str(model), str(feeds), str(tmp_path / "out.npz"), 1)
    with Served(request, tmp_path / "work") as one:
        os.kill(one._process.pid, signal.SIGSTOP)
        one._seconds = 0.2
        with pytest.raises(StageFailed, match=r"one\.onnx gave no answer in 0\.2 s"):
            one.turn(1)


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.onnx",), "nothing.onnx"),
        (("{model}", "--cores", "a-b"), "--cores a-b"),
        (("{model}", "--cores", "4000"), "may not use 4000"),
        (("{model}", "--blocks", "2"), "--blocks 2"),
        (("{model}", "--seconds", "0"), "--seconds 0"),
        (("{model}", "--threads", "-1"), "--threads -1"),
        (("{model}", "--samples-out", "/none/there/x.csv"), "--samples-out"),
        (("{model}", "--target-runtime", "tflite"), "is no file of tflite"),
        (("{model}", "--on", "mars"), "--on mars"),
        (("{model}", "--on", "hub"), "nothing there takes turns"),
        (("{model}", "--on", "adb"), "files of an export"),
        (("padre:nothing",), "nothing"),
        (("padre", "--target-runtime", "qnn_context_binary"), "whose times mean nothing"),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_one_line(
    models: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
    said: str,
) -> None:
    given = [word.format(model=models[0]) for word in words]
    code, out, err = run(capsys, *given)
    assert (code, out) == (2, "") and said in err and len(err.strip().splitlines()) == 1


# The engine


class Written:
    """Blocks whose milliseconds are written down: an arm's, times what it does to a block."""

    provenance = "host"

    def __init__(self, base: Mapping[str, float], noise: float) -> None:
        self.base, self.noise, self.orders = base, noise, 0
        self._rng = np.random.default_rng(0)

    def block(self, arms: Sequence[Arm], order: random.Random) -> Mapping[str, Held]:
        self.orders += 1
        held = {}
        for arm in order.sample(list(arms), len(arms)):
            level = self.base[arm.name] * float(np.exp(self.noise * self._rng.standard_normal()))
            held[arm.name] = Held(tuple((level, level) for _ in range(4)), {"load_ms": 1.0})
        return held

    def environment(self) -> Mapping[str, str]:
        return {"cpu": "written"}


def arms(folder: Path, *names: str) -> list[Arm]:
    file = folder / "file"
    file.write_bytes(b"12")
    return [Arm(name, "onnx", (file,), file, "0") for name in names]


def test_blocks_are_added_until_the_interval_is_narrow(tmp_path: Path) -> None:
    base = {"a": 1.0, "b": 1.1, "a again": 1.0}
    quiet, loud = Written(base, 0.001), Written(base, 0.03)
    settings = Settings(1, seconds=60.0, blocks=6)
    small = bench(arms(tmp_path, "a", "b"), quiet, settings)
    large = bench(arms(tmp_path, "a", "b"), loud, settings)
    assert small.blocks == 6 < large.blocks and quiet.orders == 6
    assert small.comparisons[0].verdict == large.comparisons[0].verdict == "slower"
    assert not small.warnings and "interval is still" not in "".join(large.warnings)


def test_time_ends_a_run_that_stays_wide(tmp_path: Path) -> None:
    wide = Written({"a": 1.0, "a again": 1.0}, 0.5)
    found = bench(arms(tmp_path, "a"), wide, Settings(1, seconds=0.0, blocks=6))
    assert found.blocks == 6 and "an interval is still" in found.warnings[-1]


def test_what_differs_from_itself_is_told(tmp_path: Path) -> None:
    biased = Written({"a": 1.0, "b": 1.05, "a again": 1.1}, 0.001)
    found = bench(arms(tmp_path, "a", "b"), biased, Settings(1, blocks=6))
    assert found.floor == pytest.approx(0.1, rel=0.05)
    assert found.comparisons[0].verdict == "inconclusive"
    assert "from itself" in found.warnings[0]


def test_a_warm_up_that_does_not_settle_is_told(tmp_path: Path) -> None:
    class Moving(Written):
        def block(self, arms: Sequence[Arm], order: random.Random) -> Mapping[str, Held]:
            held = super().block(arms, order)
            return {name: Held(one.turns, one.singles, moved=0.3) for name, one in held.items()}

    found = bench(arms(tmp_path, "a"), Moving({"a": 1.0, "a again": 1.0}, 0.0), Settings(1))
    told = found.arms[0].measurement("latency_ms").warnings
    assert told == ("warm-up not stable in 8 of 8 blocks: the median still moved, by up to 30%",)


def test_names_that_repeat_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names"):
        bench(arms(tmp_path, "a", "a"), Written({"a": 1.0}, 0.0), Settings(1))


def test_an_export_that_was_changed_is_not_timed(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not written by edgeport"):
        run_benchmark([str(folder)], limits=LIMITS)
