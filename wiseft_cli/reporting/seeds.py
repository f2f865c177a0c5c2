"""Average the results of runs that differ only in their seed.

Runs belong together if their fine-tuning has the same recipe and the same training set, and if
they were evaluated at the same alpha with the same protocol. The mean of a group stands in one
results line per set; the ends of its interval are one standard deviation from the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.errors import ResultsError, counted
from wiseft_cli.reporting.results import FINE_TUNING, CheckpointName, Metric, ResultLine

SEEDS = "seeds"
"""Field of an averaged line with the seeds of its runs."""

SEED_VALUES = "seed_values"
"""Field of an averaged line with the values of each metric, in the order of the seeds."""


def n_seeds(line: ResultLine) -> int:
    """Return the number of runs behind a line; 0 for a line of a single evaluation."""
    seeds = line.extra.get(SEEDS)
    return len(seeds) if isinstance(seeds, list) else 0


def standard_deviation(lines: Sequence[ResultLine]) -> float | None:
    """Return the standard deviation over seeds of the mean over several sets.

    Args:
        lines: Averaged lines of one weight set, one per image set.
    Returns:
        The sample standard deviation (divided by n - 1), a fraction; None if the lines are not
        averages, or not over the same two or more seeds.
    """
    seeds = [line.extra.get(SEEDS) for line in lines]
    if n_seeds(lines[0]) < 2 or any(of_line != seeds[0] for of_line in seeds):
        return None
    values = [line.extra[SEED_VALUES][line.primary] for line in lines]
    return stdev(map(fmean, zip(*values, strict=True)))


def average_over_seeds(
    lines: Sequence[ResultLine],
) -> tuple[tuple[ResultLine, ...], tuple[str, ...]]:
    """Average the lines of runs with the same recipe; lines without a recipe stay as they are.

    Returns:
        The lines, and one sentence per group on its number of runs and their seeds.
    Raises:
        ResultsError: No line states a recipe, or the runs of a group have different metrics or the
            same seed.
    """
    latest = list({line.key: line for line in lines}.values())
    runs = [line for line in latest if _fine_tuning(line)]
    if not runs:
        raise ResultsError(
            "--group-by recipe: no line of the results states the recipe of its checkpoint",
            hint="evaluate again with this version of wiseft, into a new file",
        )
    names = _recipe_names(runs)
    groups: dict[str, list[ResultLine]] = {}
    for line in latest:
        groups.setdefault(_group_key(line), []).append(line)
    averaged = tuple(_average(of_group, names) for of_group in groups.values())
    seeds = {line.checkpoints_name: line.extra[SEEDS] for line in averaged if SEEDS in line.extra}
    notes = [
        f"{name}: mean and standard deviation over {counted(len(of_run), 'run')}, seeds"
        f" {', '.join(map(str, of_run))}"
        if len(of_run) > 1
        else f"{name}: a single run, seed {of_run[0]}, without a standard deviation"
        for name, of_run in seeds.items()
    ]
    return averaged, tuple(notes)


def _fine_tuning(line: ResultLine) -> Mapping[str, Any]:
    value = line.extra.get(FINE_TUNING)
    return value if isinstance(value, dict) else {}


def _group_key(line: ResultLine) -> str:
    """Return the identity of a group; lines without a recipe are groups of their own."""
    run = _fine_tuning(line)
    if not run:
        return repr(line.key)
    roles = [at.digest if at.role == "zeroshot" else at.role for at in line.checkpoints]
    method = line.merged_by.key if line.merged_by else ""
    of_line = [line.set_name, line.data_fingerprint, line.alpha, line.ensemble, line.precision]
    what = [roles, method, line.protocol, line.join, run.get("recipe"), run.get("train")]
    return canonical_json([*of_line, *what])


def _recipe_names(lines: Sequence[ResultLine]) -> dict[str, str]:
    """Return a name per recipe and training set, from the keys in which they differ."""
    runs = {_recipe_key(line): _fine_tuning(line) for line in lines}
    recipes = [run.get("recipe") or {} for run in runs.values()]
    keys = sorted({key for recipe in recipes for key in recipe})
    different = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
    names = {}
    for key, run in runs.items():
        recipe = run.get("recipe") or {}
        told = ", ".join(f"{key} {recipe.get(key)}" for key in different[:4])
        names[key] = told
    if len(set(names.values())) < len(names):  # the training sets differ, or a fifth key
        numbered = enumerate(names.items(), start=1)
        names = {
            key: ", ".join(filter(None, [f"recipe {at}", told])) for at, (key, told) in numbered
        }
    return names


def _recipe_key(line: ResultLine) -> str:
    run = _fine_tuning(line)
    return canonical_json([run.get("recipe"), run.get("train")])


def _average(lines: Sequence[ResultLine], names: Mapping[str, str]) -> ResultLine:
    first = lines[0]
    if not _fine_tuning(first):
        return first
    if any(line.metrics.keys() != first.metrics.keys() for line in lines):
        raise ResultsError(
            f"--group-by recipe: runs have different metrics on {first.set_name!r}",
            hint="evaluate all runs with the same options",
        )
    _require_distinct_seeds(lines)
    lines = sorted(lines, key=lambda line: str(_fine_tuning(line).get("seed")))
    key = _recipe_key(first)
    told = ", ".join(filter(None, [names[key], counted(len(lines), "seed")]))
    digest = f"sha256:{hashlib.sha256(key.encode('ascii')).hexdigest()}"
    values = {name: [line.metrics[name].value for line in lines] for name in first.metrics}
    return replace(
        first,
        checkpoints=tuple(
            at if at.role == "zeroshot" else CheckpointName(f"{at.role} ({told})", at.role, digest)
            for at in first.checkpoints
        ),
        metrics={name: _mean(of_runs) for name, of_runs in values.items()},
        extra={
            SEEDS: [_fine_tuning(line).get("seed") for line in lines],
            SEED_VALUES: values,
        },
    )


def _require_distinct_seeds(lines: Sequence[ResultLine]) -> None:
    by_seed: dict[str, list[ResultLine]] = {}
    for line in lines:
        if (seed := _fine_tuning(line).get("seed")) is not None:
            by_seed.setdefault(str(seed), []).append(line)
    repeated = [
        f"seed {seed} on {line.set_name!r}: {line.weights_name} ({line.checkpoints[-1].digest})"
        for seed, of_seed in by_seed.items()
        for line in of_seed
        if len(of_seed) > 1
    ]
    if repeated:
        raise ResultsError(
            "--group-by recipe: runs of one recipe have the same seed",
            faults=repeated,
            hint="leave the lines of all but one of them out of the results",
        )


def _mean(values: Sequence[float]) -> Metric:
    """Return the mean, between the ends of one standard deviation; without ends for one value."""
    mean = fmean(values)
    if len(values) < 2:
        return Metric(mean)
    spread = stdev(values)
    return Metric(mean, max(0.0, mean - spread), min(1.0, mean + spread))
