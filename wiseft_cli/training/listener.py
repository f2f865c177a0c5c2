"""What a run tells while it goes, and to whom; nothing of it has a part in the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.training.optimization import StepReport


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
        on_note: With a sentence on what a person may want to know.
        on_warning: With a sentence on what went wrong, though the run goes on.
    """

    on_ready: Callable[[Readiness], None] = lambda _: None
    on_encoded: Callable[[int], None] = lambda _: None
    on_step: Callable[[StepReport], None] = lambda _: None
    on_epoch: Callable[[EpochReport], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    on_warning: Callable[[str], None] = lambda _: None
