"""`edgeport_gate`: a user's own test-suite holds a claim, in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support import ROOT, conv_net, save

SUITE = """import shutil

def test_it_stays_right(edgeport_gate):
    gate = edgeport_gate("net.onnx", device="s24", target_runtimes=["onnx"])
    verdict = gate.hold("sqnr_db:onnx", ">=", 60, provenance=("host",))
    assert verdict.outcome == "pass"
    gate.hold("sqnr_db", ">=", 60, provenance="host")
    gate.hold("size_bytes:onnx", "<=", 10_000, provenance=("host",), why="the app's budget")
    again = edgeport_gate("net.onnx", device="s24", target_runtimes=["onnx"])
    assert again.measurements is gate.measurements


def test_it_fails(edgeport_gate):
    gate = edgeport_gate("net.onnx", device="s24", target_runtimes=["onnx"])
    gate.hold("size_bytes:onnx", "<=", 1, provenance=("host",), why="no model is so small")


def test_it_is_missing(edgeport_gate):
    gate = edgeport_gate("net.onnx", device="s24", target_runtimes=["onnx"])
    gate.hold("sqnr_db:onnx", ">=", 60, provenance=("device",))


def test_nothing_measures_it(edgeport_gate):
    gate = edgeport_gate("net.onnx", device="s24", target_runtimes=["onnx"])
    gate.hold("latency_ms:onnx", "<=", 60, provenance=("device",))


def test_missing_is_allowed(edgeport_gate):
    gate = edgeport_gate(
        "net.onnx", device="s24", target_runtimes=["onnx"], allow=("missing",)
    )
    gate.hold("sqnr_db:onnx", ">=", 60, provenance=("device",))


def test_a_changed_file_is_measured_again(edgeport_gate, tmp_path):
    # A stale number would be a pass of what is no longer there.
    path = str(shutil.copy("net.onnx", tmp_path))
    first = edgeport_gate(path, device="s24", target_runtimes=["onnx"])
    again = edgeport_gate(path, device="s24", target_runtimes=["onnx"])
    assert again.measurements is first.measurements
    shutil.copy("smaller.onnx", path)
    changed = edgeport_gate(path, device="s24", target_runtimes=["onnx"])
    changed.hold("size_bytes:onnx", "<=", size(first) - 1, provenance=("host",))


def size(gate):
    return next(one.value for one in gate.measurements if one.metric == "size_bytes:onnx")


def test_a_wrong_name(edgeport_gate):
    edgeport_gate("net.onnx", device="s24", allow=("fail",))


def test_no_such_file(edgeport_gate):
    edgeport_gate("other.onnx", device="s24")
"""


OURS = ("-p", "edgeport.pytest_plugin")  # without others, which only take their time


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed distribution that has our entry point."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "edgeport_for_pytest-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeport-for-pytest\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nedgeport = edgeport.pytest_plugin\n")
    return folder


def run_pytest(
    folder: Path, site: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    path = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    net = save(conv_net(), tmp_path / "net.onnx")
    smaller = onnx.load(net)
    del smaller.graph.node[-1], smaller.graph.initializer[-1]  # the last convolution
    smaller.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [1, 8, 16, 16])
    )
    save(smaller, tmp_path / "smaller.onnx")
    (tmp_path / "test_gate.py").write_text(SUITE)
    return tmp_path


def test_a_suite_holds_claims_on_its_model(suite: Path, site: Path) -> None:
    done = run_pytest(suite, site, "-v", *OURS, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    assert "5 failed, 3 passed, 1 warning" in out
    lines = [line for line in out.splitlines() if line.startswith("FAILED")]
    told = {line.partition("::")[2].partition(" - ")[0]: line for line in lines}
    assert "net.onnx: size_bytes:onnx <= 1 (host): fail: size_bytes:onnx 1,3" in out
    assert "(no model is so small)" in out
    assert "missing: measured as host only" in out
    assert "missing: nothing measured it here; there are sqnr_db:onnx (host), " in out
    assert "PytestWarning: net.onnx: sqnr_db:onnx >= 60 (device): missing: " in out
    assert "unknown outcome to allow 'fail'" in out
    assert "other.onnx: no such file" in out
    assert set(told) == {
        *("test_it_fails", "test_it_is_missing", "test_nothing_measures_it"),
        *("test_a_wrong_name", "test_no_such_file"),
    }
    assert "/edgeport/" not in out.partition("= FAILURES =")[2]  # the test's line, none of ours


def test_workers_share_the_suite(suite: Path, site: Path) -> None:
    pytest.importorskip("xdist", reason="needs xdist: pip install pytest-xdist")
    chosen = ("-p", "xdist", "-n", "2", "-k", "right or allowed")
    done = run_pytest(suite, site, *OURS, *chosen, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_a_speed_is_held_against_a_baseline(tmp_path: Path, site: Path) -> None:
    """A net beside itself is neither faster nor slower, and never half as fast."""
    for name in ("net.onnx", "before.onnx"):
        save(conv_net(), tmp_path / name)
    (tmp_path / "test_speed.py").write_text(
        "def test_speed(edgeport_gate):\n"
        "    options = {'device': 's24', 'target_runtimes': ['onnx']}\n"
        "    gate = edgeport_gate('net.onnx', baseline='before.onnx', seconds=5, **options)\n"
        "    gate.hold('speedup:before.onnx', '>=', 0.5, provenance='host')\n"
        "    gate.hold('speedup', '>=', 2, provenance='host')\n"
    )
    done = run_pytest(tmp_path, site, "-q")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "net.onnx: speedup >= 2 (host): fail: speedup:before.onnx " in done.stdout


def test_sessions_that_do_not_use_it_import_nothing(tmp_path: Path, site: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import json, sys\n\n\ndef test_other():\n"
        "    print('modules', json.dumps(sorted(sys.modules)))\n"
    )

    def modules(*arguments: str) -> set[str]:
        done = run_pytest(tmp_path, site, "-q", "-s", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("modules "))
        return set(json.loads(line.removeprefix("modules ")))

    more = modules() - modules("-p", "no:edgeport")
    assert more == {"edgeport", "edgeport.pytest_plugin"}


def test_what_is_no_number_does_not_hide_behind_one_that_holds() -> None:
    from edgeport.pytest_plugin import Gate
    from edgeport.types import Measurement

    values = {"onnx": 40.0, "tflite": float("nan"), "executorch": 50.0}
    measured = tuple(
        Measurement(f"sqnr_db:{name}", value, "dB", "host") for name, value in values.items()
    )
    with pytest.raises(AssertionError, match="sqnr_db:tflite nan dB"):
        Gate("net.onnx", measured).hold("sqnr_db", ">=", 30, provenance="host")
    verdict = Gate("net.onnx", measured[::2]).hold("sqnr_db", ">=", 30, provenance="host")
    assert json.dumps(verdict.to_dict())
    assert verdict.measurement is measured[0]  # the worst decides
