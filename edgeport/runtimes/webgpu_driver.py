"""Whether a GPU driver for the runtime `webgpu` is installed, from its files: no GPU is asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

GET_DRIVER = (
    "on Debian, apt-get install mesa-vulkan-drivers (a software one), or your GPU's own driver"
)
# Where the Vulkan loader of Linux looks for the manifests of drivers: its documentation,
# LoaderDriverInterface.md.
_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_FOLDERS = ("/etc", "/usr/local/etc", "/usr/local/share", "/usr/share", "/etc/xdg")


def has_driver() -> bool:
    """Returns whether a Vulkan driver's manifest is there; elsewhere the system has its own API."""
    return sys.platform != "linux" or any(file.is_file() for file in _manifests())


def _manifests() -> Iterator[Path]:
    given = next((os.environ[name] for name in _VARIABLES if name in os.environ), None)
    if given is not None:
        yield from (Path(file) for file in given.split(os.pathsep) if file)
        return
    home = os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local/share"))
    for folder in (*_FOLDERS, home):
        yield from Path(folder, "vulkan/icd.d").glob("*.json")
