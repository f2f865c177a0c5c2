"""The loop of a run: step after step, the validation sets between epochs, and states on the way.

Nothing here chooses by a validation set: accuracies are reported, and training goes on. The
arithmetic of a step is `optimization.py`.
"""

from __future__ import annotations

from contextlib import nullcontext

from wiseft_cli.evaluation.accuracy import evaluate_image_set
from wiseft_cli.training.inputs import open_inputs
from wiseft_cli.training.listener import EpochReport, Listener
from wiseft_cli.training.modes import set_training_modes
from wiseft_cli.training.optimization import StepReport, run_steps
from wiseft_cli.training.placement import Placement
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.saver import StateSaver
from wiseft_cli.training.state import Run
from wiseft_cli.training.stopping import StopRequest


def train(
    run: Run,
    plan: FinetunePlan,
    place: Placement,
    *,
    listener: Listener,
    saver: StateSaver | None,
    stop: StopRequest | None = None,
) -> bool:
    """Take the steps that are left of a run.

    Args:
        run: Fresh, or at the step of a state.
        plan: What is trained, on what.
        place: Where.
        listener: Whom to tell.
        saver: Of the run's states; of several processes the first one has it.
        stop: Signals are noted there from the first step on; None leaves them alone.
    Returns:
        Whether all steps were taken; otherwise somebody wanted to stop, and the state is saved.
    Raises:
        DatasetError: An image cannot be read.
        RecipeError: Training diverged.
    """
    recipe = plan.recipe
    if _is_between_epochs(run, plan):
        _report(run, plan, place, listener)
    set_training_modes(run.classifier, freeze=recipe.freeze, batch_norm=recipe.batch_norm)
    inputs = open_inputs(run.classifier, plan, place, first_step=run.steps_done, listener=listener)
    steps = run_steps(
        inputs.logits_of,
        run.optimizer,
        inputs.batches,
        recipe,
        device=place.device,
        first_step=run.steps_done,
        scaler=run.scaler,
        stop=lambda: bool(stop),
        on_missing=inputs.unreadable.settle,
        processes=place.processes,
    )
    with nullcontext() if stop is None else stop:
        for step in steps:
            _count(run, step, plan)
            listener.on_step(step)
            if saver and not step.is_stopped:
                saver.save_if_due(run, ends_epoch=step.ends_epoch)
            if step.is_stopped or (
                step.ends_epoch and not _report(run, plan, place, listener, stop)
            ):
                if saver:
                    saver.save(run)
                return False
    return True


def _is_between_epochs(run: Run, plan: FinetunePlan) -> bool:
    ends_epoch = run.steps_done % plan.recipe.steps_per_epoch == 0
    return ends_epoch or run.steps_done == plan.recipe.steps


def _count(run: Run, step: StepReport, plan: FinetunePlan) -> None:
    if step.step % plan.recipe.steps_per_epoch == 0:
        run.loss_sum, run.n_images = 0.0, 0
    run.steps_done = step.step + 1
    run.loss_sum += step.loss * step.n_images
    run.n_images += step.n_images


class _StopWishedError(Exception):
    """Somebody wants to stop in the middle of an evaluation."""


def _report(
    run: Run,
    plan: FinetunePlan,
    place: Placement,
    listener: Listener,
    stop: StopRequest | None = None,
) -> bool:
    """Tell the epoch's loss and accuracies, and return False where that was to be stopped."""
    # One of several cannot break off what the others go on with: they agree in the next step.
    can_break_off = place.processes.world_size == 1
    place.processes.broadcast_tensors(run.classifier.buffers())

    def look_up(_n_images: int) -> None:
        if stop and can_break_off:
            raise _StopWishedError

    try:
        accuracies = tuple(
            evaluate_image_set(
                run.classifier,
                labelled.images,
                labelled.join,
                plan.card.preprocess or {},
                batch_size=plan.recipe.micro_batch_size,
                workers=place.workers,
                device=place.device,
                processes=place.processes,
                on_progress=look_up,
            )
            for labelled in plan.val
        )
    except _StopWishedError:
        return False
    mean_loss = run.loss_sum / run.n_images if run.n_images else None
    epochs_done = -(-run.steps_done // plan.recipe.steps_per_epoch)
    listener.on_epoch(EpochReport(epochs_done, mean_loss, accuracies))
    return True
