"""The training loop: step after step, validation between epochs, and states at intervals.

Validation accuracies are only reported, unless the weights are chosen by one of them. The
arithmetic of a step is in `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch

from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.loading import ImageDataset
from wiseft_cli.errors import RecipeError, counted
from wiseft_cli.evaluation.scoring import evaluate_image_set
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.callbacks import Callbacks, EpochReport, StepReport
from wiseft_cli.training.features import feature_batches, load_or_compute_features
from wiseft_cli.training.images import (
    RotatedImages,
    UnreadableImages,
    black_image,
    load_training_batches,
)
from wiseft_cli.training.methods import (
    ADDS_LOSS,
    AddedLoss,
    AnchoredWeights,
    forward_outputs,
)
from wiseft_cli.training.mixing import Mixing
from wiseft_cli.training.modes import set_training_modes, with_single_images
from wiseft_cli.training.outputs import average_weights, keep_epoch
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.recipe import ResolvedRecipe
from wiseft_cli.training.saving import StateSaver
from wiseft_cli.training.state import Run
from wiseft_cli.training.step import Batches, Logits, run_steps, wrap_ddp
from wiseft_cli.training.stopping import StopRequest


def train(
    run: Run,
    plan: FinetunePlan,
    *,
    processes: ProcessGroup = SINGLE_PROCESS,
    workers: int = 0,
    feature_cache: Path | None = None,
    callbacks: Callbacks,
    saver: StateSaver | None = None,
    stop: StopRequest | None = None,
) -> bool:
    """Take the remaining steps of a run.

    Args:
        run: At the first step, or resumed.
        plan: The plan of the run.
        processes: The processes that share each step.
        workers: Number of decoding processes; 0 decodes in this process.
        feature_cache: Folder of cached features of a frozen encoder; None for no cache.
        callbacks: Report the progress.
        saver: Saves states; of several processes only the first has one.
        stop: Receives signals while steps are taken; None leaves their handlers alone.
    Returns:
        Whether all steps were taken; otherwise the run was stopped, and its state is saved.
    Raises:
        DatasetError: More images are unreadable than allowed.
        RecipeError: Training diverged.
    """
    recipe, preprocess, warned = plan.recipe, plan.card.preprocess or {}, set[str]()
    report_epoch = partial(_report_epoch, run, plan, processes, workers, callbacks, warned)
    if _is_between_epochs(run, plan):
        report_epoch()
    set_training_modes(run.classifier, freeze=recipe.freeze, batch_norm=recipe.batch_norm)
    unreadable = _count_unreadable(run, plan, callbacks, processes)
    rotated = RotatedImages(plan.train.images, preprocess, callbacks.on_warning, processes)
    draws = MicroBatches(
        recipe,
        first_step=run.steps_done,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    if recipe.freeze == "encoder":
        logits_of, batches = _open_feature_batches(
            run, plan, draws, unreadable, rotated, callbacks, processes, workers, feature_cache
        )
    else:
        logits_of, batches = _open_image_batches(
            run, plan, draws, unreadable, rotated, callbacks.on_warning, processes, workers
        )
    steps = run_steps(
        logits_of,
        run.optimizer,
        batches,
        recipe,
        processes=processes,
        first_step=run.steps_done,
        scaler=run.scaler,
        added_loss=_build_added_loss(run, plan),
        anchored=_build_anchored_weights(run, recipe),
        stop=lambda: bool(stop),
    )
    with nullcontext() if stop is None else stop:
        for step in steps:
            if step.n_missing:
                unreadable.share()
            _count_step(run, step, plan)
            run.unreadable = unreadable.positions
            if processes.is_first:
                average_weights(run, plan)
            callbacks.on_step(step)
            is_stopped, warning = step.is_stopped, None
            if saver and not is_stopped:
                warning = saver.save_if_due(run, ends_epoch=step.ends_epoch)
            if step.ends_epoch:
                rotated.report()
            if step.ends_epoch and not is_stopped:
                is_stopped = not report_epoch(stop)
            if saver and is_stopped:
                warning = saver.save(run)
            if warning:
                callbacks.on_warning(warning)
            if is_stopped:
                return False
    _require_update(run, plan)
    return True


def _build_added_loss(run: Run, plan: FinetunePlan) -> AddedLoss | None:
    if run.anchor is None or not set(plan.recipe.methods) & set(ADDS_LOSS):
        return None
    return AddedLoss(plan.recipe, run.anchor, plan.text and plan.text.to(run.device))


def _build_anchored_weights(run: Run, recipe: ResolvedRecipe) -> AnchoredWeights | None:
    if run.anchor is None or not (recipe.l2_sp or recipe.spd):
        return None
    anchors = dict(run.anchor.named_parameters())
    weights = list(run.trainable.values())
    return AnchoredWeights(recipe, weights, [anchors[name].detach() for name in run.trainable])


def _count_unreadable(
    run: Run, plan: FinetunePlan, callbacks: Callbacks, processes: ProcessGroup
) -> UnreadableImages:
    # A frozen encoder's features are computed again, and with them the images that are unreadable.
    known = () if plan.recipe.freeze == "encoder" else run.unreadable
    if known:
        images = counted(len(known), "training image")
        callbacks.on_warning(f"{images} could not be read in the earlier part of the run")
    names = [plan.card.classes[target].name for target in plan.train.targets]
    return UnreadableImages(
        plan.max_bad, callbacks.on_warning, processes, classes=names, known=known
    )


def _require_update(run: Run, plan: FinetunePlan) -> None:
    """Reject a finished run that never changed the weights.

    Raises:
        RecipeError: Every step was skipped.
    """
    if run.moments():
        return
    raise RecipeError(
        f"none of the {plan.recipe.steps} optimizer steps changed the weights:"
        + (
            " the gradients of every step overflowed in fp16"
            if run.n_images
            else " none of the images that were drawn could be read"
        )
        + "; no checkpoint was written",
        hint="train longer, or use --precision bf16 or fp32"
        if run.n_images
        else "replace or remove the unreadable files",
    )


def _open_image_batches(
    run: Run,
    plan: FinetunePlan,
    draws: MicroBatches,
    unreadable: UnreadableImages,
    rotated: RotatedImages,
    on_warning: Callable[[str], None],
    processes: ProcessGroup,
    workers: int,
) -> tuple[Logits, Batches]:
    """Return the forward pass of the classifier, and the batches of augmented images for it."""
    recipe, preprocess = plan.recipe, plan.train.images.preprocess(plan.card.preprocess or {})
    augment = cast(Literal["crop", "none"], recipe.augment)
    transform = train_transform(
        preprocess,
        augment=augment,
        randaugment=recipe.randaugment,
        random_erasing=recipe.random_erasing,
    )
    placeholder = black_image(preprocess).to(processes.device)
    forward: Logits = partial(run.classifier, precision=recipe.precision)
    if set(recipe.methods) & set(ADDS_LOSS):
        forward = partial(forward_outputs, run.classifier, precision=recipe.precision)
    if recipe.batch_norm == "train":
        forward = with_single_images(forward, run.classifier, on_warning)
    batches = load_training_batches(
        ImageDataset(plan.train.images, plan.train.targets, transform),
        draws,
        seed=recipe.seed,
        mixing=Mixing(recipe, len(plan.card.classes)) if recipe.mixes_images else None,
        workers=workers,
        device=processes.device,
        unreadable=unreadable,
        rotated=rotated,
        placeholder=None if processes.is_single else placeholder,
    )
    return wrap_ddp(processes, run.classifier, forward, placeholder), batches


def _open_feature_batches(
    run: Run,
    plan: FinetunePlan,
    draws: MicroBatches,
    unreadable: UnreadableImages,
    rotated: RotatedImages,
    callbacks: Callbacks,
    processes: ProcessGroup,
    workers: int,
    cache: Path | None,
) -> tuple[Logits, Batches]:
    """Return the head, and the batches of features for it."""
    features = load_or_compute_features(
        run.classifier,
        plan,
        unreadable,
        rotated,
        callbacks,
        processes=processes,
        workers=workers,
        cache=cache,
    )
    targets = torch.tensor(plan.train.targets, device=processes.device)
    head = run.classifier.classification_head
    logits_of = wrap_ddp(processes, head, head, features.values[:1])
    return logits_of, feature_batches(features, targets, draws)


def _is_between_epochs(run: Run, plan: FinetunePlan) -> bool:
    ends_epoch = run.steps_done % plan.recipe.steps_per_epoch == 0
    return ends_epoch or run.steps_done == plan.recipe.steps


def _count_step(run: Run, step: StepReport, plan: FinetunePlan) -> None:
    if step.step % plan.recipe.steps_per_epoch == 0:
        run.loss_sum, run.n_images = 0.0, 0
    run.steps_done = step.step + 1
    run.loss_sum += step.loss * step.n_images
    run.n_images += step.n_images


class _StopEvaluation(Exception):  # noqa: N818 - not an error
    """A stop was requested in the middle of an evaluation."""


def _report_epoch(
    run: Run,
    plan: FinetunePlan,
    processes: ProcessGroup,
    workers: int,
    callbacks: Callbacks,
    warned: set[str],
    stop: StopRequest | None = None,
) -> bool:
    """Report the epoch's loss and accuracies; return False if a stop was requested meanwhile.

    Args:
        warned: Names of the sets about whose rotated images a warning was given.
    """
    processes.broadcast_tensors(run.classifier.buffers())

    def check_stop(_n_images: int) -> None:
        # Several processes agree to stop in the next step; one cannot leave the others here.
        if stop and processes.is_single:
            raise _StopEvaluation

    try:
        accuracies = tuple(
            evaluate_image_set(
                run.classifier,
                labelled.images,
                labelled.join,
                plan.card.preprocess or {},
                batch_size=plan.recipe.micro_batch_size,
                workers=workers,
                device=processes.device,
                processes=processes,
                on_progress=check_stop,
            )
            for labelled in plan.val
        )
    except _StopEvaluation:
        return False
    for labelled, accuracy in zip(plan.val, accuracies, strict=True):
        if accuracy.n_rotated and labelled.images.name not in warned:
            warned.add(labelled.images.name)
            text = describe_ignored_orientation(accuracy.n_rotated, accuracy.n_images)
            callbacks.on_warning(f"image set {labelled.images.name!r}: {text}")
    mean_loss = run.loss_sum / run.n_images if run.n_images else None
    epochs_done = -(-run.steps_done // plan.recipe.steps_per_epoch)
    callbacks.on_epoch(EpochReport(epochs_done, mean_loss, accuracies))
    if epochs_done and processes.is_first:
        keep_epoch(run, plan, epochs_done, accuracies)
    return True
