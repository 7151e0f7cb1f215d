"""Records one file beside itself, as real noise: `python -m benchmarks.record NAME SUBJECT`.

Writes benchmarks/recordings/NAME.json: the blocks of four processes of the same file, as
`edgeport bench` runs them. `benchmarks.trust` draws its traces from what lies there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeport.bench import Settings, bench
from edgeport.blocks import HostBlocks
from edgeport.measure import environment
from edgeport.private import scratch_directory, write_text_atomic
from edgeport.stages import host_threads
from edgeport.subjects import find_arms
from edgeport.traces import Trace

FOLDER = Path(__file__).with_name("recordings")
ARMS = 4  # the first, its second process, and two more


@dataclass(frozen=True)
class Recording:
    """Arms of one file: `traces` have the same blocks; `what` says of what and beside what."""

    what: str
    environment: dict[str, str]
    traces: tuple[Trace, ...]


def load(file: Path) -> Recording:
    """Returns a recording."""
    table = json.loads(file.read_text(encoding="utf-8"))
    traces = [
        Trace(f"arm {index}", tuple(tuple(tuple(turn) for turn in block) for block in arm))
        for index, arm in enumerate(table["arms"])
    ]
    return Recording(table["what"], table["environment"], tuple(traces))


def load_all() -> dict[str, Recording]:
    """Returns every recording by the name of its file."""
    return {file.stem: load(file) for file in sorted(FOLDER.glob("*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("subject", help="what `edgeport bench` takes")
    parser.add_argument("--runtime", help="of an export's directory")
    parser.add_argument("--what", required=True, help="in words: the model, and what ran beside it")
    parser.add_argument("--blocks", type=int, default=16)
    given = parser.parse_args()
    settings = Settings(host_threads(), seconds=1.0, blocks=given.blocks, turns=8)
    kept: list[Trace] = []
    with scratch_directory() as workdir:
        (arm,) = find_arms([given.subject], workdir, given.runtime)
        arms = [replace(arm, name=f"arm {index}") for index in range(ARMS - 1)]
        bench(arms, HostBlocks(settings, workdir), settings, print, kept.extend)
    told = environment(settings.threads)
    _write(FOLDER / f"{given.name}.json", given.what, told, kept)


def _write(file: Path, what: str, told: dict[str, str], traces: Sequence[Trace]) -> None:
    arms = [[[[float(f"{c:.4g}") for c in t] for t in b] for b in one.blocks] for one in traces]
    table = {"what": what, "environment": told, "arms": arms}
    write_text_atomic(file, json.dumps(table, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
