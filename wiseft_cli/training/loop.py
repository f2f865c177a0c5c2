"""The loop of a run: step after step, and the validation sets between epochs.

Nothing here chooses by a validation set: accuracies are reported, and training goes on. The
arithmetic of a step is `optimization.py`.
"""

from __future__ import annotations

import torch

from wiseft_cli.evaluation.accuracy import evaluate_image_set
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.inputs import open_inputs
from wiseft_cli.training.listener import EpochReport, Listener, Readiness
from wiseft_cli.training.modes import select_trained, set_training_modes
from wiseft_cli.training.optimization import build_optimizer, run_steps
from wiseft_cli.training.plan import FinetunePlan


def train(
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
    logits_of, batches = open_inputs(
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
