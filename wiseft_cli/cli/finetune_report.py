"""Messages of `wiseft finetune`: the plan, the progress, a line per epoch, the estimate."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wiseft_cli.cli.console import Advance, print_json, print_message, progress, warn
from wiseft_cli.cli.finetune_log import RunLog
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.errors import ModelError, counted
from wiseft_cli.training.callbacks import Callbacks, EpochReport, StartReport, StepReport
from wiseft_cli.training.plan import FinetunePlan, LabelledSet
from wiseft_cli.training.recipe import RECIPE_KEYS
from wiseft_cli.training.recipe_keys import describe_value

if TYPE_CHECKING:
    import torch

    from wiseft_cli.data.images import DecodedSample
    from wiseft_cli.evaluation.metrics import SetAccuracy
    from wiseft_cli.training.estimate import Estimate
    from wiseft_cli.training.finetune import Stopped
    from wiseft_cli.training.saving import SaveInterval

RECENT_STEPS = 20
"""Steps over which images per second are averaged."""

SHOWN_CLASSES = 10
"""Classes whose number of images the plan shows."""

_OPTIMIZERS = {"adamw": "AdamW", "lion": "Lion"}

_TRAINABLE = {
    "none": "image encoder and classification head",
    "encoder": "classification head (encoder frozen, features computed once)",
    "head": "image encoder (classification head frozen)",
}


def print_plan(plan: FinetunePlan, *, n_processes: int = 1) -> None:
    """Print the model, the data, the recipe, and notes and warnings about them."""
    if plan.start.digest:
        print_message(f"{plan.output}: this run has written it already")
        return
    recipe = plan.recipe
    model = plan.card.model.name if plan.card.model else "?"
    print_message(f"model    {model}, {len(plan.card.classes)} classes, from {plan.parent}")
    print_message(f"train    {_describe_set(plan.train)}")
    print_message(f"classes  {_describe_classes(plan)}")
    for labelled in plan.val:
        print_message(f"val      {_describe_set(labelled)}")
    length = f"= {counted(recipe.epochs, 'epoch')} x {recipe.steps_per_epoch}"
    if recipe.steps % recipe.steps_per_epoch:
        length = f"with {recipe.steps_per_epoch} per epoch"
    parts = _describe_parts(recipe.batch_size, recipe.micro_batch_size, n_processes)
    print_message(
        f"steps    {recipe.steps} {length},"
        f" batch size {recipe.batch_size}{parts}, warm-up {recipe.warmup}"
    )
    keys = [key for key, row in RECIPE_KEYS.items() if row.in_plan or key in recipe.methods]
    values = [f"{key.replace('_', ' ')} {describe_value(getattr(recipe, key))}" for key in keys]
    print_message(f"recipe   {_OPTIMIZERS[recipe.optimizer]}, {', '.join(values)}")
    for note in plan.notes:
        print_message(f"note: {note}")
    for warning in plan.warnings:
        warn(warning)


def _describe_classes(plan: FinetunePlan) -> str:
    """Return the images per class; of many classes, those with the fewest and the most."""
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
    """Return how a batch is divided among processes, and into forward passes of each."""
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
        f" (joined by {labelled.join.kind}), {spread} per class"
    )


class Reporter:
    """Prints and logs the progress of a run.

    Args:
        plan: The run.
        advance: Moves the bar, which counts images.
        log: The log of the run.
    """

    def __init__(self, plan: FinetunePlan, advance: Advance, log: RunLog) -> None:
        self._plan = plan
        self._advance = advance
        self._log = log
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)

    @property
    def callbacks(self) -> Callbacks:
        """The callbacks for the run."""
        return Callbacks(
            on_start=self.report_start,
            on_encoded=self.count_encoded,
            on_step=self.report_step,
            on_epoch=self.report_epoch,
            on_note=print_message,
            on_warning=self.report_warning,
        )

    def print_resume(self) -> None:
        """Print the step from which the run resumes, and move the bar there."""
        state = self._plan.start.state
        if state is not None:
            steps_done = state.record.steps_done
            print_message(f"resume   after step {steps_done}, from {state.path}")
            n_images = self._plan.recipe.images_drawn(steps_done)
            self._advance(n_images, note=f"after step {steps_done}")

    def report_start(self, report: StartReport) -> None:
        """Print the trainable parameters, the device and the precision."""
        precision = _describe_precision(report.device, self._plan.recipe.precision)
        print_message(
            f"trains   {_TRAINABLE[self._plan.recipe.freeze]}: {report.n_parameters:,} parameters"
            f" in {report.n_tensors} tensors, on {report.device}, {precision}"
        )

    def count_encoded(self, n_images: int) -> None:
        """Count images whose features were computed."""
        self._advance(n_images, note="computing features")

    def report_step(self, step: StepReport) -> None:
        """Move the bar by one optimizer step, and log the step."""
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
        self._log.log_step(step)

    def report_epoch(self, report: EpochReport) -> None:
        """Print and log the epoch's loss and accuracies."""
        parts = [] if report.mean_loss is None else [f"loss {report.mean_loss:.4f}"]
        parts += [
            f"{labelled.images.name} {_describe_accuracy(accuracy)}"
            for labelled, accuracy in zip(self._plan.val, report.accuracies, strict=True)
        ]
        if parts:
            when = f"epoch {report.epochs_done}/{self._plan.recipe.epochs}"
            print_message(f"{when if report.epochs_done else 'before'}: {', '.join(parts)}")
        self._recent.clear()  # the time of an evaluation is not the time of a step
        self._log.log_epoch(report)

    def report_warning(self, text: str) -> None:
        """Print and log a warning."""
        warn(text)
        self._log.log_warning(text)

    def print_stop(self, stopped: Stopped) -> None:
        """Print how to continue a run that was stopped."""
        print_message(f"stopped after step {stopped.steps_done} of {self._plan.recipe.steps}")
        if stopped.state is None:
            print_message("no state was saved: --resume would start at the first step")
        else:
            print_message(
                f"the state is {stopped.state}; to continue, add --resume to the same command"
            )


def _describe_accuracy(accuracy: SetAccuracy) -> str:
    return f"{100 * accuracy.top1:.2f} % ({accuracy.n_correct['top1']}/{accuracy.n_images})"


def _describe_precision(device: torch.device, precision: str) -> str:
    text = "float32" if precision == "fp32" else f"encoder in {precision}, weights float32"
    if device.type != "cuda":
        return text
    # lazy: torch takes seconds, which --help does not need
    import torch

    matmul = "off" if torch.get_float32_matmul_precision() == "highest" else "on"
    convolution = "on" if torch.backends.cudnn.allow_tf32 else "off"
    return f"{text} (TF32 {matmul} in matrix products, {convolution} in convolutions)"


def note_idle_gpus(wanted: str, device: torch.device, launch: Launch) -> None:
    """Print how to use all GPUs of a machine, if a run uses one of several.

    Nothing is printed if the option names a GPU by its number: the choice is deliberate, and
    torchrun would reject the option.
    """
    # lazy: as above
    import torch

    n_devices = torch.cuda.device_count() if device.type == "cuda" else 0
    if launch.world_size == 1 and n_devices > 1 and ":" not in wanted:
        words = shlex.join(sys.argv[1:])
        print_message(
            f"note: this machine has {n_devices} GPUs and this run uses one; to use all of them:"
            f" torchrun --nproc-per-node {n_devices} -m wiseft_cli {words}"
        )


def print_sample(sample: DecodedSample) -> None:
    """Print how many images of a set were decoded."""
    print_message(f"decoded  {sample.n_decoded} of {sample.n_images} images of {sample.name}")


def print_estimate(
    plan: FinetunePlan, found: Estimate, sample: DecodedSample, *, workers: int
) -> None:
    """Print the memory, time and disk space that a run would need.

    Args:
        sample: Decoded training images.
        workers: Processes that decode images.
    """
    free = found.memory_free
    known = f"{_mb(free)} are free" if free is not None else "how much it has is not known here"
    print_message(
        f"memory   about {_describe_memory(found)}, per process on {found.device}; {known}"
    )
    print_message(f"time     {_describe_time(plan, found, sample, workers)}")
    print_message(
        f"disk     about {_mb(found.disk)} ({_describe_disk(found)}); {_mb(found.disk_free)} are"
        " free"
    )


def _describe_time(plan: FinetunePlan, found: Estimate, sample: DecodedSample, workers: int) -> str:
    """Return the time of decoding and of the steps; they overlap if there are workers."""
    recipe = plan.recipe
    is_probe = recipe.freeze == "encoder"
    n_images = recipe.n_images if is_probe else recipe.images_drawn(recipe.steps)
    decoding = sample.seconds / max(sample.n_decoded, 1) * n_images / max(workers, 1)
    parts = [
        f"decoding {n_images:,} images about {_duration(decoding)} with {workers or 'no'} workers"
    ]
    if found.seconds_per_image is not None:
        parts.append(f"steps about {_duration(found.seconds_per_image * n_images)}")
    else:
        parts.append(f"the time of the steps on {found.device} is not known here")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate_document(
    plan: FinetunePlan, found: Estimate, warnings: Sequence[str]
) -> dict[str, Any]:
    """Return an estimate as the JSON document of `--dry-run --json`."""
    return {
        "dry_run": True,
        "path": str(plan.output),
        "steps": plan.recipe.steps,
        "device": str(found.device),
        "memory_bytes": found.memory,
        "memory_free_bytes": found.memory_free,
        "disk_bytes": found.disk,
        "disk_free_bytes": found.disk_free,
        "warnings": [*plan.warnings, *warnings],
    }


def _describe_memory(found: Estimate) -> str:
    parts = [
        f"weights {_mb(found.weights)}",
        f"gradients {_mb(found.gradients)}",
        f"moments {_mb(found.moments)}",
    ]
    if found.copies:
        parts.append(f"copies for methods {_mb(found.copies)}")
    if found.features:
        parts.append(f"features {_mb(found.features)}")
    else:
        parts.append(f"activations of {found.n_images} images {_mb(found.activations)}")
    return f"{_mb(found.memory)} in addition to torch itself ({', '.join(parts)})"


def _describe_disk(found: Estimate) -> str:
    states = f", {found.n_states} states of {_mb(found.state)}" if found.state else ""
    return f"checkpoint {_mb(found.weights)}{states}"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 1e8 else f"{n_bytes / 1e6:,.0f} MB"


def report_estimate(
    plan: FinetunePlan,
    device: str,
    launch: Launch,
    save_interval: SaveInterval,
    *,
    workers: int | None,
    as_json: bool,
) -> None:
    """Decode sample images, estimate the time and memory of a run, and print both."""
    # lazy: torch takes seconds
    import torch

    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.workers import default_workers
    from wiseft_cli.training.estimate import (
        count_samples,
        decode_samples,
        estimate,
        sample_warnings,
    )

    samples = []
    with progress(count_samples(plan), "decoding a sample of each image set") as advance:
        for sample in decode_samples(plan, on_progress=advance):
            print_sample(sample)
            samples.append(sample)
    planned_for = None
    try:
        own_device = resolve_device(device, launch)
    except ModelError:  # a GPU of another machine
        own_device, planned_for = torch.device("cpu"), torch.device(device)
    found = estimate(
        plan,
        device=own_device,
        planned_for=planned_for,
        saves_states=not save_interval.is_never,
        launch=launch,
    )
    if workers is None:
        workers = default_workers(launch.local_world_size)
    warnings = sample_warnings(plan, samples)
    warnings += filter(None, [found.memory_warning()])
    print_estimate(plan, found, samples[0], workers=workers)
    for text in warnings:
        warn(text)
    print_message("dry run: nothing was trained, and nothing was written")
    if as_json:
        print_json(estimate_document(plan, found, warnings))
