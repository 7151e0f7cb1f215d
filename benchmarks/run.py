"""Runs a suite and prints its tables: `python -m benchmarks.run SUITE`, one of SUITES below.

Results are JSON lines, by default in benchmarks/results/SUITE.jsonl. What is finished there is
not run again; `--fresh` starts the file anew, `--table` only prints, `--readme` also replaces the
tables in benchmarks/README.md. `--on cuda` runs a suite's part for a GPU, with results of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import edgeport
from benchmarks.tables import DEFAULT, FULL, NOT_RUN, Results, environment_line
from edgeport.errors import EdgeportError

TIMED = ("padre", "cli", "runtimes", "wsr", "vit")
ON_CUDA = ("padre",)
SUITES = ("padre", "proof", "cli", "cifar_vit", "zoo", "real", "runtimes", "trust", "wsr", "vit")
RESULTS = Path(__file__).parent / "results"
BUSY = 0.5  # of load average: below it, no other process takes a large part of one core
MANY = 12  # groups whose load is printed one by one
README = Path(__file__).with_name("README.md")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 3 where a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--full", action="store_true", help="more sizes, more samples")
    parser.add_argument("--fresh", action="store_true", help="drop the results that are there")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--on", choices=("host", "cuda"), default="host", help="what runs it")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/SUITE.jsonl")
    given = parser.parse_args(arguments)
    if given.on == "cuda" and given.suite not in ON_CUDA:
        print(f"error: --on cuda is for {', '.join(ON_CUDA)}, not {given.suite}", file=sys.stderr)
        return 2
    name = given.suite if given.on == "host" else f"{given.suite}_{given.on}"
    suite = importlib.import_module(f"benchmarks.{name}")
    path = given.output or RESULTS / f"{name}.jsonl"
    try:
        results = Results(path, FULL if given.full else DEFAULT, given.fresh and not given.table)
        if not given.table:
            if given.suite in TIMED:
                _warn_of_load()
            suite.run(results, given.full)
    except EdgeportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = f"{_conditions(results)}\n\n{suite.tables(results)}"
    print(text)
    if given.readme:
        _write_readme(name, text)
    return 0


def _warn_of_load() -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        said = f"warning: load average {load:.1f}: what else runs disturbs every timing"
        print(said, file=sys.stderr)


def _conditions(results: Results) -> str:
    """Returns the budget, and a line for what never changed and for the load of each group."""
    groups = {row.group: row.environment for row in results.rows}
    same = dict.fromkeys(
        environment_line({k: v for k, v in one.items() if k not in ("load_average", "utc")})
        for one in groups.values()
    )
    loads = [
        f"{group}: {one.get('load_average', '?')} at {one.get('utc', '?')}"
        for group, one in groups.items()
    ]
    if len(loads) > MANY:
        loads = [loads[0], f"{len(loads) - 2} more in the results file", loads[-1]]
    return "\n".join(
        [
            f"Budget {results.budget}, {edgeport.__version__}. {' / '.join(same) or NOT_RUN}.",
            f"Load average before each run: {'; '.join(loads) or NOT_RUN}.",
        ]
    )


def _write_readme(suite: str, text: str) -> None:
    """Replaces the suite's tables in README.md, between its two marks."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(f"<!-- {suite} -->\n")
    _, end, after = rest.partition(f"<!-- end of {suite} -->\n")
    assert begin and end, f"{README} has lost its marks for {suite}"
    README.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
