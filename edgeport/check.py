"""The gate on speed and accuracy: measures what claims and the baseline are about, and judges.

A subject is a recipe at the settings it states (`Recipe.check`), or a source of `[[claim]]` in
edgeport.toml. What did not change is in the cache, times included: `fresh` measures them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeport import pipeline
from edgeport.baseline import read_baseline, updated, write_baseline
from edgeport.bench import Arm, Settings, bench, check_seconds, speedup
from edgeport.blocks import HostBlocks
from edgeport.cache import Cache, default_root
from edgeport.catalog import all_recipes, own_recipes, recipe_file
from edgeport.config import ClaimTable, load_config
from edgeport.errors import EdgeportError, InputError, StageFailed, UnknownName
from edgeport.evidence import evidence, evidence_of_failure
from edgeport.fingerprint import environment_digest, file_sha256
from edgeport.gate import OTHER, RULES, Better, Known, Rule, judge_changes, judge_claims
from edgeport.measure import machine_text
from edgeport.plan import WRITTEN, Options
from edgeport.private import scratch_directory
from edgeport.recipe_evaluation import evaluate_recipe
from edgeport.runtimes import webgpu_program
from edgeport.runtimes.worker import Limits
from edgeport.stages import host_threads
from edgeport.subjects import find_arm
from edgeport.types import Claim, Measurement, Recipe, Verdict

Progress = Callable[[str], None]
SECONDS = 60.0  # for one comparison of speeds
LIMITS = Limits(seconds=900.0, memory_bytes=16 << 30)  # of one stage of an evaluation


@dataclass(frozen=True)
class Pair:
    """Two sources whose times are compared: `metric` is the speedup of ours over theirs."""

    metric: str
    ours: tuple[str, Mapping[str, Any]]
    theirs: tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Accuracy:
    """A user's metric on a user's data."""

    data: Path
    metric: str


@dataclass(frozen=True)
class Subject:
    """What is judged together: an export's source and options, and the claims about it."""

    name: str
    source: str
    options: Mapping[str, Any]
    claims: tuple[Claim, ...]
    pairs: tuple[Pair, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    file: Path | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Found:
    """What was measured of a subject; `problem` says what of it failed and why, if it did."""

    measured: tuple[Measurement, ...]
    problem: str = ""


@dataclass(frozen=True)
class Checked:
    """The verdicts, what was measured for each subject, and where each is declared."""

    verdicts: tuple[Verdict, ...]
    measured: tuple[tuple[str, Measurement], ...]
    files: Mapping[str, Path]
    new: int  # numbers that the baseline does not have
    diff: str = ""


def check(
    names: Sequence[str] = (),
    *,
    baseline: Path,
    update: bool = False,
    why: str = "",
    fresh: bool = False,
    seconds: float = SECONDS,
    progress: Progress = lambda step: None,
) -> Checked:
    """Returns the verdicts on the recipes named, or on all and on the claims of edgeport.toml.

    With `update` the baseline is written anew for them, for the reason `why`, and only claims are
    judged. An export or a recipe's own evaluation that fails is a failure of the claims about it.
    Raises InputError for an unknown name and a missing reason, and where a baseline should be made
    of what failed.
    """
    check_seconds(seconds)
    if update and not why.strip():
        raise InputError('--update-baseline takes a reason: --why "onnxruntime 1.33 is faster"')
    if update and not baseline.absolute().parent.is_dir():  # before minutes of measuring
        raise InputError(f"--baseline {baseline}: its folder is not there; make it first")
    subjects = find_subjects(names)
    known = read_baseline(baseline)
    verdicts: list[Verdict] = []
    measured: list[tuple[str, Measurement]] = []
    machine = machine_text(host_threads())
    for subject in subjects:
        found = measure_subject(subject, fresh=fresh, seconds=seconds, progress=progress)
        if update and found.problem:
            raise InputError(f"{subject.name}: {found.problem}; the baseline stays as it was")
        measured += [(subject.name, one) for one in found.measured]
        verdicts += judge_subject(subject, found, () if update else known, machine)
    diff = write_baseline(baseline, updated(known, measured, machine, why)) if update else ""
    there = {(one.subject, one.metric, one.provenance) for one in known}
    new = sum((name, one.metric, one.provenance) not in there for name, one in measured)
    files = {one.name: one.file for one in subjects if one.file is not None}
    return Checked(tuple(verdicts), tuple(measured), files, 0 if update else new, diff)


def find_subjects(names: Sequence[str]) -> list[Subject]:
    """Returns the recipes of these names.

    Without names, the recipes and claims of edgeport.toml: a user's gate is about what is theirs.
    Where it has neither, as in edgeport's own checkout, the recipes that come with edgeport.
    """
    recipes = all_recipes()
    for name in names:
        if name not in recipes:
            raise UnknownName("recipe", name, recipes)
        if not recipes[name].check:
            raise InputError(
                f"recipe {name} does not say how it is checked: give its Recipe a `check`, such as"
                ' {"device": "s24", "precision": "w8a16"}'
            )
    if names:
        return [_of_recipe(recipes[name]) for name in names]
    own = [_of_recipe(recipe) for recipe, _ in own_recipes().values() if recipe.check]
    return own + _of_config() or [_of_recipe(one) for one in recipes.values() if one.check]


def judge_subject(
    subject: Subject, found: Found, known: Sequence[Known] = (), machine: str = ""
) -> list[Verdict]:
    """Returns the verdicts on a subject's claims, and on its numbers in the baseline."""
    verdicts = [
        *judge_claims(subject.name, subject.claims, found.measured),
        *judge_changes(subject.name, known, found.measured, machine, {**RULES, **subject.rules}),
    ]
    return [_failed(one, found.problem) for one in verdicts] if found.problem else verdicts


def _failed(verdict: Verdict, problem: str) -> Verdict:
    """Returns a failure where there is no number because what gives it failed."""
    if verdict.outcome != "missing" or verdict.reason.startswith("measured as"):
        return verdict
    return replace(verdict, outcome="fail", reason=problem)


def measure_subject(
    subject: Subject,
    *,
    fresh: bool = False,
    seconds: float = SECONDS,
    progress: Progress = lambda step: None,
) -> Found:
    """Returns everything that this machine can measure of a subject."""

    def told(step: str) -> None:
        progress(f"{subject.name}: {step}")

    found, problem = _of_export(subject, fresh, seconds, told)
    own, own_problem = _of_recipe_itself(subject, fresh, told)
    found += [*own, *(_speed(pair, fresh, seconds, told) for pair in subject.pairs)]
    return Found(tuple(found), "; ".join(filter(None, (problem, own_problem))))


def _of_recipe_itself(
    subject: Subject, fresh: bool, progress: Progress
) -> tuple[Sequence[Measurement], str]:
    """Returns what the recipe's own function measured, and why it failed, if it did."""
    if subject.recipe is None:
        return (), ""
    try:
        return evaluate_recipe(subject.recipe, fresh=fresh, progress=progress), ""
    except EdgeportError as error:
        return (), f"the recipe's evaluation failed: {error}"


def _of_export(
    subject: Subject, fresh: bool, seconds: float, progress: Progress
) -> tuple[list[Measurement], str]:
    """Returns what the export proves, and why it failed, if it did."""
    with scratch_directory() as folder:
        target = folder / "export"
        try:
            made = pipeline.export(
                subject.source, output_dir=target, progress=progress, **subject.options
            )
        except StageFailed as error:
            return evidence_of_failure(target), f"the export failed: {error}"
        found = evidence(made.directory, made.manifest)
        for asked in subject.accuracy:
            found += _accuracy(made.directory, asked, progress)
        if made.manifest["placement"].get(WRITTEN) and made.artifact("run").parity:
            found.append(_frames(made.directory, fresh, seconds, progress))
    return found, ""


def _accuracy(directory: Path, asked: Accuracy, progress: Progress) -> list[Measurement]:
    from edgeport.evaluate import evaluate

    found = evaluate(
        directory, data=asked.data, metric=asked.metric, limits=LIMITS, progress=progress
    )
    return list(found.measurements)


def _speed(pair: Pair, fresh: bool, seconds: float, progress: Progress) -> Measurement:
    """Returns how much faster ours is than theirs on this machine, both timed in one run."""
    with scratch_directory() as workdir:
        arms = [
            replace(find_arm(text, workdir / who, "onnx", False, progress, options), name=who)
            for who, (text, options) in (("theirs", pair.theirs), ("ours", pair.ours))
        ]
        return _timed(pair.metric, arms, fresh, seconds, progress)


def _frames(directory: Path, fresh: bool, seconds: float, progress: Progress) -> Measurement:
    """Returns how much faster the first of a folder's two programs draws a frame."""
    ours, theirs = (one.name for one in webgpu_program.read_document(directory).programs)
    with scratch_directory() as workdir:
        arms = [
            find_arm(f"{directory}:{name}", workdir, WRITTEN, False, progress, {})
            for name in (theirs, ours)
        ]
        named = [replace(arm, name=name) for arm, name in zip(arms, (theirs, ours))]
        return _timed(f"speedup:{WRITTEN}", named, fresh, seconds, progress)


def _timed(
    metric: str, arms: Sequence[Arm], fresh: bool, seconds: float, progress: Progress
) -> Measurement:
    """Returns how much faster the second arm is than the first, measured unless it is known."""
    settings = Settings(threads=host_threads(), seconds=seconds)
    with scratch_directory() as workdir, Cache(default_root()) as cache:
        key = {
            "files": [arm.sha256 for arm in arms],
            "inputs": [file_sha256(arm.inputs) for arm in arms],
            "machine": machine_text(settings.threads),
            "packages": environment_digest(),
            "seconds": seconds,
            "metric": metric,
        }
        known = None if fresh else cache.recall("speed", key)
        if known is not None:
            return Measurement.from_dict(known)
        theirs, ours = arms
        found = bench([theirs, ours], HostBlocks(settings, workdir), settings, progress)
        measured = speedup(found, ours.name, metric)
        cache.remember("speed", key, measured.to_dict())
        return measured


# Subjects


def _of_recipe(recipe: Recipe) -> Subject:
    options = dict(recipe.check)
    for key in options:
        if key not in Options.__annotations__:
            raise UnknownName(
                f"option in the `check` of recipe {recipe.name}:", key, Options.__annotations__
            )
    target = options.get("device") or options.get("chipset") or ""
    where = f"{options.get('precision', 'float')} on {target}"
    pairs = []
    if recipe.baseline is not None:
        for label, changed in recipe.comparisons:
            sides = [
                (recipe.name, {"variant": variant, "options": dict(changed)})
                for variant in (recipe.default_variant, recipe.baseline)
            ]
            pairs.append(Pair(f"speedup:{label}", sides[0], sides[1]))
    return Subject(
        f"{recipe.name} {where}",
        recipe.name,
        options,
        recipe.claims,
        tuple(pairs),
        file=recipe_file(recipe.name),
        recipe=recipe,
    )


def _of_config() -> list[Subject]:
    """Returns a subject for each source and setting that edgeport.toml has claims about."""
    config = load_config()
    grouped: dict[str, list[ClaimTable]] = {}
    for table in config.claims:
        grouped.setdefault(table.subject, []).append(table)
    return [_of_tables(name, tables, config.file) for name, tables in grouped.items()]


def _of_tables(name: str, tables: Sequence[ClaimTable], file: Path | None) -> Subject:
    first = tables[0]
    options: dict[str, Any] = {"device": first.device, "precision": first.precision}
    if first.target_runtime:
        options["target_runtimes"] = [first.target_runtime]
    if first.calib_data is not None:
        options["calib_data"] = first.calib_data
    source = first.located(first.source)
    timed = {key: value for key, value in options.items() if key != "target_runtimes"}
    pairs = {
        table.baseline: Pair(
            f"speedup:{table.baseline}", (source, timed), (table.located(table.baseline), timed)
        )
        for table in tables
        if table.baseline
    }
    judged = [table for table in tables if table.data and table.evaluate]
    accuracy = {
        (table.data, table.evaluate): Accuracy(table.data, table.located(table.evaluate))
        for table in judged
        if table.data is not None
    }
    rules = {
        table.claim.metric.partition(":")[0]: _rule(table)
        for table in tables
        if table.evaluate or table.tolerance is not None
    }
    return Subject(
        name,
        source,
        options,
        tuple(table.claim for table in tables),
        tuple(pairs.values()),
        tuple(accuracy.values()),
        rules,
        file,
    )


def _rule(table: ClaimTable) -> Rule:
    """Returns how the claim's metric may move: worse is the way that the claim forbids."""
    better: Better = "less" if table.claim.op == "<=" else "more"
    return Rule(better, OTHER.tolerance if table.tolerance is None else table.tolerance)
