"""Where a run begins: at its first step, at a state that an earlier one left, or at its end.

It reads states, and changes nothing but what a run left that is at its end; it needs no torch.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.checkpoint.atomic import remove_abandoned_versions
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.errors import CheckpointError, OutputError, RecipeError, list_some
from wiseft_cli.training.finetuned_card import finetuned_card, list_changes
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state_folder import (
    FoundState,
    find_newest_intact,
    list_states,
    remove_states,
    state_folder,
)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        state: The state to go on from; None for the first step.
        digest: Of the output, where it is there already, made by this very run.
        warnings: What is unlike the run that left the state, one sentence each.
    """

    state: FoundState | None = None
    digest: str | None = None
    warnings: tuple[str, ...] = ()


def find_start(
    plan: FinetunePlan, *, resume: bool, threads: int | None = None, world_size: int = 1
) -> Start:
    """Return where a run begins.

    Args:
        plan: The run.
        resume: Whether it is to go on from what an earlier one left.
        threads: CPU threads the person asked for.
        world_size: Processes of this run.
    Raises:
        OutputError: There is a state, or an output, that this run would have to overwrite.
        RecipeError: The state is that of another run, or of other threads.
    """
    if not resume:
        _refuse_states(plan)
        return Start()
    if digest := _digest_if_finished(plan):
        return Start(digest=digest)
    warnings: list[str] = []
    state = find_newest_intact(plan.output, warnings.append)
    if state is None:
        return Start(warnings=tuple(warnings))
    _refuse_other_run(state, plan, threads)
    warnings += _unlike(state, plan, world_size)
    return Start(state, warnings=tuple(warnings))


def clear_finished_run(plan: FinetunePlan, *, keep_states: bool) -> None:
    """Remove what a run left that was killed between writing its output and its end.

    States of another run, begun since to overwrite that output, stay: it can go on from them.
    """
    remove_abandoned_versions(plan.output)
    if not keep_states and not any(_is_of_another_run(at, plan) for at in list_states(plan.output)):
        remove_states(plan.output)


def torch_version() -> str:
    """Return the version of torch, without importing it."""
    return importlib.metadata.version("torch")


def _refuse_states(plan: FinetunePlan) -> None:
    states = list_states(plan.output)
    if states and not plan.force:
        raise OutputError(
            f"{state_folder(plan.output)}: holds the state of a run that did not end"
            f" ({states[0].name})",
            hint="go on from it with --resume, or begin anew and remove it with --force",
        )


def _digest_if_finished(plan: FinetunePlan) -> str | None:
    """Return the digest of the output where it is there; raise where another is in its place."""
    if not plan.output.exists():
        return None
    try:
        card = read_card(plan.output)
    except CheckpointError:
        card = None
    if card and card.digest and not list_changes(card, finetuned_card(plan)):
        return card.digest
    if plan.force:
        return None
    raise OutputError(
        f"{plan.output}: exists already, and is not what this run would write",
        hint="name another output with -o, or overwrite with --force",
    )


def _is_of_another_run(state: Path, plan: FinetunePlan) -> bool:
    try:
        card = read_card(state)
    except CheckpointError:
        return False
    return bool(list_changes(card, finetuned_card(plan)))


def _refuse_other_run(state: FoundState, plan: FinetunePlan, threads: int | None) -> None:
    changes = list_changes(state.card, finetuned_card(plan))
    recorded = state.record.threads
    if threads is not None and threads != recorded:
        changes.append(f"--threads: {recorded} there, {threads} now")
    if changes:
        raise RecipeError(
            "\n  ".join([f"{state.path}: is the state of another run", *list_some(changes)]),
            hint="give the options and data of that run, or begin anew with --force in place of"
            " --resume",
        )


def _unlike(state: FoundState, plan: FinetunePlan, world_size: int) -> list[str]:
    """Tell what may change the last bits of the result."""
    pairs = {
        "wiseft": (state.card.history[-1].version, finetuned_card(plan).history[-1].version),
        "torch": (state.record.torch_version, torch_version()),
        "processes": (state.record.world_size, world_size),
    }
    return [
        f"the state was saved with {name} {then}, this is {now}: the result may differ in the"
        " last digits from that of a run without a break"
        for name, (then, now) in pairs.items()
        if then != now
    ]
