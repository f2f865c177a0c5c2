"""Estimate the memory and disk space that a run needs, and try whether its images decode.

Nothing is trained and nothing is written. The memory comes from one forward pass over two black
images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.compute.memory import available_bytes
from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.data.images import DecodedSample, decode_sample
from wiseft_cli.errors import DatasetError
from wiseft_cli.training.batches import largest_pass
from wiseft_cli.training.finetune import report_out_of_memory_before_steps
from wiseft_cli.training.images import black_image
from wiseft_cli.training.modes import set_training_modes
from wiseft_cli.training.optimizer import MOMENTS
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state import Run, open_run
from wiseft_cli.training.state_dir import KEPT_STATES

SAMPLE_SIZE = 200
"""Images of each set that are decoded."""

_FORWARD_SHARE = 3  # forward and backward pass together, as multiples of the forward pass
_N_TRIED = 2  # BatchNorm cannot compute statistics of a single image


@dataclass(frozen=True)
class Estimate:
    """Bytes that each process of a run needs, torch itself not included.

    Attributes:
        device: Where the run would compute; it need not be on this machine.
        weights: Of the whole classifier; also the size of the checkpoint.
        gradients: Of the trainable parameters.
        n_images: Images per forward pass.
        activations: For the backward pass of that many images.
        features: Of all images, if the encoder is frozen; otherwise 0.
        state: Size of one state on disk; 0 if none is saved.
        disk_free: Free bytes on the disk of the output.
        n_outputs: Checkpoints that the run writes.
        memory_free: Free memory of the device for this process; None if it cannot be known here.
        moments: Of the optimizer's moments.
        copies: Of the weights that methods compare with, and of their moving average.
        seconds_per_image: Time of a training step per image; None if the device is not here.
    """

    device: torch.device
    weights: int
    gradients: int
    n_images: int
    activations: int
    features: int
    state: int
    disk_free: int
    n_outputs: int
    memory_free: int | None
    seconds_per_image: float | None
    moments: int
    copies: int

    n_states = KEPT_STATES + 1
    """States on disk at the same time, at most."""

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        fixed = self.weights + self.gradients + self.moments + self.copies
        return fixed + self.activations + self.features

    @property
    def disk(self) -> int:
        """Bytes on disk while a state is written."""
        return self.n_outputs * self.weights + self.n_states * self.state

    def memory_warning(self) -> str | None:
        """Return a warning if the run needs more memory than is free, with what would fit."""
        if self.memory_free is None or self.memory <= self.memory_free:
            return None
        text = (
            f"the run needs about {self.memory / 1e6:,.0f} MB of memory, and {self.device} has"
            f" {self.memory_free / 1e6:,.0f} MB free"
        )
        spare = self.memory_free - (self.memory - self.activations)
        fits = spare * self.n_images // self.activations if self.activations else 0
        if fits >= 1:
            return f"{text}; --micro-batch-size {2 ** (int(fits).bit_length() - 1)} would fit"
        return f"{text}, which is too little for a single image; use another device"


def estimate(
    plan: FinetunePlan,
    *,
    device: torch.device,
    planned_for: torch.device | None = None,
    saves_states: bool = True,
    launch: Launch | None = None,
) -> Estimate:
    """Estimate what a run needs.

    Args:
        plan: The run.
        device: A device of this machine, which computes the trial pass.
        planned_for: Where the run would compute, if that is not on this machine.
        saves_states: Whether the run saves its state.
        launch: Rank of this process; a single process if None.
    Raises:
        CheckpointError: The parent does not match its card.
        RecipeError: The recipe does not fit the model.
        ModelError: The model does not fit into the device's memory.
    """
    launch = launch or Launch()
    processes = ProcessGroup(launch.rank, launch.world_size, device)
    recipe = plan.recipe
    with report_out_of_memory_before_steps(device):
        run = open_run(plan, processes)
        trainable = sum(parameter.nbytes for parameter in run.trainable.values())
        is_probe = recipe.freeze == "encoder"
        n_images = largest_pass(recipe, launch.world_size)
        kept, seconds = (0, 0.0) if is_probe else _try_pass(run, plan)
    is_here = planned_for is None
    width = run.classifier.classification_head.in_features
    return Estimate(
        device=planned_for or device,
        weights=run.weight_bytes,
        gradients=trainable,
        n_images=n_images,
        activations=kept * n_images // _N_TRIED,
        features=4 * width * recipe.n_images if is_probe else 0,
        state=run.state_bytes if saves_states else 0,
        disk_free=free_bytes(plan.output.parent),
        n_outputs=1 + len(plan.other_outputs),
        memory_free=available_bytes(device, n_processes=launch.local_world_size)
        if is_here
        else None,
        seconds_per_image=seconds / _N_TRIED if is_here and not is_probe else None,
        moments=trainable * sum(name != "step" for name in MOMENTS[recipe.optimizer]),
        copies=run.weight_bytes * ((run.anchor is not None) + bool(recipe.ema)),
    )


def _try_pass(run: Run, plan: FinetunePlan) -> tuple[int, float]:
    """Run the model on two black images.

    Returns:
        The bytes that a forward pass keeps for the backward pass, without the weights; and the
        seconds that both passes take. A backward pass takes about twice the time of a forward
        pass.
    """
    recipe = plan.recipe
    set_training_modes(run.classifier, freeze=recipe.freeze, batch_norm=recipe.batch_norm)
    images = black_image(plan.card.preprocess or {}).expand(_N_TRIED, -1, -1, -1).to(run.device)
    own = {tensor.untyped_storage().data_ptr() for tensor in run.classifier.state_dict().values()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # otherwise its memory, and so its address, is reused
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        run.classifier(images, precision=recipe.precision)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        began = time.perf_counter()
        run.classifier(images, precision=recipe.precision).sum().item()
    return sum(kept.values()), _FORWARD_SHARE * (time.perf_counter() - began)


def count_samples(plan: FinetunePlan) -> int:
    """Return how many images `decode_samples` decodes."""
    return sum(min(SAMPLE_SIZE, len(at.images.records)) for at in (plan.train, *plan.val))


def decode_samples(
    plan: FinetunePlan, *, on_progress: Callable[[], None] = lambda: None
) -> Iterator[DecodedSample]:
    """Decode up to `SAMPLE_SIZE` images of every set of a run.

    Args:
        plan: The run.
        on_progress: Called after each image.
    Yields:
        A result per set, the training set first.
    Raises:
        DatasetError: More images of a sample are unreadable than the run allows.
    """
    for labelled in (plan.train, *plan.val):
        images = labelled.images
        n_tried = min(SAMPLE_SIZE, len(images.records))
        decoded = decode_sample(images, n_tried, on_progress)
        allowed = plan.max_bad if labelled is plan.train else 0
        if len(decoded.unreadable) > allowed:
            raise DatasetError(
                f"image set {images.name!r}: {len(decoded.unreadable)} of {n_tried} images tried"
                f" cannot be read, at most {allowed} allowed",
                faults=decoded.unreadable,
                hint="replace or remove the files, or allow unreadable training images with"
                " --max-bad",
            )
        yield decoded


def sample_warnings(plan: FinetunePlan, samples: Sequence[DecodedSample]) -> list[str]:
    """Return warnings about images of a sample: unreadable, or rotated by an ignored EXIF tag."""
    preprocess = plan.card.preprocess or {}
    found: list[str] = []
    for labelled, sample in zip((plan.train, *plan.val), samples, strict=True):
        found += sample.unreadable
        if sample.n_rotated and labelled.images.misses_orientation(preprocess):
            text = describe_ignored_orientation(
                sample.n_rotated, sample.n_decoded, noun="decoded images"
            )
            found.append(f"image set {sample.name!r}: {text}; ?exif_orientation=apply turns them")
    return found
