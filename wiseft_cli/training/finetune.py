"""Fine-tune a zero-shot classifier on labelled images, from one checkpoint file to another.

Source: Wortsman et al. 2021, arXiv 2109.01903, sections 3 and D.2. Checks that need no weights
are `plan.py`, the arithmetic of a step is `optimization.py`. Nothing here chooses by a
validation set: accuracies are reported and the last step's weights are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput, join_histories
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.data.dataset import ImageDataset
from wiseft_cli.errors import CheckpointError
from wiseft_cli.evaluation.accuracy import evaluate_image_set
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.model.classifier import ImageClassifier, load_classifier, state_arrays
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.features import compute_features, feature_batches
from wiseft_cli.training.images import load_batches
from wiseft_cli.training.modes import (
    refuse_single_image_batch_norm,
    select_trained,
    set_training_modes,
)
from wiseft_cli.training.optimization import Batches, StepReport, build_optimizer, run_steps
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.precision import (
    deterministic_algorithms,
    enable_grad_checkpointing,
    encode_in,
    logits_in,
)


@dataclass(frozen=True)
class Readiness:
    """What is known once the model stands: how much of it is trained, and where."""

    n_tensors: int
    n_parameters: int
    device: torch.device


@dataclass(frozen=True)
class EpochReport:
    """The state of a run between two epochs.

    Attributes:
        epochs_done: 0 before the first.
        mean_loss: Mean training loss over the epoch's images; None before the first.
        accuracies: One for each validation set, in the plan's order.
    """

    epochs_done: int
    mean_loss: float | None
    accuracies: tuple[SetAccuracy, ...]


@dataclass(frozen=True)
class Listener:
    """Whom to tell how a run goes; nothing that is called has a part in the result.

    Attributes:
        on_ready: Before the first image is read.
        on_encoded: With the number of images whose features were just computed
            (`freeze: encoder` only).
        on_step: After each optimizer step.
        on_epoch: Before the first epoch and after each.
    """

    on_ready: Callable[[Readiness], None] = lambda _: None
    on_encoded: Callable[[int], None] = lambda _: None
    on_step: Callable[[StepReport], None] = lambda _: None
    on_epoch: Callable[[EpochReport], None] = lambda _: None


@dataclass(frozen=True)
class Finetuned:
    """A finished run: the checkpoint's path and content digest."""

    path: Path
    digest: str


def finetune(
    plan: FinetunePlan,
    *,
    device: torch.device,
    workers: int,
    listener: Listener | None = None,
) -> Finetuned:
    """Run a plan and write the fine-tuned checkpoint.

    On the CPU the file's bytes depend on the plan, torch's version and thread count, and the
    kind of CPU; not on `workers`, validation sets or the listener. torch's global random state
    is left as it was.

    Args:
        plan: What `make_plan` settled.
        device: Where the model computes.
        workers: Processes that decode images; 0 decodes in this one.
        listener: Whom to tell how it goes.
    Raises:
        CheckpointError: The parent is not the classifier its card describes.
        DatasetError: An image cannot be read.
        RecipeError: Training diverged, or BatchNorm would see a single image.
        OutputError: The checkpoint cannot be written.
    """
    classifier, card = load_classifier(plan.parent, device=device)
    if plan.recipe.grad_checkpointing:
        enable_grad_checkpointing(classifier)
    if card != plan.card:
        raise CheckpointError(f"{plan.parent}: was changed while it was read")
    refuse_single_image_batch_norm(classifier, plan.recipe)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        deterministic_algorithms(plan.recipe.deterministic, device),
    ):
        _train(classifier, plan, device=device, workers=workers, listener=listener or Listener())
    digest = write_checkpoint(
        plan.output,
        state_arrays(classifier),
        finetuned_card(plan),
        force=plan.force,
        inputs=[plan.parent],
    )
    return Finetuned(plan.output, digest)


def finetuned_card(plan: FinetunePlan) -> Card:
    """Return the card of the plan's output: the parent's, with this run at the history's end."""
    recipe = plan.recipe.as_mapping()
    train = {"fingerprint": plan.train_fingerprint, "n_images": plan.recipe.n_images}
    entry = HistoryEntry(
        command="finetune",
        version=__version__,
        options={"recipe": recipe, "seed": plan.recipe.seed, "train": train},
        inputs=(HistoryInput(plan.card.role, plan.parent_digest),),
    )
    return replace(
        plan.card,
        role="finetuned",
        alpha=None,
        recipe=recipe,
        seed=plan.recipe.seed,
        history=(*join_histories(plan.card), entry),
        digest=None,
    )


def _train(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    *,
    device: torch.device,
    workers: int,
    listener: Listener,
) -> None:
    recipe = plan.recipe
    trained = select_trained(classifier, recipe.freeze)
    listener.on_ready(Readiness(len(trained), sum(p.numel() for p in trained), device))
    listener.on_epoch(_report(classifier, plan, 0, None, device=device, workers=workers))
    set_training_modes(classifier, freeze=recipe.freeze, batch_norm=recipe.batch_norm)
    logits_of, batches = _inputs(
        classifier, plan, device=device, workers=workers, listener=listener
    )
    optimizer = build_optimizer(trained, recipe)
    loss_sum, n_images = 0.0, 0
    for step in run_steps(logits_of, optimizer, batches, recipe, device=device):
        listener.on_step(step)
        loss_sum += step.loss * step.n_images
        n_images += step.n_images
        if step.ends_epoch:
            mean_loss = loss_sum / n_images if n_images else None
            loss_sum, n_images = 0.0, 0
            listener.on_epoch(
                _report(classifier, plan, step.epoch + 1, mean_loss, device=device, workers=workers)
            )


def _inputs(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    *,
    device: torch.device,
    workers: int,
    listener: Listener,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Batches]:
    """Return the part of the model that is run in each step, and what it is run on."""
    recipe = plan.recipe
    augment = cast(Literal["crop", "none"], recipe.augment)
    transform = train_transform(plan.card.preprocess or {}, augment=augment)
    images = ImageDataset(plan.train.images, plan.train.targets, transform)
    draws = MicroBatches(recipe)
    if recipe.freeze != "encoder":
        return logits_in(recipe.precision, classifier, device), load_batches(
            images, draws, seed=recipe.seed, workers=workers, device=device
        )
    features = compute_features(
        encode_in(recipe.precision, classifier, device),
        images,
        batch_size=recipe.micro_batch_size,
        workers=workers,
        device=device,
        on_progress=listener.on_encoded,
    )
    targets = torch.tensor(plan.train.targets, device=device)
    return classifier.classification_head, feature_batches(features, targets, draws)


def _report(
    classifier: ImageClassifier,
    plan: FinetunePlan,
    epochs_done: int,
    mean_loss: float | None,
    *,
    device: torch.device,
    workers: int,
) -> EpochReport:
    accuracies = tuple(
        evaluate_image_set(
            classifier,
            labelled.images,
            labelled.join,
            plan.card.preprocess or {},
            batch_size=plan.recipe.micro_batch_size,
            workers=workers,
            device=device,
        )
        for labelled in plan.val
    )
    return EpochReport(epochs_done, mean_loss, accuracies)
