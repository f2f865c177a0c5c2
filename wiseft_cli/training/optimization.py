"""One optimizer step of fine-tuning: forward, cross-entropy, backward, clip, AdamW.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.2; wise-ft src/models/finetune.py. It
knows neither images nor files: a model is anything that turns inputs into logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from wiseft_cli.errors import RecipeError
from wiseft_cli.training.batches import StepSpan, span_of
from wiseft_cli.training.recipe import ResolvedRecipe
from wiseft_cli.training.schedule import learning_rate
from wiseft_cli.training.seeding import Purpose, derive_seed, seed_device_generators

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Inputs (B, ...) and class indices (B,) of each forward pass, on the model's device."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        step: From 0.
        epoch: From 0.
        ends_epoch: Whether it was the last one of its epoch.
        n_images: Images of the step.
        loss: Mean cross-entropy over them, before the update.
        grad_norm: Global norm of the gradient, before clipping.
        lr: Learning rate of the update.
    """

    step: int
    epoch: int
    ends_epoch: bool
    n_images: int
    loss: float
    grad_norm: float
    lr: float


def build_optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: ResolvedRecipe
) -> torch.optim.AdamW:
    """Return AdamW over all trained tensors in one group: weight decay spares none of them."""
    return torch.optim.AdamW(
        parameters,
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )


def run_steps(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: ResolvedRecipe,
    *,
    device: torch.device,
    first_step: int = 0,
) -> Iterator[StepReport]:
    """Take the optimizer steps of a run one by one, as the reports are asked for.

    Random layers (dropout, drop path) draw from torch's global generators, which are seeded
    by (seed, step) before each step; the caller keeps and restores their state.

    Args:
        logits_of: The model, from inputs (B, ...) to logits (B, C).
        optimizer: Over the trained tensors.
        batches: The forward passes in the order of `MicroBatches`, from `first_step` on.
        recipe: The resolved recipe.
        device: Where the model computes.
        first_step: The step to begin with.
    Yields:
        A report after each step.
    Raises:
        RecipeError: The loss or the gradient is not finite; the step was not taken.
    """
    passes = iter(batches)
    for step in range(first_step, recipe.steps):
        span = span_of(step, recipe)
        lr = learning_rate(
            step, peak_lr=recipe.lr, warmup_steps=recipe.warmup_steps, steps=recipe.steps
        )
        seed_device_generators(derive_seed(recipe.seed, Purpose.STOCHASTIC_LAYERS, step), device)
        loss, grad_norm = _sum_gradients(logits_of, optimizer, passes, span, recipe)
        # One transfer for both numbers; on a GPU it waits for the backward pass.
        loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()
        _refuse_divergence(loss_value, norm_value, step, span.epoch, recipe)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        yield StepReport(
            step=step,
            epoch=span.epoch,
            ends_epoch=span.stop == recipe.n_images,
            n_images=span.n_images,
            loss=loss_value,
            grad_norm=norm_value,
            lr=lr,
        )


def _sum_gradients(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    passes: Iterator[tuple[torch.Tensor, torch.Tensor]],
    span: StepSpan,
    recipe: ResolvedRecipe,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave the step's clipped gradient in place; return its mean loss and gradient norm, ()."""
    optimizer.zero_grad()
    losses = []
    for _ in span.micro_batches:
        inputs, targets = next(passes)
        loss = mean_loss_share(
            logits_of(inputs), targets, span.n_images, label_smoothing=recipe.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        losses.append(loss.detach())
    return torch.stack(losses).sum(), clip_gradients(optimizer, recipe.clip_grad_norm)


def mean_loss_share(
    logits: torch.Tensor, targets: torch.Tensor, n_images: int, *, label_smoothing: float
) -> torch.Tensor:
    """Return the part of a step's mean cross-entropy that these images make up.

    The sum over the images, divided by the images of the whole step: added up over the forward
    passes (or processes) of a step it is the mean, however unevenly they are divided.

    Args:
        logits: Shape (B, C).
        targets: Class indices, int64, shape (B,).
        n_images: Images of the whole step.
        label_smoothing: Share of the target that is spread evenly over the classes.
    """
    total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return total / n_images


def clip_gradients(optimizer: torch.optim.Optimizer, bound: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `bound` (0: leave them).

    Returns:
        The norm before, shape ().
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, bound or math.inf)


def _refuse_divergence(
    loss: float, grad_norm: float, step: int, epoch: int, recipe: ResolvedRecipe
) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    raise RecipeError(
        f"training diverged at step {step + 1} of {recipe.steps} (epoch {epoch + 1}):"
        f" loss {loss}, gradient norm {grad_norm}, expected both finite; nothing was written",
        hint=f"lower --lr (now {recipe.lr:g}) or lengthen --warmup"
        f" (now {recipe.warmup_steps} steps)",
    )
