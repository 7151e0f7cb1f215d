"""A headless Chromium, driven through its DevTools over two pipes; also takes screenshots.

python tests/browser.py report.html docs/report.png --width 1000 --height 1400
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless",
    "--no-sandbox",  # as root, where tests run in a container
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "about:blank",
)
NO_GPU = ("--disable-gpu",)
# SwiftShader, a GPU in software, for WebGPU and for WebGL.
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--use-vulkan=swiftshader",  # without, a canvas cannot show what WebGPU drew
    "--enable-features=Vulkan",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


class Browser:
    """One tab. `events` are all that the browser told so far."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self.commands, self.answers = os.fdopen(write_to, "wb"), os.fdopen(read_from, "rb")
        self.events: list[dict[str, Any]] = []
        self.count, self.session, self.rest = 0, "", b""
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=tab, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns what a method of the DevTools protocol gives."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            told = self._next()
            if told.get("id") == self.count:
                assert "error" not in told, told
                return told["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            piece = self.answers.read1(1 << 20)
            assert piece, "chromium ended"
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        if "method" in told:
            self.events.append(told)
        return told

    def open(self, page: Path | str, *, width: int, height: int = 800, dark: bool = False) -> None:
        """Shows a file or an address, as a phone does where it is as wide; `events` start anew."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Page.navigate", url=url)
        while not any(one["method"] == "Page.loadEventFired" for one in self.events):
            self._next()

    def value(self, expression: str) -> Any:
        """Returns what JavaScript gives on the page, or promises, as plain JSON values."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key, such as "Tab"."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
            )

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """Returns the parameters of the events of these names."""
        return [one["params"] for one in self.events if one["method"] in methods]

    def screenshot(self, target: Path) -> None:
        """Writes what is to be seen as PNG."""
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browsing(flags: Sequence[str] = NO_GPU) -> Iterator[Browser]:
    """Yields a browser with a profile of its own, which goes with the block."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "needs chromium: apt-get install chromium"
    commands, write_to = os.pipe()
    read_from, answers = os.pipe()

    def place() -> None:  # where the browser looks for its pipes
        first, second = os.dup(commands), os.dup(answers)
        os.dup2(first, 3)
        os.dup2(second, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [chromium, f"--user-data-dir={profile}", *flags, *_FLAGS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
            close_fds=False,
            preexec_fn=place,
        )
        os.close(commands)
        os.close(answers)
        browser = None
        try:
            browser = Browser(write_to, read_from)
            yield browser
            browser.session = ""
            browser.call("Browser.close")
        finally:
            if browser is not None:
                browser.commands.close()
                browser.answers.close()
            process.wait(20)


def main() -> None:
    """Takes a screenshot of the top of a page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--top", type=int, default=0, help="pixels to scroll down first")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with browsing() as browser:
        browser.open(given.page, width=given.width, height=given.height, dark=given.dark)
        browser.value(f"scrollTo(0, {given.top})")
        browser.screenshot(given.image)


if __name__ == "__main__":
    main()
