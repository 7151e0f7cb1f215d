"""An export of the splat page, made for tests, and a browser that looks at it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from browser import Browser
from edgeport_recipes.wsr_splatting.model import render
from edgeport_recipes.wsr_splatting.program import write_program
from edgeport_recipes.wsr_splatting.splats import Blend, Splats
from serve_material import write_manifest
from support import ROOT

PAGE = ROOT / "recipes/wsr_splatting/page"
SIZE = (96, 64)
BACKGROUND = (0.1, 0.2, 0.3)
LEAST_PSNR_DB = 55.0
"""Of the browser's image against the PyTorch renderer's. Measured: 60.8 dB at the least, from half
floats in the sum and from pixels where alpha is just about 1/255; 85 dB at the most."""


@dataclass(frozen=True)
class Exported:
    """A folder with a page, and what was drawn into it."""

    directory: Path
    splats: Splats
    blends: dict[str, Blend]
    cameras: list[dict[str, Any]]

    def reference(self, name: str, camera: dict[str, Any]) -> np.ndarray:
        """Returns the image [h, w, 3] of the PyTorch renderer, clamped as screens do."""
        view = torch.tensor(camera["view"]).view(4, 4)
        intrinsics = torch.tensor(camera["intrinsics"])
        size = (camera["size"][0], camera["size"][1])
        image = render(self.splats, self.blends[name], view, intrinsics, size)
        return image.clamp(0, 1).numpy()


def camera_at(angle: float, distance: float = 4.0) -> dict[str, Any]:
    """Returns a camera that far from the origin that looks at it; y points down."""
    place = torch.tensor([np.sin(angle), -0.15, -np.cos(angle)], dtype=torch.float32) * distance
    forward = -place / place.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ place
    width, height_px = SIZE
    intrinsics = [80.0, 80.0, width / 2, height_px / 2]
    return {
        "name": f"{angle:g}",
        "view": view.flatten().tolist(),
        "intrinsics": intrinsics,
        "size": list(SIZE),
    }


def make_splats(count: int, degree: int, with_factor: bool) -> Splats:
    rng = torch.Generator().manual_seed(count)
    k = (degree + 1) ** 2
    factor = torch.cat(
        [2.5 + torch.rand(count, 1, generator=rng), 0.2 * torch.randn(count, k - 1, generator=rng)],
        1,
    )
    return Splats(
        0.8 * torch.randn(count, 3, generator=rng),
        torch.rand(count, 3, generator=rng) - 3.2,
        torch.randn(count, 4, generator=rng),
        torch.randn(count, generator=rng) + 0.5,
        0.25 * torch.randn(count, k, 3, generator=rng),
        factor if with_factor else None,
    )


def make_page(directory: Path, splats: Splats, free: Blend) -> Exported:
    blends = {"sort_free": free, "sorted": Blend("sorted", background=BACKGROUND)}
    # From within, splats reach into the frame whose middle is far outside it.
    cameras = [camera_at(0.0), camera_at(0.9, distance=0.9), camera_at(-0.5)]
    directory.mkdir(parents=True)
    write_program(directory, {name: (splats, blends[name]) for name in blends}, cameras, SIZE)
    shutil.copytree(PAGE, directory, dirs_exist_ok=True)
    write_manifest(directory)
    return Exported(directory, splats, blends, cameras)


def copied(exported: Exported, tmp_path: Path) -> Path:
    """Returns a copy, whose results are its own."""
    return Path(shutil.copytree(exported.directory, tmp_path / "out"))


def opened(browser: Browser, url: str, width: int = 1000, dark: bool = False) -> dict[str, Any]:
    """Opens the page and returns what it says of itself once it can draw."""
    browser.open(url, width=width, dark=dark)
    told = browser.value(
        "edgeport.ready.then(({renderer, adapter, why}) => ({renderer, adapter, why}),"
        " (error) => ({error: error.message}))"
    )
    assert isinstance(told, dict)
    return told


def drawn(browser: Browser, name: str, camera: dict[str, Any]) -> np.ndarray:
    """Returns the browser's image, float32 [h, w, 3], clamped."""
    pixels = browser.value(f"edgeport.render('{name}', {json.dumps(camera)}).then((p) => [...p])")
    width, height = camera["size"]
    return np.array(pixels, np.float32).reshape(height, width, 3).clip(0, 1)


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - reference) ** 2)))


def check_images(browser: Browser, exported: Exported) -> None:
    for name in ("sort_free", "sorted"):
        for camera in exported.cameras[:2]:
            reference = exported.reference(name, camera)
            assert reference.std() > 0.05, "a picture, not a plain colour"
            found = psnr_db(drawn(browser, name, camera), reference)
            assert found > LEAST_PSNR_DB


def complaints(browser: Browser) -> list[str]:
    """Returns exceptions and the console's errors and warnings, but for the driver's own advice."""
    said = [json.dumps(one) for one in browser.named("Runtime.exceptionThrown")]
    for one in browser.named("Runtime.consoleAPICalled"):
        said.append(json.dumps(one["args"]))
    for one in browser.named("Log.entryAdded"):
        if "GPU stall due to ReadPixels" not in one["entry"]["text"]:
            said.append(one["entry"]["text"])
    return said


@contextmanager
def plain_http(directory: Path, address: str) -> Iterator[str]:
    """Yields the address of any static server that gives the folder over http: Python's own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer((address, 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}/index.html"
        finally:
            server.shutdown()
            thread.join()


def until(browser: Browser, condition: str, seconds: int = 20) -> None:
    """Returns once the page meets a condition in JavaScript; fails where it does not in time."""
    held = browser.value(
        f"""new Promise((tell) => {{
          const started = performance.now();
          const look = () => {{
            if ({condition}) tell(true);
            else if (performance.now() - started > {1000 * seconds}) tell(false);
            else setTimeout(look, 20);
          }};
          look();
        }})"""
    )
    assert held, (condition, browser.value("document.body.innerText"))


def text_of(browser: Browser, element: str) -> str:
    return str(browser.value(f"document.getElementById('{element}').textContent"))
