"""Fine-tune a zero-shot classifier on labelled images, from one checkpoint file to another.

Source: Wortsman et al. 2021, arXiv 2109.01903, sections 3 and D.2. Checks that need no weights
are `plan.py`, the loop is `loop.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import CheckpointError
from wiseft_cli.model.classifier import load_classifier, state_arrays
from wiseft_cli.training.finetuned_card import finetuned_card
from wiseft_cli.training.listener import Listener
from wiseft_cli.training.loop import train
from wiseft_cli.training.modes import refuse_single_image_batch_norm
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.precision import deterministic_algorithms, enable_grad_checkpointing


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
        train(classifier, plan, device=device, workers=workers, listener=listener or Listener())
    digest = write_checkpoint(
        plan.output,
        state_arrays(classifier),
        finetuned_card(plan),
        force=plan.force,
        inputs=[plan.parent],
    )
    return Finetuned(plan.output, digest)
