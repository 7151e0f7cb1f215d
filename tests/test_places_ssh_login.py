"""Which board ssh reaches, and what it lacks: keys, addresses, Pythons; with a real sshd."""

from __future__ import annotations

import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import Server, address, needs_sshd, running_sshd
from support import Command, check_refusal, conv_net, save

from edgeport.errors import InputError
from edgeport.places import board, find_place
from edgeport.places.ssh import CONFIG_VARIABLE, Address, _real_host, open_place

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_sshd(tmp_path_factory.mktemp("board")) as running:
        yield running


@pytest.fixture(autouse=True)
def _known(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with the server's own key and the server as known."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(server.config))


def logins(server: Server) -> int:
    return (server.folder / "sshd.log").read_text().count("Accepted publickey")


def with_config(server: Server, folder: Path, old: str, new: str) -> Path:
    """Returns another client configuration, with one line replaced."""
    text = server.config.read_text()
    assert old in text
    (folder / "config").write_text(text.replace(old, new))
    return folder / "config"


def test_an_unknown_host_key_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_config(server, tmp_path, str(server.folder / "known_hosts"), "/dev/null")
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    before = logins(server)
    with pytest.raises(
        InputError, match="its host key is not known here: connect once with ssh -p"
    ):
        find_place(address(server)).check(["onnx"])
    assert logins(server) == before
    # Not even where the user's own configuration would take any key.
    config.write_text(f"StrictHostKeyChecking no\n{config.read_text()}")
    with pytest.raises(InputError, match="its host key is not known here"):
        find_place(address(server)).check(["onnx"])
    assert logins(server) == before


def test_a_changed_host_key_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, key, *_ = (server.folder / "user_key.pub").read_text().split()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    config = with_config(
        server, tmp_path, str(server.folder / "known_hosts"), str(tmp_path / "known")
    )
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    before = logins(server)
    words = rf"not the one in known_hosts.*ssh-keygen -R '\[127\.0\.0\.1\]:{server.port}'"
    with pytest.raises(InputError, match=words):
        find_place(address(server)).check(["onnx"])
    assert logins(server) == before


def test_a_login_that_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = find_place(f"ssh://nobody-here@127.0.0.1:{server.port}")
    with pytest.raises(InputError, match=r"nobody-here@127.* refused the login: .*ssh-copy-id"):
        place.check(["onnx"])
    config = with_config(
        server, tmp_path, str(server.folder / "user_key"), str(server.folder / "host_key")
    )
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    with pytest.raises(InputError, match="refused the login"):
        find_place(address(server)).check(["onnx"])


def test_a_board_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no ssh server listens on port 1:"):
        find_place("ssh://pi@127.0.0.1:1").check(["onnx"])
    with pytest.raises(InputError, match=r"no-such-host\.invalid: no such host"):
        find_place("ssh://pi@no-such-host.invalid").check(["onnx"])


def test_a_name_in_the_users_configuration_is_this_machine_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("Host my-board\n HostName 127.0.0.2\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config"))
    assert _real_host(Address("my-board")) == "127.0.0.2"
    for text, words in (
        ("ssh://Pi@My-Board:8022", ["-l", "Pi", "-p", "8022", "--", "My-Board"]),
        ("ssh://[fe80::1]", ["--", "fe80::1"]),
        ("ssh://pi@pi", ["-l", "pi", "--", "pi"]),
    ):
        assert open_place(text)._address.ssh()[-len(words) :] == words
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(InputError, match=rf"{CONFIG_VARIABLE}: .*none is no file"):
        open_place("ssh://my-board")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://-oProxyCommand=touch@host", "write ssh://user@host"),
        ("ssh://pi@-oProxyCommand=touch%20owned", "write ssh://user@host"),
        ("ssh://pi@host;touch owned", "write ssh://user@host"),
        ("ssh://pi@$(touch owned)", "write ssh://user@host"),
        ("ssh://pi`touch owned`@host", "write ssh://user@host"),
        ("ssh://pi@host/etc", "write ssh://user@host"),
        ("ssh://pi:secret@host", "no password in an address"),
        ("ssh://pi@host:0", "write ssh://user@host"),
        ("ssh://pi@host:99999", "write ssh://user@host"),
        ("ssh://pi@host:1x", "write ssh://user@host"),
        ("ssh://", "write ssh://user@host"),
        ("ssh:pi@host", "write ssh://user@host"),
        ("ssh://pi@host?python=python3;touch owned", "python is the path of a file"),
        ("ssh://pi@host?python=-c", "python is the path of a file"),
        ("ssh://pi@host?python=$(touch%20owned)", "python is the path of a file"),
        ("ssh://pi@host?python=a%0Ab", "python is the path of a file"),
        ("ssh://pi@host?tmp=/tmp'%20", "tmp is the path of a file"),
        ("ssh://pi@host?python=", "python is the path of a file"),
        ("ssh://pi@host?threads=0", "threads is a whole number"),
        ("ssh://pi@host?pyton=python3", "Did you mean 'python'"),
    ],
)
def test_what_is_no_address(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        find_place(text)
    assert "secret" not in str(caught.value)


def test_settings() -> None:
    query = "python=~/my%20env/bin/python&threads=4"
    settings = board.parse_settings("ssh://pi@host", query, ("python", "threads"))
    assert (settings.python, settings.threads) == ("./my env/bin/python", 4)


# What the board lacks


def test_a_board_without_the_packages(server: Server, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare env", with_pip=False)
    python = tmp_path / "bare env" / "bin" / "python"
    words = (
        r"bare env/bin/python \(Python 3.*no numpy and no onnxruntime: .*-m pip install numpy onn"
    )
    with pytest.raises(InputError, match=words):
        find_place(address(server, python)).check(["onnx"])
    with pytest.raises(InputError, match="pip install numpy ai-edge-litert; or name fewer with --"):
        find_place(address(server, python)).check(["tflite", "tflite"])
    assert server.left() == []


def test_a_board_without_that_python(server: Server) -> None:
    for missing in ("/no/such python", "python3.1"):
        with pytest.raises(InputError, match=r"cannot be run there .*\?python=/path/to/python"):
            find_place(address(server, missing)).check(["onnx"])
    with pytest.raises(InputError, match="runs no qnn_dlc; it runs onnx, "):
        find_place(address(server)).check(["qnn_dlc"])
    assert server.left() == []


def test_a_dry_run_asks_the_board(server: Server, run_cli: Command, tmp_path: Path) -> None:
    words = ("export", save(conv_net(), tmp_path / "net.onnx"), "--device", "s24", "-o", "out")
    words = (*words, "--target-runtime", "onnx", "--dry-run", "--on")
    done = run_cli(*words, address(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"would write out and run it on {server.address}?python=" in done.stdout
    done = run_cli(*words, "ssh://pi@127.0.0.1:1")
    check_refusal(done.returncode, done.stdout, done.stderr, "no ssh server listens on port 1")
    assert not (tmp_path / "out").exists()
