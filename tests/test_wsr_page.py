"""The page of wsr_splatting in a real browser, with a GPU in software.

Its images are compared with the PyTorch renderer's, through WebGPU and through WebGL2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NO_GPU, SOFTWARE_GPU, Browser, browsing
from edgeport_recipes.wsr_splatting.splats import Blend
from serve_material import Client, client_of
from support import needs_chromium
from wsr_page import (
    BACKGROUND,
    Exported,
    check_images,
    complaints,
    copied,
    make_page,
    make_splats,
    opened,
    plain_http,
    text_of,
    until,
)

from edgeport.errors import InputError
from edgeport.serving.certificate import lan_addresses

pytestmark = [needs_chromium, pytest.mark.xdist_group("gpu_browser")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    blend = Blend("lc", sigma=8.0, background=BACKGROUND, background_weight=0.05)
    # More than a row of the WebGL2 renderer's textures holds.
    return make_page(tmp_path_factory.mktemp("page") / "out", make_splats(1500, 3, True), blend)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing(SOFTWARE_GPU) as found:
        yield found


@pytest.fixture(scope="module")
def client(exported: Exported) -> Iterator[Client]:
    with client_of(exported.directory) as found:
        yield found


# Images


def test_webgpu_draws_what_the_pytorch_renderer_does(
    browser: Browser, exported: Exported, tmp_path: Path
) -> None:
    """And its benchmark ends: one page, since its shaders take seconds to compile in software."""
    with client_of(copied(exported, tmp_path)) as client:
        told = opened(browser, client.service.urls[0])
        assert told["renderer"] == "webgpu", told
        assert told["adapter"]["architecture"] == "swiftshader"
        check_images(browser, exported)
        check_benchmark(browser, client, "webgpu")


def test_webgl2_draws_it_over_plain_http_from_another_address(
    browser: Browser, exported: Exported
) -> None:
    """Any static server will do, and the address is none of the loopback's: not secure."""
    try:
        address = lan_addresses()[0]
    except InputError:
        pytest.skip("this machine is on no network")
    with plain_http(exported.directory, address) as url:
        told = opened(browser, url)
        assert told["renderer"] == "webgl2", told
        assert told["why"].startswith("WebGPU needs a secure context: open the page over https")
        check_images(browser, exported)
        assert "WebGL2" in text_of(browser, "about")
        assert told["why"] in text_of(browser, "why")
        assert complaints(browser) == []


def test_the_sessions_certificate_makes_it_a_secure_context(
    browser: Browser, exported: Exported, tmp_path: Path
) -> None:
    """Once the browser's warning is passed, --lan gives a phone WebGPU."""
    pytest.importorskip("cryptography", reason='needs cryptography: pip install "edgeport[serve]"')
    try:
        lan_addresses()
    except InputError:
        pytest.skip("this machine is on no network")
    browser.call("Security.setIgnoreCertificateErrors", ignore=True)
    try:
        with client_of(copied(exported, tmp_path), lan=True) as client:
            told = opened(browser, f"{client.service.urls[0]}&renderer=webgl2")
            assert "error" not in told
            assert browser.value("location.protocol") == "https:"
            assert browser.value("edgeport.missing") == "", "no reason against WebGPU"
    finally:
        browser.call("Security.setIgnoreCertificateErrors", ignore=False)


@pytest.mark.parametrize(
    ("blend", "degree"),
    [
        (Blend("exp", sigma=2.0, beta=1.2, background=BACKGROUND), 1),
        (Blend("dir", background=BACKGROUND, background_weight=0.5), 0),
        (Blend("lc", sigma=4.2, background=BACKGROUND), 2),
    ],
    ids=["exp", "dir", "lc"],
)
def test_every_rule_and_degree_in_webgl2(
    browser: Browser, tmp_path: Path, blend: Blend, degree: int
) -> None:
    made = make_page(tmp_path / "out", make_splats(300, degree, blend.rule == "exp"), blend)
    with client_of(made.directory) as client:
        told = opened(browser, f"{client.service.urls[0]}&renderer=webgl2")
        assert told["renderer"] == "webgl2", told
        check_images(browser, made)


# The benchmark


def check_benchmark(browser: Browser, client: Client, renderer: str) -> None:
    """Runs it, posts what it found, and looks at the measurements that came of it."""
    found = browser.value("edgeport.benchmark({ seconds: 0.5 })")
    rounds = {len(row) for row in found["samples_ms"].values()}
    assert len(rounds) == 1 and min(rounds) >= 5
    shown = text_of(browser, "ratio")
    browser.value("document.getElementById('post').click()")
    until(browser, "document.getElementById('state').textContent === 'Sent: kept as host.'")
    kept = {one["metric"]: one for one in client.kept}
    assert set(kept) == {"frame_ms:sort_free", "frame_ms:sorted", "speedup:sort_free"}
    for one in kept.values():
        assert one["provenance"] == "host"
        assert "a software adapter drew it" in one["warnings"]
        assert one["environment"]["renderer"] == renderer
        assert "HeadlessChrome" in one["environment"]["user_agent"]
        assert one["environment"]["frame"] == "96x64"
    ratio = kept["speedup:sort_free"]["value"]
    assert f"sorted takes {ratio:.2f}" in shown
    assert complaints(browser) == []


def test_the_benchmark_ends_in_webgl2(browser: Browser, exported: Exported, tmp_path: Path) -> None:
    with client_of(copied(exported, tmp_path)) as client:
        opened(browser, f"{client.service.urls[0]}&renderer=webgl2")
        check_benchmark(browser, client, "webgl2")
        sizes = "[...document.getElementById('size').options].map((one) => one.text)"
        assert browser.value(sizes) == ["96 × 64", "1280 × 720", "512 × 512"]  # noqa: RUF001
        found = browser.value("edgeport.benchmark({ seconds: 0.1, size: [64, 64] })")
        assert found["frame"] == [64, 64]


def test_a_static_server_takes_no_results(browser: Browser, exported: Exported) -> None:
    with plain_http(exported.directory, "127.0.0.1") as url:
        opened(browser, f"{url}?renderer=webgl2")
        browser.value("edgeport.benchmark({ seconds: 0.1 })")
        assert browser.value("document.getElementById('post').hidden")
        assert not browser.value("document.getElementById('copy').hidden")


# The controls


def test_a_drag_takes_what_is_near_along(browser: Browser, client: Client) -> None:
    opened(browser, f"{client.service.urls[0]}&renderer=webgl2")
    # A point between the camera and the centre, as pixels of a frame 1 wide.
    place = """(() => {
      const { orbit } = edgeport.stage;
      const start = orbit.start.position;
      const point = start.map((one, i) => one + 0.7 * (orbit.centre[i] - one));
      const { view, intrinsics: [fx, fy, cx, cy] } = orbit.camera([1, 1]);
      const row = (r) => point.reduce((s, one, c) => s + view[4 * r + c] * one, view[4 * r + 3]);
      return [fx * row(0) / row(2) + cx, fy * row(1) / row(2) + cy];
    })()"""
    before = browser.value(place)
    box = browser.value(
        "(({ x, y, width, height }) => [x + width / 2, y + height / 2])"
        "(document.getElementById('view').getBoundingClientRect())"
    )
    for kind, dx, dy in (
        ("mousePressed", 0, 0),
        ("mouseMoved", 40, 25),
        ("mouseReleased", 40, 25),
    ):
        mouse = {"x": box[0] + dx, "y": box[1] + dy, "button": "left", "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, buttons=1, **mouse)
    after = browser.value(place)
    assert after[0] > before[0] + 0.01
    assert after[1] > before[1] + 0.005
    browser.value("document.getElementById('reset').click()")
    assert browser.value(place) == before


def test_wheel_pinch_and_keys_move_the_camera(browser: Browser, client: Client) -> None:
    opened(browser, f"{client.service.urls[0]}&renderer=webgl2", width=390)
    distance = """(() => {
      const { orbit } = edgeport.stage;
      return Math.hypot(...orbit.pose.position.map((one, i) => one - orbit.centre[i]));
    })()"""
    first = browser.value(distance)
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=180, y=250, deltaX=0, deltaY=-200)
    nearer = browser.value(distance)
    assert nearer < 0.9 * first
    for kind, apart in (("touchStart", 60), ("touchMove", 30), ("touchEnd", 0)):
        fingers = [{"x": 180 - apart, "y": 250, "id": 0}, {"x": 180 + apart, "y": 250, "id": 1}]
        points = [] if kind == "touchEnd" else fingers
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert browser.value(distance) > 1.5 * nearer
    browser.value("document.getElementById('view').focus()")
    for key in ("0", "ArrowLeft", "+"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)
    assert browser.value(distance) == pytest.approx(0.9 * first)
    assert browser.value("edgeport.stage.orbit.pose.position[0]") < -0.1
    for kind in ("mousePressed", "mouseReleased") * 2:
        mouse = {"x": 180, "y": 250, "button": "left", "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, **mouse)
    assert browser.value(distance) == first, "a double-tap starts over"


def test_popping_is_shown_and_told(browser: Browser, client: Client) -> None:
    opened(browser, f"{client.service.urls[0]}&renderer=webgl2", width=390)
    for name in ("sort_free", "sorted"):
        browser.value(f"document.querySelector('input[value={name}]').click()")
        if name == "sort_free":
            browser.value("document.getElementById('popping').click()")
        until(browser, f"edgeport.stage.change.{name} > 0")
    change = browser.value("edgeport.stage.change")
    assert 0 < change["sort_free"] < 1
    assert 0 < change["sorted"] < 1
    text = text_of(browser, "popping-text")
    assert text.startswith("Shown: what changed since the frame before")
    assert "Sort-free 0." in text and "Sorted 0." in text


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)])
def test_it_fits_and_everything_has_a_name(
    browser: Browser, client: Client, width: int, dark: bool
) -> None:
    opened(browser, f"{client.service.urls[0]}&renderer=webgl2", width=width, dark=dark)
    browser.value("edgeport.benchmark({ seconds: 0.1 })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "checkbox", "combobox", "application", "image", "textbox"}
    controls = [one for one in tree if one.get("role", {}).get("value") in roles]
    assert len(controls) >= 8
    nameless = [one["role"] for one in controls if not one.get("name", {}).get("value")]
    assert nameless == []
    assert complaints(browser) == []


# Where something is missing


def test_without_webgpu_it_says_so(client: Client) -> None:
    with browsing(NO_GPU) as plain:
        told = opened(plain, client.service.urls[0])
        assert told["renderer"] == "webgl2"
        assert told["why"] == "This browser gives WebGPU no GPU here."
        assert told["why"] in text_of(plain, "why")


def test_without_webgl_too_it_says_so(client: Client) -> None:
    with browsing((*NO_GPU, "--disable-3d-apis")) as plain:
        told = opened(plain, client.service.urls[0])
        assert told["error"].startswith("Nothing here can draw the scene. ")
        assert "WebGPU" in told["error"] and "WebGL2" in told["error"]
        assert text_of(plain, "trouble") == told["error"]
        assert not plain.value("document.getElementById('trouble').hidden")
        assert plain.value("document.getElementById('run').disabled")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("scene/scene_geometry.bin", "scene_geometry.bin is not to be had"),
        ("shaders/project.wgsl", "shaders/project.wgsl is not to be had"),
        ("splat.vert.glsl", "splat.vert.glsl is not to be had"),
        ("program.json", "program.json is not to be had"),
    ],
)
def test_a_missing_file_is_named(
    browser: Browser, exported: Exported, tmp_path: Path, broken: str, words: str
) -> None:
    directory = copied(exported, tmp_path)
    (directory / broken).unlink()
    renderer = "webgl2" if broken.endswith(".glsl") else "webgpu"
    with plain_http(directory, "127.0.0.1") as url:
        told = opened(browser, f"{url}?renderer={renderer}")
        assert words in (told.get("error") or told["why"])


def test_a_shader_that_webgpu_refuses_leaves_the_fallback(
    browser: Browser, exported: Exported, tmp_path: Path
) -> None:
    directory = copied(exported, tmp_path)
    (directory / "shaders/normalise.wgsl").write_text("fn broken( {")
    with plain_http(directory, "127.0.0.1") as url:
        told = opened(browser, url)
        assert told["renderer"] == "webgl2"
        assert told["why"].startswith("WebGPU refuses its buffers and shaders:")
        check_images(browser, exported)
