"""What `wiseft finetune` says while it runs: the plan, the bar, a line an epoch.

It computes nothing of the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from wiseft_cli.cli.console import Advance, print_message, warn
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.training_data import LabelledSet

if TYPE_CHECKING:
    from wiseft_cli.evaluation.metrics import SetAccuracy
    from wiseft_cli.training.listener import EpochReport, Readiness
    from wiseft_cli.training.optimization import StepReport
    from wiseft_cli.training.starting import Start

RECENT_STEPS = 20
"""Steps over which images per second are averaged."""

SHOWN_CLASSES = 10
"""Classes whose number of images the plan shows."""

_SCHEDULES = {"cosine": "to 0 by cosine", "constant": "constant"}
_TRAINED = {
    "none": "image encoder and classification head",
    "encoder": "classification head (encoder frozen, features computed once)",
    "head": "image encoder (classification head frozen)",
}


def tell_plan(plan: FinetunePlan, *, n_processes: int = 1) -> None:
    """Print what is about to be trained, on what and for how long, and every doubt about it."""
    recipe = plan.recipe
    model = plan.card.model.name if plan.card.model else "?"
    print_message(f"model    {model}, {len(plan.card.classes)} classes, from {plan.parent}")
    print_message(f"train    {_describe_set(plan.train)}")
    print_message(f"classes  {_describe_classes(plan)}")
    for labelled in plan.val:
        print_message(f"val      {_describe_set(labelled)}")
    length = f"= {recipe.epochs} epochs x {recipe.steps_per_epoch}"
    if recipe.steps % recipe.steps_per_epoch:
        length = f"of {recipe.steps_per_epoch} an epoch"
    parts = _describe_parts(recipe.batch_size, recipe.micro_batch_size, n_processes)
    print_message(
        f"steps    {recipe.steps} {length},"
        f" batch size {recipe.batch_size}{parts}, warm-up {recipe.warmup_steps}"
    )
    print_message(
        f"recipe   AdamW, lr {recipe.lr:g} {_SCHEDULES[recipe.schedule]},"
        f" weight decay {recipe.weight_decay:g}, clip {recipe.clip_grad_norm:g},"
        f" label smoothing {recipe.label_smoothing:g},"
        f" augment {recipe.augment}, batch norm {recipe.batch_norm}, seed {recipe.seed}"
    )
    for note in plan.notes:
        print_message(f"note: {note}")
    for warning in plan.warnings:
        warn(warning)


def _describe_classes(plan: FinetunePlan) -> str:
    """Say how many images each class has; of many classes, those with the fewest and the most."""
    counts = plan.train.images_per_class
    names = [entry.name for entry in plan.card.classes]
    if len(names) <= SHOWN_CLASSES:
        return ", ".join(f"{name} {counts[at]}" for at, name in enumerate(names))
    ordered = sorted(range(len(names)), key=lambda at: (counts[at], at))
    shown = SHOWN_CLASSES // 2

    def join(indices: list[int]) -> str:
        return ", ".join(f"{names[at]} {counts[at]}" for at in indices)

    return f"fewest images: {join(ordered[:shown])}; most: {join(ordered[: -shown - 1 : -1])}"


def _describe_parts(batch_size: int, micro_batch_size: int, n_processes: int) -> str:
    """Say how a batch is divided: among processes, and into forward passes of each."""
    share = -(-batch_size // n_processes)
    passes = -(-share // micro_batch_size)
    parts = [f"{n_processes} processes x {share}"] if n_processes > 1 else []
    if passes > 1:
        parts.append(f"{passes} passes of {micro_batch_size}")
    return f" ({', '.join(parts)})" if parts else ""


def _describe_set(labelled: LabelledSet) -> str:
    counts = labelled.images_per_class.values()
    spread = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"
    return (
        f"{labelled.images.name}: {len(labelled.images.records)} images of {len(counts)} classes"
        f" (joined by {labelled.join.kind}), {spread} a class"
    )


class Reporter:
    """Follows a run on stderr.

    Args:
        plan: The run.
        advance: Moves the bar, which counts images.
        on_warning: Told each warning.
    """

    def __init__(
        self, plan: FinetunePlan, advance: Advance, *, on_warning: Callable[[str], None] = warn
    ) -> None:
        self._plan = plan
        self._advance = advance
        self._on_warning = on_warning
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)

    def tell_start(self, start: Start) -> None:
        """Say at which step the run begins, and move the bar there."""
        for warning in start.warnings:
            self._on_warning(warning)
        if start.state is None:
            return
        steps_done = start.state.record.steps_done
        print_message(f"resume   after step {steps_done}, from {start.state.path}")
        recipe = self._plan.recipe
        epochs, steps = divmod(steps_done, recipe.steps_per_epoch)
        n_images = epochs * recipe.n_images + min(steps * recipe.batch_size, recipe.n_images)
        self._advance(n_images, note=f"after step {steps_done}")

    def tell_readiness(self, ready: Readiness) -> None:
        """Say what trains, where, and in which precision."""
        precision = _describe_precision(ready, self._plan.recipe.precision)
        if self._plan.recipe.precision == "fp16" and ready.device.type == "cpu":
            self._on_warning("fp16 is made for GPUs; on a CPU bf16 or fp32 is faster")
        print_message(
            f"trains   {_TRAINED[self._plan.recipe.freeze]}: {ready.n_parameters:,} parameters"
            f" in {ready.n_tensors} tensors, on {ready.device}, {precision}"
        )

    def count_encoded(self, n_images: int) -> None:
        """Count images whose features were computed."""
        self._advance(n_images, note="computing features")

    def count_step(self, step: StepReport) -> None:
        """Move the bar by one optimizer step."""
        now = time.monotonic()
        note = (
            f"epoch {step.epoch + 1}/{self._plan.recipe.epochs}"
            f"  loss {step.loss:.4f}  lr {step.lr:.2e}"
        )
        if self._recent:
            seconds = now - self._recent[0][0]
            images = sum(count for _, count in self._recent) - self._recent[0][1] + step.n_images
            note += f"  {images / max(seconds, 1e-9):,.0f} images/s"
        self._recent.append((now, step.n_images))
        self._advance(step.n_images, note=note)

    def tell_epoch(self, report: EpochReport) -> None:
        """Print the epoch's loss and the accuracies."""
        parts = [] if report.mean_loss is None else [f"loss {report.mean_loss:.4f}"]
        parts += [
            f"{labelled.images.name} {_describe_accuracy(accuracy)}"
            for labelled, accuracy in zip(self._plan.val, report.accuracies, strict=True)
        ]
        if parts:
            when = f"epoch {report.epochs_done}/{self._plan.recipe.epochs}"
            print_message(f"{when if report.epochs_done else 'before'}: {', '.join(parts)}")
        # The time of an evaluation is not the time of a step.
        self._recent.clear()


def _describe_accuracy(accuracy: SetAccuracy) -> str:
    return f"{100 * accuracy.top1:.2f} % ({accuracy.n_correct['top1']}/{accuracy.n_images})"


def _describe_precision(ready: Readiness, precision: str) -> str:
    text = "float32" if precision == "fp32" else f"encoder in {precision}, weights float32"
    if ready.device.type != "cuda":
        return text
    # lazy: loaded by now, but this module must not cost a second where --help is asked for
    import torch

    matmul = "off" if torch.get_float32_matmul_precision() == "highest" else "on"
    convolution = "on" if torch.backends.cudnn.allow_tf32 else "off"
    return f"{text} (TF32 {matmul} in matrix products, {convolution} in convolutions)"
