"""The runs of `wiseft finetune --sweep`, one after the other, and the table of their accuracies."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from wiseft_cli.cli.console import print_data, print_json, print_message, print_result
from wiseft_cli.errors import RecipeError, WiseftError, counted
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.sweep import SweepRun

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from wiseft_cli.training.plan import FinetunePlan

Row: TypeAlias = tuple[SweepRun, Mapping[str, float] | None, str]
"""A run, its accuracies, and the word in place of accuracies that are not known."""


def run_sweep(
    runs: Sequence[SweepRun],
    *,
    read_recipe: Callable[[Mapping[str, str]], Recipe],
    run: Callable[[Recipe, Path], tuple[FinetunePlan, str, list[str]]],
    validate: Callable[[FinetunePlan], Mapping[str, float]],
    as_json: bool,
) -> None:
    """Train every run, print the outputs, and a table of the validation accuracies.

    A run that fails does not stop the others. If only the validation of a run fails, the run is
    done and its accuracy is unknown.

    Args:
        read_recipe: Returns the recipe with some values replaced.
        run: Trains with a recipe and writes an output; returns the plan, the content digest of
            the output, and warnings.
        validate: Returns the accuracy of a plan's output on each validation set.
    Raises:
        UsageError: A value does not fit its recipe key.
        RecipeError: Some runs failed; raised after all others are done.
    """
    recipes = [read_recipe(at.values) for at in runs]  # all values are checked before any run
    rows: list[Row] = []
    documents: list[dict[str, Any]] = []
    for number, (at, recipe) in enumerate(zip(runs, recipes, strict=True), start=1):
        print_message(f"run {number} of {len(runs)}: {at.label}, to {at.output}")
        try:
            plan, digest, warnings = run(recipe, at.output)
        except WiseftError as error:
            print_message(f"error: {error.message}")
            rows.append((at, None, "failed"))
            continue
        accuracies: Mapping[str, float] | None = None
        try:
            accuracies = validate(plan)
        except WiseftError as error:
            warnings = [*warnings, f"the accuracy is unknown: {error.message}"]
            print_message(f"warning: {at.output} is written; {warnings[-1]}")
        rows.append((at, accuracies, "unknown"))
        documents.append(
            {
                "path": str(at.output),
                "digest": digest,
                "role": "finetuned",
                "alpha": None,
                "values": dict(at.values),
                "accuracies": None if accuracies is None else dict(accuracies),
                "warnings": warnings,
            }
        )
        if not as_json:
            print_data(str(at.output))
    for line in _table(rows):
        print_message(line)
    if as_json:
        print_json(documents)
    if failed := [at.label for at, _, state in rows if state == "failed"]:
        raise RecipeError(f"{counted(len(failed), 'run')} of {len(runs)} failed", faults=failed)


def validate_output(plan: FinetunePlan, device: str, workers: int | None) -> dict[str, float]:
    """Return the accuracy of a plan's output on each validation set, as a fraction."""
    if not plan.val:
        return {}
    # lazy: torch takes seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.torchrun import Launch
    from wiseft_cli.compute.workers import default_workers
    from wiseft_cli.evaluation.scoring import evaluate_image_set
    from wiseft_cli.model.classifier import load_classifier

    resolved = resolve_device(device, Launch())
    classifier, card = load_classifier(plan.output, device=resolved)
    return {
        labelled.images.name: evaluate_image_set(
            classifier,
            labelled.images,
            labelled.join,
            card.preprocess or {},
            batch_size=plan.recipe.micro_batch_size,
            workers=default_workers() if workers is None else workers,
            device=resolved,
        ).top1
        for labelled in plan.val
    }


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table: the swept values, and top-1 accuracy in per cent."""
    keys = [*rows[0][0].values]
    sets = [*dict.fromkeys(name for _, found, _ in rows for name in found or ())]
    cells = [[*keys, *sets]]
    for at, found, otherwise in rows:
        shown = (f"{100 * found[name]:.2f}" if found else otherwise for name in sets)
        cells.append([*at.values.values(), *shown])
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def print_run_commands(context: typer.Context, runs: Sequence[SweepRun]) -> None:
    """Print one `wiseft finetune` command per run, with the other options as they were given."""
    replaced = {"sweep", "print_commands", "output"}
    for at in runs:
        words = ["wiseft", "finetune", *_given_words(context, {*replaced, *at.values})]
        for key, value in at.values.items():
            words += [f"--{key.replace('_', '-')}", value]
        print_result(shlex.join([*words, "-o", str(at.output), "--resume"]))


def _given_words(context: typer.Context, left_out: set[str]) -> Iterator[str]:
    """Yield the words of every argument and option that differs from its default."""
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name in left_out or value is None or value in ((), [], parameter.default):
            continue
        if parameter.param_type_name == "argument":
            yield str(value)
        elif isinstance(value, bool):
            yield (parameter.opts if value else parameter.secondary_opts)[0]
        elif isinstance(value, list) or (isinstance(value, tuple) and parameter.nargs == 1):
            for item in value:
                yield from (parameter.opts[0], str(item))
        else:
            items = value if isinstance(value, tuple) else [value]
            yield from (parameter.opts[0], *map(str, items))
