"""One optimizer step of fine-tuning: forward, cross-entropy, backward, clip, AdamW.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.2; wise-ft src/models/finetune.py. It
knows neither images nor files: a model is anything that turns inputs into logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from wiseft_cli.compute.precision import build_scaler
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.errors import RecipeError
from wiseft_cli.training.batches import StepSpan, span_of
from wiseft_cli.training.ddp import gradient_exchange
from wiseft_cli.training.recipe import ResolvedRecipe
from wiseft_cli.training.schedule import learning_rate
from wiseft_cli.training.seeding import Purpose, derive_seed, seed_device_generators

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Inputs (B, ...) and class indices (B,) of each forward pass, on the model's device.

A pass without an image has no class index; where several processes share the steps it has an
input nevertheless, whose logits do not count.
"""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        step: From 0.
        epoch: From 0.
        ends_epoch: Whether it was the last one of its epoch.
        n_images: Images of the step that could be read.
        loss: Mean cross-entropy over them, before the update; 0 where there was none.
        grad_norm: Global norm of the gradient, before clipping.
        lr: Learning rate of the update.
        skipped: Whether no update was made: fp16 gradients overflowed, or no image was readable.
        is_stopped: Whether somebody wants the run to end with this step.
    """

    step: int
    epoch: int
    ends_epoch: bool
    n_images: int
    loss: float
    grad_norm: float
    lr: float
    skipped: bool = False
    is_stopped: bool = False


def build_optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: ResolvedRecipe
) -> torch.optim.AdamW:
    """Return AdamW over all trained tensors in one group: weight decay spares none of them.

    One pass over a tensor's memory makes its update where torch has that (CPU and CUDA): on a CPU
    a third of the time of its default, the same numbers to rounding.
    """
    return torch.optim.AdamW(
        parameters,
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters),
    )


def run_steps(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: ResolvedRecipe,
    *,
    device: torch.device,
    first_step: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_missing: Callable[[], None] = lambda: None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[StepReport]:
    """Take the optimizer steps of a run one by one, as the reports are asked for.

    Random layers (dropout, drop path) draw from torch's global generators, which are seeded
    by (seed, step) before each step; the caller keeps and restores their state.

    A batch with fewer images than its place in the epoch (some could not be read) counts for
    those it has: the step's loss is the mean over the images that are there.

    Several processes each compute their share of every step's images. The loss of a share is its
    sum over the images of the whole batch, times the processes, over which gradients are averaged:
    a mean of each process's mean would give the images of an uneven last batch uneven weights.

    Args:
        logits_of: The model, from inputs (B, ...) to logits (B, C).
        optimizer: Over the trained tensors.
        batches: The forward passes in the order of `MicroBatches`, from `first_step` on.
        recipe: The resolved recipe.
        device: Where the model computes.
        first_step: The step to begin with.
        scaler: From `build_scaler`; a new one where None.
        stop: Asked in each step whether it is to be the last one; one process's wish is enough.
        on_missing: Called, by all processes, in a step some of whose images could not be read.
        processes: Those that share the steps; `logits_of` comes from `wrap_ddp`.
    Yields:
        A report after each step.
    Raises:
        RecipeError: The loss or the gradient is not finite; the step was not taken.
    """
    passes = iter(batches)
    scaler = scaler or build_scaler(recipe.precision, device)
    for step in range(first_step, recipe.steps):
        span = span_of(step, recipe)
        lr = learning_rate(
            step,
            peak_lr=recipe.lr,
            warmup_steps=recipe.warmup_steps,
            steps=recipe.steps,
            schedule=recipe.schedule,
        )
        place = (step, processes.rank) if processes.rank else (step,)
        seed_device_generators(derive_seed(recipe.seed, Purpose.STOCHASTIC_LAYERS, *place), device)
        sums = _sum_gradients(
            logits_of,
            optimizer,
            passes,
            span=span,
            recipe=recipe,
            scaler=scaler,
            device=device,
            wants_stop=stop,
            on_missing=on_missing,
            processes=processes,
        )
        # One transfer for both numbers; on a GPU it waits for the backward pass.
        loss, grad_norm = torch.stack([sums.loss, sums.grad_norm]).tolist()
        overflow = scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(grad_norm)
        _refuse_divergence(
            loss, 0.0 if overflow and scaler.get_scale() >= 1 else grad_norm, step, recipe
        )
        if sums.n_images:
            for group in optimizer.param_groups:
                group["lr"] = lr
            scaler.step(optimizer)  # leaves an overflow out
            scaler.update()
        yield StepReport(
            step=step,
            epoch=span.epoch,
            ends_epoch=span.stop == recipe.n_images or step + 1 == recipe.steps,
            n_images=sums.n_images,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            skipped=overflow or not sums.n_images,
            is_stopped=sums.is_stopped,
        )


class _Sums(NamedTuple):
    """A step's mean loss () and gradient norm (), the images behind them, and a wish to stop."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    n_images: int
    is_stopped: bool


def _sum_gradients(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    passes: Iterator[tuple[torch.Tensor, torch.Tensor]],
    *,
    span: StepSpan,
    recipe: ResolvedRecipe,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    wants_stop: Callable[[], bool],
    on_missing: Callable[[], None],
    processes: ProcessGroup,
) -> _Sums:
    """Leave the step's clipped gradient in place, and return what it was made of."""
    optimizer.zero_grad()
    losses, n_images = [torch.zeros((), device=device)], 0
    share = span.share(processes.rank, processes.world_size).micro_batches
    for number, _ in enumerate(share, 1):
        inputs, targets = next(passes)
        # The last pass is where gradients are exchanged: each process runs it, image or not.
        is_exchange = processes.world_size > 1 and number == len(share)
        if not len(targets) and not is_exchange:
            continue
        with gradient_exchange(logits_of, enabled=is_exchange):
            loss = mean_loss_share(
                logits_of(inputs)[: len(targets)],
                targets,
                span.n_images,
                label_smoothing=recipe.label_smoothing,
            )
            scaler.scale(loss * processes.world_size).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        n_images += len(targets)
    mean_loss, is_stopped = torch.stack(losses[1:] or losses).sum(), wants_stop()
    if processes.world_size > 1:
        total, count, wishes = processes.sum([float(mean_loss), n_images, is_stopped])
        mean_loss = torch.tensor(total, dtype=mean_loss.dtype, device=device)
        n_images, is_stopped = int(count), wishes > 0
    if n_images < span.n_images:
        on_missing()
    if not n_images:
        return _Sums(mean_loss, torch.zeros_like(mean_loss), 0, is_stopped)
    scaler.unscale_(optimizer)
    if n_images < span.n_images:
        # Each share was divided by the images of the batch as planned.
        factor = span.n_images / n_images
        mean_loss *= factor
        _scale_gradients(optimizer, factor)
    grad_norm = clip_gradients(optimizer, recipe.clip_grad_norm)
    return _Sums(mean_loss, grad_norm, n_images, is_stopped)


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
    return torch.nn.utils.clip_grad_norm_(_parameters(optimizer), bound or math.inf)


def _scale_gradients(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for parameter in _parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad *= factor


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _refuse_divergence(loss: float, grad_norm: float, step: int, recipe: ResolvedRecipe) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    epoch = step // recipe.steps_per_epoch
    raise RecipeError(
        f"training diverged at step {step + 1} of {recipe.steps} (epoch {epoch + 1}):"
        f" loss {loss}, gradient norm {grad_norm}, expected both finite; no checkpoint was written",
        hint=f"lower --lr (now {recipe.lr:g}) or lengthen --warmup"
        f" (now {recipe.warmup_steps} steps)",
    )
