"""`edgeport bench --on ssh://...`: arms run one after the other on a real sshd on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import Server, address, needs_sshd, running_sshd
from support import LIMITS, conv_net, save

import edgeport
from edgeport.benchmarking import Benchmark, run_benchmark
from edgeport.errors import InputError
from edgeport.places import board
from edgeport.places.ssh import CONFIG_VARIABLE

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeport.stages.passes_for", lambda target: ())  # they take long
        made = edgeport.export(
            str(save(conv_net(), folder / "net.onnx")),
            device="s24",
            target_runtimes=("onnx",),
            output_dir=folder / "out",
        )
    return str(made.directory)


@pytest.fixture(scope="module")
def found(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benchmark]:
    with (
        running_sshd(tmp_path_factory.mktemp("board")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        yield measured(server, patch, exported)


def measured(server: Server, patch: pytest.MonkeyPatch, exported: str) -> Benchmark:
    patch.setenv(CONFIG_VARIABLE, str(server.config))
    patch.setattr(board, "WARMUP_SECONDS", 0.2)
    patch.setattr(board, "TIMED_SECONDS", 0.1)
    return run_benchmark(
        [exported, exported],
        on=address(server),
        blocks=6,
        seconds=1.0,
        cool_down=0.0,
        limits=LIMITS,
    )


def test_every_arm_has_samples_of_every_block(found: Benchmark) -> None:
    first, second = found.result.arms
    assert found.result.blocks == 6 and second.name == f"{first.name}#2"
    for arm in (first, second):
        told = {one.metric for one in arm.measurements}
        assert {"latency_ms", "p99_ms", "load_ms", "first_latency_ms", "peak_bytes"} <= told
        assert len(arm.measurement("latency_ms").samples) == 6


def test_loopback_is_this_machine(found: Benchmark) -> None:
    assert found.result.provenance == "host"
    assert {one.provenance for arm in found.result.arms for one in arm.measurements} == {"host"}


def test_the_board_tells_what_it_is(found: Benchmark) -> None:
    lines = found.conditions()
    assert lines[0].startswith("host: ") and "onnxruntime" in lines[1]
    assert "exact dB" in "\n".join(found.verdicts())


def test_a_file_alone_is_no_export(tmp_path: Path) -> None:
    file = save(conv_net(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="a place runs the files of an export"):
        run_benchmark([str(file)], on="adb:none", limits=LIMITS, blocks=6)
