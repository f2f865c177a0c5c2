"""Write the checkpoints of a run: its output, and those of single epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import list_some
from wiseft_cli.model.classifier import state_arrays
from wiseft_cli.training.kept import (
    BEST,
    EMA,
    EPOCHS,
    SELECTION,
    ema_path,
    epoch_path,
    written_card,
)
from wiseft_cli.training.methods import update_average
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state import Run

if TYPE_CHECKING:
    from wiseft_cli.evaluation.metrics import SetAccuracy


def write_weights(
    path: Path, run: Run, plan: FinetunePlan, *, copy: str | None = None, **results: Any
) -> str:
    """Write weights of a run as a checkpoint, and return the content digest.

    Args:
        copy: Name of the copy to write; None for the current weights.
        results: What the history records besides the plan.
    Raises:
        OutputError: The file cannot be written.
    """
    arrays = state_arrays(run.classifier)
    for name, tensor in run.copies[copy].items() if copy else ():
        arrays[name] = tensor.cpu().numpy()
    card = written_card(plan.card, n_unreadable=len(run.unreadable), **results)
    # What exists beside the output was written by an earlier part of this run.
    force = plan.force or (plan.resume and path != plan.output)
    return write_checkpoint(path, arrays, card, force=force, inputs=[plan.parent])


def write_output(run: Run, plan: FinetunePlan) -> str:
    """Write the output of a finished run and its average, and return the output's digest.

    Raises:
        OutputError: The file cannot be written.
    """
    if plan.recipe.ema:
        write_weights(ema_path(plan.output), run, plan, copy=EMA, weights=EMA)
    if plan.selection_set is None:
        return write_weights(plan.output, run, plan)
    results = {SELECTION: dict(run.selection)}
    return write_weights(plan.output, run, plan, copy=BEST, **results)


def describe_outputs(run: Run, plan: FinetunePlan) -> list[str]:
    """Return a sentence for each choice of weights, and for the files beside the output."""
    texts = []
    if run.selection:
        texts.append(
            f"kept the weights of epoch {run.selection['epoch']} of {plan.recipe.epochs}, the best"
            f" on {plan.selection_set!r} ({100 * run.selection['top1']:.2f} %)"
        )
    if plan.other_outputs:
        texts.append(f"also written: {', '.join(list_some(list(map(str, plan.other_outputs))))}")
    return texts


def average_weights(run: Run, plan: FinetunePlan) -> None:
    """Move the average of the weights towards those after the step that was just taken."""
    if not plan.recipe.ema:
        return
    if EMA not in run.copies:
        run.copy_weights(EMA)
    update_average(
        run.copies[EMA], run.weights(), steps_done=run.steps_done, half_life=plan.recipe.ema
    )


def keep_epoch(
    run: Run, plan: FinetunePlan, epochs_done: int, accuracies: Sequence[SetAccuracy]
) -> None:
    """Keep the weights of an epoch that just ended, if the plan wants them.

    The same epoch may be kept twice, by a run that is resumed after it.

    Args:
        epochs_done: Number of the epoch, from 1.
        accuracies: Of the plan's validation sets.
    Raises:
        OutputError: A checkpoint cannot be written.
    """
    if plan.keep.kind == EPOCHS:
        write_weights(epoch_path(plan.output, epochs_done), run, plan, epoch=epochs_done)
    for labelled, accuracy in zip(plan.val, accuracies, strict=True):
        if labelled.images.name == plan.selection_set:
            if accuracy.top1 > run.selection.get("top1", -1.0):
                run.selection = {"epoch": epochs_done, "top1": accuracy.top1}
                run.copy_weights(BEST)
            break
