"""Shared fixtures: our own cache, a small model, a small disk, the command in a real process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

if TYPE_CHECKING:
    from hub_phone import Hub

# Their assertions too show the values that differ; it must precede the first import of them.
pytest.register_assert_rewrite("support", "versions")

from support import FACTORY, Command, command, command_environment, conv_net  # noqa: E402

import edgeport  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, which our child processes inherit."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache, and no worker another worker's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPORT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A file whose `build` gives two convolutions that take INPUT."""
    path = tmp_path / "tiny.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def run_cli(tmp_path: Path) -> Command:
    """Runs `python -m edgeport ARGUMENTS` in `tmp_path`."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=command_environment(**environment),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where an output directory may be made; nothing is there yet."""
    return tmp_path / "out"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yields a mounted file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the passes, where they are not what is tested: onnxsim's child takes long."""
    monkeypatch.setattr("edgeport.stages.passes_for", lambda target: ())


# An export to run at places, and Qualcomm's AI Hub on this machine


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in w8a8 with an ONNX file and a context binary; net.onnx lies beside it."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(conv_net(), folder / "net.onnx")
    return edgeport.export(
        str(folder / "net.onnx"),
        device="s24",
        precision="w8a8",
        calib_samples=4,
        parity_samples=2,
        output_dir=folder / "out",
    ).directory


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def hub(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server; the account is in the ini file that the environment names."""
    from hub_server import serving, write_ini

    with serving(tmp_path) as server:
        server.know(export / "model_ctx.onnx")
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_ini(tmp_path / "hub.ini", server.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between its retries, 48 s in all, take no time."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


# A skip for something that EDGEPORT_REQUIRE names is a failure


def _required(reason: str) -> str | None:
    """Returns the required name that a test was skipped for; skips say "needs NAME ..."."""
    words = reason.removeprefix("Skipped: ").split()
    required = [name.strip() for name in os.environ.get("EDGEPORT_REQUIRE", "").split(",")]
    if words[:1] == ["needs"] and len(words) > 1 and words[1].rstrip(":,;") in required:
        return words[1].rstrip(":,;")
    return None


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if name := _required(reason):
        report.outcome = "failed"
        report.longrepr = f"EDGEPORT_REQUIRE names {name}, and this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    _refuse_skip(report)
    return report
