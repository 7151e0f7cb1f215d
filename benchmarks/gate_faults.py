"""What the gate has to notice: padre made slower, less exact, and with a node for the CPU.

`edgeport check padre` runs as a user runs it, as a process, on a copy of the recipes in which one
function was changed. Group `gate` of the suite `trust`; at a small size also a test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeport.errors import StageFailed

AS_IT_IS = "as it is"
RECIPES = Path(__file__).parents[1] / "recipes"
_BUILT = '    return build("padre3", seed, **options)\n'
FAULTS: Mapping[str, str] = {
    AS_IT_IS: _BUILT,
    "slower": '    return build("padre3", seed, **{**options, "kernel": 13})\n',
    # Each row's largest weight is twice as large, and so is the step of its 8 bits.
    "less exact": """\
    net = build("padre3", seed, **options)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            rows = layer.weight.data.flatten(1)
            rows.scatter_(1, rows.abs().argmax(1, keepdim=True), 2 * rows.amax(1, keepdim=True))
    return net
""",
    # No compiler of the NPU takes IsInf.
    "a node on the CPU": """\
    class Finite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("padre3", seed, **options)

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return torch.where(torch.isinf(y), torch.zeros_like(y), y)

    return Finite().eval()
""",
}
NOTICED = {
    "slower": "speedup:one block, 4,096 tokens",
    "less exact": "sqnr_db:qnn_context_binary",
    "a node on the CPU": "cpu_ops:qnn_context_binary",
}
"""The metric whose verdict has to be a failure."""


def check_padre(
    fault: str, folder: Path, *words: str, smaller: Mapping[str, str] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Returns exit code and verdicts of `edgeport check padre` with a fault in the recipe.

    `smaller` replaces texts of recipe.py. Raises StageFailed where it gives no verdicts.
    """
    site = folder / fault.replace(" ", "_")
    copy = site / "edgeport_recipes"
    shutil.copytree(RECIPES, copy, dirs_exist_ok=True)
    _replace(copy / "padre" / "model.py", {_BUILT: FAULTS[fault]})
    _replace(copy / "padre" / "recipe.py", smaller or {})
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgeport", "check", "padre", "--json", *words],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1) or not done.stdout:
        said = done.stderr.strip().splitlines() or [""]
        raise StageFailed("benchmark", f"edgeport check padre, {fault}: {said[-1]}")
    return done.returncode, list(json.loads(done.stdout)["verdicts"])


def _replace(file: Path, texts: Mapping[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new in texts.items():
        assert old in text, f"{file} has changed: {old!r}"
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
