"""Callbacks that report the progress of a run, and the reports that they get.

They have no influence on the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from wiseft_cli.evaluation.metrics import SetAccuracy


@dataclass(frozen=True)
class StartReport:
    """The trainable parameters of a run, and their device."""

    n_tensors: int
    n_parameters: int
    device: torch.device


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer step.

    Attributes:
        step: From 0.
        epoch: From 0.
        ends_epoch: Whether it was the last step of its epoch.
        n_images: Readable images of the step.
        n_missing: Images of the step that could not be read.
        loss: Mean cross-entropy over the readable images, before the update; 0 if there are none.
        grad_norm: Global norm of the gradient, before clipping.
        lr: Learning rate of the update.
        is_skipped: Whether there was no update: fp16 gradients overflowed, or no image was
            readable.
        is_stopped: Whether the run was asked to end with this step.
    """

    step: int
    epoch: int
    ends_epoch: bool
    n_images: int
    n_missing: int
    loss: float
    grad_norm: float
    lr: float
    is_skipped: bool
    is_stopped: bool


@dataclass(frozen=True)
class EpochReport:
    """The state of a run between two epochs.

    Attributes:
        epochs_done: 0 before the first epoch.
        mean_loss: Mean training loss over the epoch's images; None before the first epoch.
        accuracies: One for each validation set, in the plan's order.
    """

    epochs_done: int
    mean_loss: float | None
    accuracies: tuple[SetAccuracy, ...]


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls.

    Attributes:
        on_start: Called when the model is loaded, before the first image is read.
        on_encoded: Called with the number of images whose features were just computed
            (`freeze: encoder` only).
        on_step: Called after each optimizer step.
        on_epoch: Called before the first epoch and after each epoch.
        on_note: Called with a sentence of information.
        on_warning: Called with a sentence about a problem that does not end the run.
    """

    on_start: Callable[[StartReport], None] = lambda _: None
    on_encoded: Callable[[int], None] = lambda _: None
    on_step: Callable[[StepReport], None] = lambda _: None
    on_epoch: Callable[[EpochReport], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    on_warning: Callable[[str], None] = lambda _: None
