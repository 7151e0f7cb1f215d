"""Runs a suite and prints its tables: `python -m benchmarks.run padre|cifar_vit|cli`.

Results are JSON lines, by default in benchmarks/results/SUITE.jsonl. What is finished there is
not run again; `--fresh` starts the file anew, `--table` only prints.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.tables import DEFAULT, FULL, Results, environment_line
from edgeport.errors import EdgeportError

SUITES = ("padre", "cifar_vit", "cli")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 3 where a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--full", action="store_true", help="more sizes, more samples")
    parser.add_argument("--fresh", action="store_true", help="drop the results that are there")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/SUITE.jsonl")
    given = parser.parse_args(arguments)
    suite = importlib.import_module(f"benchmarks.{given.suite}")
    path = given.output or RESULTS / f"{given.suite}.jsonl"
    try:
        results = Results(path, FULL if given.full else DEFAULT, given.fresh and not given.table)
        if not given.table:
            suite.run(results, given.full)
    except EdgeportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"# {given.suite}, {results.budget}")
    for line in sorted({environment_line(row.environment) for row in results.rows}):
        if line:
            print(line)
    suite.show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
