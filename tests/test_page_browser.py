"""`edgeport report`: the command, and what a real browser makes of its page."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browsing
from page_material import HOSTILE, benchmark, edit, make_plain, make_rich
from support import called, check_refusal, needs_chromium, needs_matplotlib

from edgeport.errors import InputError
from edgeport.page.data import gather, gather_page
from edgeport.page.html import html_page
from edgeport.page.markdown import markdown_page

pytestmark = needs_matplotlib


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("page"))


@pytest.fixture
def directory(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "out"))


@pytest.fixture
def rich(directory: Path) -> Path:
    return make_rich(directory)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


def write(directory: Path, target: Path, capfd: pytest.CaptureFixture[str], *more: object) -> None:
    code, out, err = called(capfd, "report", directory, "-o", target, *more)
    assert code == 0, err
    assert f"{target} (" in out


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1000, 360])
def test_a_browser_shows_it_without_a_word_or_the_network(
    rich: Path,
    tmp_path: Path,
    browser: Browser,
    capfd: pytest.CaptureFixture[str],
    width: int,
    dark: bool,
) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(benchmark({"a" * 60: 1, "name " * 20: 2}).to_dict()))
    page = tmp_path / "report.html"
    write(rich, page, capfd, "--bench", bench)
    browser.open(page, width=width, dark=dark)
    asked = [one["request"]["url"] for one in browser.named("Network.requestWillBeSent")]
    assert asked == [page.as_uri()]
    assert browser.named("Log.entryAdded", "Runtime.consoleAPICalled") == []
    assert browser.named("Runtime.exceptionThrown") == []
    assert browser.value("typeof hacked") == "undefined"
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.body.innerText").count("Does not fit") == 1
    shown = "[...document.querySelectorAll('.chart svg')].filter(one => one.checkVisibility())"
    assert browser.value(f"{shown}.length") == browser.value(
        "document.querySelectorAll('.chart').length"
    )
    light = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark


@needs_chromium
def test_the_browser_would_tell_of_errors_and_requests(tmp_path: Path, browser: Browser) -> None:
    """So that the test above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='width: 900px'><img src='http://127.0.0.1:9/x.png'>"
        "<script>hacked = 1; console.error('oh'); nothing()</script>"
    )
    browser.open(page, width=360)
    asked = [one["request"]["url"] for one in browser.named("Network.requestWillBeSent")]
    assert asked == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert len(browser.named("Runtime.consoleAPICalled")) == 1
    assert len(browser.named("Runtime.exceptionThrown")) == 1
    assert browser.value("typeof hacked") == "number"
    assert browser.value("document.documentElement.scrollWidth") > 360


@needs_chromium
def test_the_page_can_be_read_without_a_mouse(
    rich: Path, tmp_path: Path, browser: Browser, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    write(rich, page, capfd)
    browser.open(page, width=1000)
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    names = "[...document.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1]))"
    levels = browser.value(names)
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = browser.value("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    targets = "[...document.querySelectorAll('a[href], use')].map(one => one.getAttribute('href'))"
    assert {one[1:] for one in browser.value(targets)} <= set(ids)
    labels = "[...document.querySelectorAll('[aria-labelledby]')].map(one => one.getAttribute"
    assert set(browser.value(f"{labels}('aria-labelledby'))")) <= set(ids)
    unnamed = "[...document.querySelectorAll('[role=img],[role=group],nav')].filter"
    assert browser.value(f"{unnamed}(one => !one.getAttribute('aria-label')).length") == 0
    for landmark in ("header", "nav", "main", "footer"):
        assert browser.value(f"document.querySelectorAll('{landmark}').length") == 1
    cells = browser.value("[...document.querySelectorAll('.map > *')].map(one => one.title)")
    assert cells[0] == "Conv a: NPU"
    expected = f"Shrink {HOSTILE}: CPU; no such operator; fix: write it with basic operators"
    assert cells[1] == expected
    browser.value("document.querySelector('.map > a').focus()")
    browser.press("Enter")
    assert "no such operator" in browser.value("document.querySelector('tr:target').innerText")


_CONTRAST = """
(() => {
  const style = getComputedStyle(document.documentElement);
  const light = name => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const part = [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16) / 255);
    const [r, g, b] = part.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const names = ['--ink', '--muted', '--npu', '--gpu', '--cpu', '--first', '--second', '--good',
    '--bad'];
  const over = name => ['--paper', '--panel'].map(
    back => Math.max(light(name) / light(back), light(back) / light(name)));
  return Object.fromEntries(names.map(name => [name, Math.min(...over(name))]));
})()
"""


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_page(
    directory: Path,
    tmp_path: Path,
    browser: Browser,
    capfd: pytest.CaptureFixture[str],
    dark: bool,
) -> None:
    """WCAG 2.2 asks 4.5 to 1 of text, and 3 to 1 of the parts of a drawing."""
    write(directory, tmp_path / "report.html", capfd)
    browser.open(tmp_path / "report.html", width=1000, dark=dark)
    found = browser.value(_CONTRAST)
    drawn = {"--npu", "--gpu", "--cpu", "--second"}
    assert {name for name, value in found.items() if value < (3 if name in drawn else 4.5)} == set()


# The command


def test_the_command_writes_both_files_whole(
    rich: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    write(rich, page, capfd, "--markdown", text)
    data = gather_page([rich])
    assert page.read_text() == html_page(data)
    assert text.read_text() == markdown_page(data)
    before = page.stat().st_mtime_ns
    code, out, err = called(capfd, "report", rich, tmp_path / "none", "-o", page)
    check_refusal(code, out, err, "none is no export")
    assert page.stat().st_mtime_ns == before
    assert {one.name for one in tmp_path.iterdir()} == {"out", "report.html", "report.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("empty",), "empty is no export: manifest.json cannot be read"),
        (("out", "-o", "empty"), "empty is a directory; name a file"),
        (("out", "-o", "nowhere/r.html"), "nowhere is no directory"),
        (("out", "-o", "out/r.html"), "would lie in the export's directory"),
        (("out", "-o", "r.html", "--markdown", "r.html"), "named twice"),
        (("out", "--bench", "nothing.json"), "nothing.json cannot be read"),
        (("out", "--bench", "empty"), "empty cannot be read"),
        (("out", "--bench", "list.json"), "list.json is not what edgeport bench --json writes"),
        (("out", "--verdicts", "list.json"), "list.json is not what edgeport check --json wrote"),
        (("out", "--verdicts", "broken.json"), "broken.json cannot be read"),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_one_line(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text('[{"outcome": "pass"}]')
    (tmp_path / "broken.json").write_text("{")
    check_refusal(*called(capfd, "report", *arguments), words)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", {}), ("artifacts", [{}]), ("run", None), ("files", {"model.onnx": {"bytes": "x"}})],
)
def test_a_manifest_that_lacks_something_is_named(directory: Path, key: str, value: Any) -> None:
    edit(directory, **{key: value})
    with pytest.raises(InputError, match=r"out/manifest.json does not hold what an export writes"):
        gather(directory)


def test_a_missing_package_is_named_with_its_install_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(directory.parent)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = called(capfd, "report", "out")
    check_refusal(code, out, err, r'needs matplotlib: pip install "edgeport\[report\]"')
