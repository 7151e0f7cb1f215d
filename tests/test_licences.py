"""Every package that edgeport installs at run time has a permissive licence."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|PSF|Zlib|0BSD|CC0|BSL|Python Software Foundation|ISC|HPND|WTFPL)\b"
    r"|Redistribution and use in source and binary forms",  # BSD's own words
    re.I,
)
COPYLEFT = re.compile(r"\b[AL]?GPL|\bSSPL\b|\bEUPL\b|proprietary|commercial", re.I)

# The client of AI Hub brings Mozilla's list of certificates, and ExecuTorch asks for hypothesis.
# Their licence asks only that changes to its files stay under it, and nobody here changes them.
USED_UNCHANGED = {"certifi": "MPL-2.0", "hypothesis": "MPL-2.0"}


def is_permissive(licence: str) -> bool:
    """Returns whether the words name a permissive licence and no other kind."""
    return bool(PERMISSIVE.search(licence)) and not COPYLEFT.search(licence)


def licence_of(distribution: metadata.Distribution) -> str:
    """Returns what the metadata says: expression, classifiers, first line; else the licence."""
    told = distribution.metadata
    classifiers = [one for one in told.get_all("Classifier") or [] if one.startswith("License")]
    text = (told.get("License") or "").partition("\n")[0]
    said = [one for one in (told.get("License-Expression"), *classifiers, text) if one]
    files = [one for one in distribution.files or [] if one.name == "LICENSE"]
    return " ; ".join(said or [one.read_text() for one in files[:1]])


def installed_closure() -> dict[str, metadata.Distribution]:
    """Returns the run-time requirements and theirs, as far as this platform installs them."""
    found: dict[str, metadata.Distribution] = {}
    extras = PYPROJECT["project"]["optional-dependencies"]
    optional = [one for name in extras if name != "dev" for one in extras[name]]
    waiting = [*PYPROJECT["project"]["dependencies"], *optional]
    while waiting:
        requirement = waiting.pop()
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")
        if name in found or "extra ==" in requirement:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        waiting.extend(found[name].requires or [])
    return found


def test_all_run_time_packages_are_permissive() -> None:
    closure = installed_closure()
    assert {"torch", "onnxruntime", "click"} <= set(closure)
    refused = {name: licence_of(one) for name, one in closure.items()}
    refused = {name: said for name, said in refused.items() if not is_permissive(said)}
    assert set(refused) <= set(USED_UNCHANGED)
    assert all(USED_UNCHANGED[name] in said for name, said in refused.items())


@pytest.mark.parametrize("licence", ["", "GPL-3.0-only", "MIT AND LGPL-2.1", "Proprietary"])
def test_others_are_refused(licence: str) -> None:
    assert not is_permissive(licence)
