"""Estimate the memory and disk space that a run needs, and try whether its images decode.

Nothing is trained and nothing is written. The memory comes from one forward pass over two black
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from wiseft_cli.compute.disk import free_bytes
from wiseft_cli.compute.process_group import ProcessGroup
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.data.images import find_unreadable_images
from wiseft_cli.errors import DatasetError
from wiseft_cli.training.batches import largest_pass
from wiseft_cli.training.finetune import report_out_of_memory_before_steps
from wiseft_cli.training.images import black_image
from wiseft_cli.training.modes import set_training_modes
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state import Run, open_run
from wiseft_cli.training.state_dir import KEPT_STATES

SAMPLE_SIZE = 200
"""Images of each set that are decoded."""

_N_TRIED = 2  # BatchNorm cannot compute statistics of a single image


@dataclass(frozen=True)
class Estimate:
    """Bytes that each process of a run needs, torch itself not included.

    Attributes:
        device: Where the run would compute.
        weights: Of the whole classifier; also the size of the checkpoint.
        gradients: Of the trainable parameters.
        n_images: Images per forward pass.
        activations: For the backward pass of that many images.
        features: Of all images, if the encoder is frozen; otherwise 0.
        state: Size of one state on disk; 0 if none is saved.
        disk_free: Free bytes on the disk of the output.
    """

    device: torch.device
    weights: int
    gradients: int
    n_images: int
    activations: int
    features: int
    state: int
    disk_free: int

    n_states = KEPT_STATES + 1
    """States on disk at the same time, at most."""

    @property
    def moments(self) -> int:
        """Bytes of AdamW's two moments."""
        return 2 * self.gradients

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        return self.weights + self.gradients + self.moments + self.activations + self.features

    @property
    def disk(self) -> int:
        """Bytes on disk while a state is written."""
        return self.weights + self.n_states * self.state


def estimate(
    plan: FinetunePlan,
    *,
    device: torch.device,
    saves_states: bool = True,
    launch: Launch | None = None,
) -> Estimate:
    """Estimate what a run needs.

    Args:
        plan: The run.
        device: Where it would compute.
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
        kept = 0 if is_probe else _bytes_kept(run, plan) * n_images // _N_TRIED
    width = run.classifier.classification_head.in_features
    return Estimate(
        device=device,
        weights=run.weight_bytes,
        gradients=trainable,
        n_images=n_images,
        activations=kept,
        features=4 * width * recipe.n_images if is_probe else 0,
        state=run.state_bytes if saves_states else 0,
        disk_free=free_bytes(plan.output.parent),
    )


def _bytes_kept(run: Run, plan: FinetunePlan) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the weights."""
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
    return sum(kept.values())


@dataclass(frozen=True)
class DecodedSample:
    """The result of decoding some images of a set.

    Attributes:
        name: Name of the set.
        n_decoded: Number of images that were decoded.
        n_images: Size of the set.
        unreadable: Why images could not be decoded, one sentence each.
    """

    name: str
    n_decoded: int
    n_images: int
    unreadable: tuple[str, ...]


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
        unreadable = find_unreadable_images(images, n_tried, on_progress)
        allowed = plan.max_bad if labelled is plan.train else 0
        if len(unreadable) > allowed:
            raise DatasetError(
                f"image set {images.name!r}: {len(unreadable)} of {n_tried} images tried cannot"
                f" be read, at most {allowed} allowed",
                faults=unreadable,
                hint="replace or remove the files, or allow unreadable training images with"
                " --max-bad",
            )
        yield DecodedSample(
            images.name, n_tried - len(unreadable), len(images.records), tuple(unreadable)
        )
