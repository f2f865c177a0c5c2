"""One optimizer step of fine-tuning: forward, loss, backward, clipping, AdamW.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.2; wise-ft src/models/finetune.py. A
model is any function from inputs to logits here; images and files are not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from wiseft_cli.compute.precision import build_scaler
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.errors import RecipeError
from wiseft_cli.evaluation.scoring import evaluation_mode
from wiseft_cli.training.batches import (
    Purpose,
    StepSpan,
    derive_seed,
    seed_device_generators,
    span_of,
)
from wiseft_cli.training.callbacks import StepReport
from wiseft_cli.training.methods import AddedLoss, AnchoredWeights
from wiseft_cli.training.optimizer import clip_gradients, learning_rate, scale_gradients
from wiseft_cli.training.recipe import ResolvedRecipe

Logits = Callable[[torch.Tensor], Any]
"""A forward pass, from inputs (B, ...) to logits (B, C), or to `Outputs` for an added loss."""

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Inputs (B, ...) and class indices (B,) of each forward pass, on the model's device.

A pass without images has no class index. If several processes share the steps it has an input
all the same, whose logits are ignored.
"""


def run_steps(
    logits_of: Logits,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: ResolvedRecipe,
    *,
    processes: ProcessGroup = SINGLE_PROCESS,
    first_step: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    added_loss: AddedLoss | None = None,
    anchored: AnchoredWeights | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport]:
    """Take the optimizer steps of a run one by one, each when its report is requested.

    Random layers (dropout, drop path) draw from torch's global generators, which are seeded
    by (seed, step) before each step; the caller saves and restores their state.

    If images of a batch could not be read, the step's loss is the mean over the others.

    Several processes each compute their share of every step's images. The loss of a share is its
    sum over the images of the whole batch, times the number of processes, because gradients are
    averaged over them. A mean of the processes' means would give the images of an uneven last
    batch uneven weights.

    Args:
        logits_of: The model, from inputs (B, ...) to logits (B, C); from `wrap_ddp` if several
            processes share the steps.
        optimizer: Over the trainable tensors.
        batches: The forward passes in the order of `MicroBatches`, from `first_step` on.
        recipe: The resolved recipe.
        processes: The processes that share the steps.
        first_step: The first step.
        scaler: From `build_scaler`; a new one if None.
        added_loss: Loss besides cross-entropy; `logits_of` then returns `Outputs`.
        anchored: The trainable tensors with the anchors of L2-SP and SPD.
        stop: Called in each step; whether it should be the last one. All processes stop if one
            of them wants to.
    Yields:
        A report after each step.
    Raises:
        RecipeError: The loss or the gradient is not finite; the step was not taken.
    """
    passes = iter(batches)
    scaler = scaler or build_scaler(recipe.precision, processes.device)
    for step in range(first_step, recipe.steps):
        position = (step, processes.rank) if processes.rank else (step,)
        seed = derive_seed(recipe.seed, Purpose.STOCHASTIC_LAYERS, *position)
        seed_device_generators(seed, processes.device)
        forward = _Objective(logits_of, recipe, added_loss, step)
        yield _take_step(
            step, forward, optimizer, passes, recipe, processes, scaler, anchored, stop
        )


@dataclass(frozen=True)
class _Objective:
    """A forward pass, and the loss of its outputs."""

    logits_of: Logits
    recipe: ResolvedRecipe
    added_loss: AddedLoss | None
    step: int

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor, n_images: int) -> torch.Tensor:
        """Return the part of a step's mean loss that a pass has, shape ().

        Args:
            inputs: Shape (B, ...); those beyond the targets are a placeholder.
            targets: Shape (B,) or, as probabilities, (B, C).
            n_images: Number of images of the whole step.
        """
        outputs, n_targets = self.logits_of(inputs), len(targets)
        logits = outputs if self.added_loss is None else outputs.logits
        smoothing = self.recipe.label_smoothing
        loss = mean_loss_share(logits[:n_targets], targets, n_images, label_smoothing=smoothing)
        if self.added_loss is None or not n_targets:
            return loss
        return loss + self.added_loss(outputs, inputs, self.step) / n_images


def _take_step(
    step: int,
    objective: _Objective,
    optimizer: torch.optim.Optimizer,
    passes: Iterator[tuple[torch.Tensor, torch.Tensor]],
    recipe: ResolvedRecipe,
    processes: ProcessGroup,
    scaler: torch.amp.GradScaler,
    anchored: AnchoredWeights | None,
    stop: Callable[[], bool],
) -> StepReport:
    span = span_of(step, recipe)
    optimizer.zero_grad()
    loss, n_images = _accumulate_gradients(objective, passes, span, recipe, processes, scaler)
    is_stopped = stop()
    if not processes.is_single:
        total, count, requests = processes.sum([float(loss), n_images, is_stopped])
        loss = torch.tensor(total, dtype=loss.dtype, device=processes.device)
        n_images, is_stopped = int(count), requests > 0
    grad_norm = torch.zeros_like(loss)
    if n_images:
        scaler.unscale_(optimizer)
        if n_images < span.n_images:  # the loss was divided by the number of images planned
            loss *= span.n_images / n_images
            scale_gradients(optimizer, span.n_images / n_images)
        if anchored:
            anchored.add_gradients()
        grad_norm = clip_gradients(optimizer, recipe.clip_grad_norm)
    # One transfer for both numbers; on a GPU it waits for the backward pass.
    mean_loss, norm = torch.stack([loss, grad_norm]).tolist()
    overflows = scaler.is_enabled() and math.isfinite(mean_loss) and not math.isfinite(norm)
    if not (overflows and scaler.get_scale() >= 1):
        _reject_divergence(mean_loss, norm, step, recipe)
    lr = learning_rate(step, recipe)
    if n_images:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if anchored:
            anchored.before_update()
        scaler.step(optimizer)  # skips the update if gradients overflow
        scaler.update()
        if anchored:
            anchored.after_update()
    return StepReport(
        step=step,
        epoch=span.epoch,
        ends_epoch=span.stop == recipe.n_images or step + 1 == recipe.steps,
        n_images=n_images,
        n_missing=span.n_images - n_images,
        loss=mean_loss,
        grad_norm=norm,
        lr=lr,
        is_skipped=overflows or not n_images,
        is_stopped=is_stopped,
    )


def _accumulate_gradients(
    objective: _Objective,
    passes: Iterator[tuple[torch.Tensor, torch.Tensor]],
    span: StepSpan,
    recipe: ResolvedRecipe,
    processes: ProcessGroup,
    scaler: torch.amp.GradScaler,
) -> tuple[torch.Tensor, int]:
    """Run the passes of this process's share; return its loss () and its readable images."""
    losses, n_images = [torch.zeros((), device=processes.device)], 0
    share = span.share(processes.rank, processes.world_size).micro_batches
    for number, _ in enumerate(share, 1):
        inputs, targets = next(passes)
        # Gradients are exchanged in the last pass, so every process runs it, image or not.
        is_exchange = not processes.is_single and number == len(share)
        if not len(targets) and not is_exchange:
            continue
        with gradient_exchange(objective.logits_of, enabled=is_exchange):
            loss = objective.loss(inputs, targets, span.n_images)
            scaler.scale(loss * processes.world_size).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        n_images += len(targets)
    return torch.stack(losses[1:] or losses).sum(), n_images


def mean_loss_share(
    logits: torch.Tensor, targets: torch.Tensor, n_images: int, *, label_smoothing: float
) -> torch.Tensor:
    """Return these images' part of a step's mean cross-entropy.

    The sum over the images is divided by the number of images of the whole step. The parts of a
    step's forward passes and processes add up to the mean, however the step is divided.

    Args:
        logits: Shape (B, C).
        targets: Class indices, int64, shape (B,), or probabilities (B, C).
        n_images: Number of images of the whole step.
        label_smoothing: Part of the target that is spread evenly over the classes.
    """
    total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return total / n_images


def _reject_divergence(loss: float, grad_norm: float, step: int, recipe: ResolvedRecipe) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    epoch = step // recipe.steps_per_epoch
    raise RecipeError(
        f"training diverged at step {step + 1} of {recipe.steps} (epoch {epoch + 1}):"
        f" loss {loss}, gradient norm {grad_norm}, expected both finite; no checkpoint was written",
        hint=f"lower --lr (now {recipe.lr:g}) or lengthen --warmup (now {recipe.warmup} steps)",
    )


def wrap_ddp(
    processes: ProcessGroup, module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
) -> Logits:
    """Return a forward pass whose backward pass averages gradients over all processes.

    All processes get the weights of process 0. BatchNorm layers use the statistics of their own
    process's images, and the running statistics of process 0 are kept.

    Args:
        module: Holds the parameters.
        logits_of: From inputs (B, ...) to logits (B, C), computed with the module.
        example: An input (1, ...); a pass over it shows which parameters are unused.
    """
    if processes.is_single:
        return logits_of
    return DistributedDataParallel(
        _Forward(module, logits_of),
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Searching for unused parameters walks over the graph in each step.
        find_unused_parameters=_has_unused_parameters(module, logits_of, example),
    )


class _Forward(torch.nn.Module):
    """A module with a forward pass other than its own, for example one under autocast."""

    def __init__(self, module: torch.nn.Module, logits_of: Logits) -> None:
        super().__init__()
        self.module = module
        self._logits_of = logits_of

    def forward(self, inputs: torch.Tensor) -> Any:
        return self._logits_of(inputs)


def _has_unused_parameters(
    module: torch.nn.Module, logits_of: Logits, example: torch.Tensor
) -> bool:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with evaluation_mode(module):
        outputs = logits_of(example)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def gradient_exchange(model: Any, *, enabled: bool) -> AbstractContextManager[Any]:
    """Return a context in which backward passes average gradients only if `enabled`.

    Args:
        model: From `wrap_ddp`; a model that is not wrapped never exchanges gradients.
        enabled: Whether this is the last pass of a step.
    """
    if enabled or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[Any] = model.no_sync()
    return context
