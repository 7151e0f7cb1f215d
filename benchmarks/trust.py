"""Suite `trust`: false alarms and slow-downs that are found, and whether the gate notices faults.

Traces are drawn from recordings of real runs of one file beside itself (`benchmarks.record`): whole
blocks, and in each a random arm for each role. So their noise is what machines did, and not what
the harness assumes. A slow-down is a factor on every call of one arm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.gate_faults import AS_IT_IS, FAULTS, NOTICED, check_padre
from benchmarks.record import Recording, load_all
from benchmarks.tables import NOT_RUN, Results, Row, markdown
from edgeport.bench import ENOUGH
from edgeport.measure import environment
from edgeport.private import scratch_directory
from edgeport.stages import host_threads
from edgeport.symptoms import symptoms
from edgeport.traces import Trace, Word, block_ratio, half_width, judge, noise_floor

SUITE = "trust"
GATE = "gate"
GATE_SECONDS = {"default": "60", "full": "240"}
TRIALS = {"default": 500, "full": 5000}  # in all, over the recordings
BLOCKS, MOST_BLOCKS = 8, 40  # as `edgeport bench` begins, and where its time would be over
FACTORS = (1.0, 1.02, 1.03, 1.05, 1.1)
RESAMPLES = 500
Z = 1.96


def run(results: Results, full: bool) -> None:
    """Judges the trials of every recording that is not finished."""
    recordings = load_all()
    trials = -(-TRIALS[results.budget] // max(1, len(recordings)))
    for name, recording in recordings.items():
        if not results.finished(name):
            print(f"running {name}", file=sys.stderr, flush=True)
            results.add(_measure(name, recording, trials, results.budget))
    if not results.finished(GATE):
        print(f"running {GATE}", file=sys.stderr, flush=True)
        results.add(_gate(results.budget))


def _gate(budget: str) -> list[Row]:
    """Returns, for padre as it is and with each fault, the verdicts against one baseline."""
    told = environment(host_threads())
    rows = []
    with scratch_directory() as folder:
        words = ["--baseline", str(folder / "baseline.jsonl"), "--seconds", GATE_SECONDS[budget]]
        check_padre(AS_IT_IS, folder, *words, "--update-baseline", "--why", "as it is")
        for fault in FAULTS:
            code, verdicts = check_padre(fault, folder, *words, "--fresh")
            found = {"parameters": {"exit": code}, "environment": told, "budget": budget}
            for one in verdicts:
                measured = one["measurement"] or {"value": None, "unit": "", "interval": None}
                number = None if measured["value"] is None else float(measured["value"])
                kind, note = f"{one['kind']} {one['metric']}", f"{one['outcome']}: {one['reason']}"
                rows.append(
                    Row(SUITE, GATE, fault, kind, number, measured["unit"], note=note, **found)
                )
    return rows


def _measure(name: str, recording: Recording, trials: int, budget: str) -> list[Row]:
    found = {factor: [0, 0, 0] for factor in FACTORS}
    rng = np.random.default_rng(0)
    floors, blocks, warned = [], [], 0
    for _ in range(trials):
        trial = draw(recording.traces, rng)
        floors.append(trial.floor)
        blocks.append(trial.blocks)
        warned += bool(symptoms(trial.slower))
        for factor in FACTORS:
            found[factor][_ORDER.index(trial.verdict(factor))] += 1
    rows = [
        Row(
            SUITE,
            name,
            f"x{factor:g}",
            word,
            count / trials,
            "share",
            interval=wilson(count, trials),
        )
        for factor in FACTORS
        for word, count in zip(_ORDER, found[factor])
    ]
    rows += [
        Row(SUITE, name, "floor", "median", float(np.median(floors)), "share"),
        Row(SUITE, name, "blocks", "median", float(np.median(blocks)), "blocks"),
        Row(SUITE, name, "symptoms", "warned", warned / trials, "share"),
    ]
    told = {"trials": trials, "what": recording.what}
    return [
        Row(
            **{
                **vars(r),
                "parameters": told,
                "environment": recording.environment,
                "budget": budget,
            }
        )
        for r in rows
    ]


_ORDER: tuple[Word, ...] = ("slower", "inconclusive", "faster")


class Trial:
    """One run drawn from a recording: a base, the same again, and an arm to slow down."""

    def __init__(self, base: Trace, again: Trace, slower: Trace) -> None:
        self.slower = slower
        self.ratio = block_ratio(slower, base, resamples=RESAMPLES)
        same = block_ratio(again, base, resamples=RESAMPLES)
        self.floor = noise_floor(same)
        self.narrow = half_width([self.ratio, same]) <= ENOUGH
        self.blocks = len(base.blocks)

    def verdict(self, factor: float) -> Word:
        """Returns the verdict where every call of the arm takes `factor` times as long."""
        return judge(self.ratio.scaled(factor), self.floor)


def draw(arms: Sequence[Trace], rng: np.random.Generator) -> Trial:
    """Returns a trial that stops as the harness does: when its intervals are narrow."""
    roles: list[list[tuple[tuple[float, ...], ...]]] = [[], [], []]
    while True:
        block = int(rng.integers(len(arms[0].blocks)))
        for role, arm in zip(roles, rng.permutation(len(arms))):
            role.append(arms[arm].blocks[block])
        count = len(roles[0])
        if count >= BLOCKS and (count - BLOCKS) % 2 == 0:
            names = ("base", "again", "slower")
            trial = Trial(*(Trace(n, tuple(role)) for n, role in zip(names, roles)))
            if trial.narrow or count >= MOST_BLOCKS:
                return trial


def wilson(count: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927)."""
    share, z2 = count / trials, Z * Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z / (1 + z2 / trials) * (share * (1 - share) / trials + z2 / (4 * trials**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


# The tables


def tables(results: Results) -> str:
    """Returns the rates for each recording and over all of them."""
    names = [name for name in dict.fromkeys(row.group for row in results.rows) if name != GATE]
    lines = [_line(results, [name], _what(results, name)) for name in names]
    if len(names) > 1:
        lines.append(_line(results, names, "all"))
    header = ["recording", "trials", "false alarms", *(f"finds {f - 1:.0%}" for f in FACTORS[1:])]
    rates = markdown([*header, "noise floor", "blocks", "warned"], lines)
    return f"{rates}\n\n### edgeport check padre, with faults\n\n{_gate_table(results)}"


def _gate_table(results: Results) -> str:
    """Returns what failed for padre as it is and with each fault."""
    lines = []
    for fault in FAULTS:
        rows = [row for row in results.rows if (row.group, row.arm) == (GATE, fault)]
        failed = [row for row in rows if row.note.startswith("fail")]
        told = [row for row in failed if row.metric.endswith(NOTICED.get(fault, "-"))]
        noticed = bool(told) if fault in NOTICED else not failed
        said = told[-1].note.removeprefix("fail: ") if told else "-"
        others = ", ".join(row.metric for row in failed if row not in told)
        code = str(rows[0].parameters["exit"]) if rows else NOT_RUN
        lines.append([fault, code, said, others, ("yes" if noticed else "NO") if rows else NOT_RUN])
    return markdown(["padre", "exit code", "named", "failed too", "as it should"], lines)


def _what(results: Results, name: str) -> str:
    return next(str(row.parameters["what"]) for row in results.rows if row.group == name)


def _line(results: Results, names: Sequence[str], title: str) -> list[str]:
    rows = [row for row in results.rows if row.group in names]
    if not rows:
        return [title, NOT_RUN]
    trials = {row.group: int(row.parameters["trials"]) for row in rows}

    def share(factor: float, *words: Word) -> str:
        hits = sum(
            round((row.value or 0.0) * trials[row.group])
            for row in rows
            if row.arm == f"x{factor:g}" and row.metric in words
        )
        low, high = wilson(hits, sum(trials.values()))
        return f"{hits / sum(trials.values()):.1%} ({low:.1%} to {high:.1%})"

    def middle(arm: str) -> float:
        return float(np.median([row.value for row in rows if row.arm == arm]))

    return [
        title,
        str(sum(trials.values())),
        share(1.0, "slower", "faster"),
        *(share(factor, "slower") for factor in FACTORS[1:]),
        f"{middle('floor'):.1%}",
        f"{middle('blocks'):.0f}",
        f"{middle('symptoms'):.1%}",
    ]
