"""Choose the images of each batch, and seed everything random, as functions of the seed.

A batch is a list of draws, pairs of (epoch, image index). Random numbers come from generators
seeded by (seed, purpose, position in the run). The images of a step and their augmentation thus
depend neither on the number of workers and processes nor on the step at which a run resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from wiseft_cli.training.recipe import ResolvedRecipe


class Purpose(IntEnum):
    """What a random stream is for; streams of two purposes are unrelated."""

    SHUFFLING = 1
    AUGMENTATION = 2
    STOCHASTIC_LAYERS = 3
    MIXING = 4
    RANDOM_TEXTS = 5


def derive_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """Return 32 bits mixed from the run's seed, a purpose and a position in the run.

    torch's CPU generator uses only the low 32 bits of a seed. A sum in place of a hash would give
    image 1 of epoch 0 the numbers of image 0 of epoch 1.

    Args:
        seed: The run's seed, 0 to 2**32 - 1.
        purpose: What the random numbers are for.
        position: For example (epoch, image index).
    """
    words = ",".join(map(str, (seed, int(purpose), *position)))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded_cpu_generator(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, and restore its state afterwards.

    torchvision's transforms draw from that generator and accept no other.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_device_generators(seed: int, device: torch.device) -> None:
    """Seed the global CPU generator and, on a GPU, the generator of the device.

    `torch.manual_seed` would seed every accelerator of the machine, which takes time in each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class Draw(NamedTuple):
    """One image of one epoch."""

    epoch: int
    image: int


@dataclass(frozen=True)
class StepSpan:
    """The part of an epoch's order that an optimizer step covers, or one process's share of it.

    Attributes:
        epoch: From 0.
        start: First position in the epoch's order.
        stop: One after the last position.
        micro_batch_size: Images per forward pass of one process.
    """

    epoch: int
    start: int
    stop: int
    micro_batch_size: int

    @property
    def n_images(self) -> int:
        """Images of the span; 0 for a process without images in this step."""
        return self.stop - self.start

    @property
    def micro_batches(self) -> list[tuple[int, int]]:
        """(start, stop) of each forward pass; the last may be smaller.

        A share without images has one empty pass: all processes exchange gradients in each step,
        and the exchange happens in the backward pass.
        """
        size = self.micro_batch_size
        passes = [(at, min(at + size, self.stop)) for at in range(self.start, self.stop, size)]
        return passes or [(self.start, self.start)]

    def share(self, rank: int, world_size: int) -> StepSpan:
        """Return the part that one of several processes computes.

        Shares are contiguous, and their sizes differ by at most one image; the first shares are
        the larger ones.
        """
        size, extra = divmod(self.n_images, world_size)
        start = self.start + rank * size + min(rank, extra)
        return replace(self, start=start, stop=start + size + (rank < extra))


def span_of(step: int, recipe: ResolvedRecipe) -> StepSpan:
    """Return the span of an optimizer step; the last one of an epoch may be smaller."""
    epoch, step_of_epoch = divmod(step, recipe.steps_per_epoch)
    start = step_of_epoch * recipe.batch_size
    stop = min(start + recipe.batch_size, recipe.n_images)
    return StepSpan(epoch, start, stop, recipe.micro_batch_size)


def largest_pass(recipe: ResolvedRecipe, world_size: int = 1) -> int:
    """Return the number of images of the largest forward pass of any process."""
    share = span_of(0, recipe).share(0, world_size)
    return max(stop - start for start, stop in share.micro_batches)


def epoch_order(recipe: ResolvedRecipe, epoch: int) -> torch.Tensor:
    """Return the image indices in the order of an epoch, int64, shape (n_images,)."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(recipe.seed, Purpose.SHUFFLING, epoch))
    return torch.randperm(recipe.n_images, generator=generator)


class MicroBatches(Sampler[list[Draw]]):
    """The draws of every forward pass of one process, in order.

    A process without images in a step has one pass without draws. If images are mixed, the draws
    of a pass begin with one more: the partner of its first image, which is the image before it in
    the batch, or the last one.

    Args:
        recipe: Sizes and seed.
        first_step: The first step.
        rank: Rank of the process, from 0.
        world_size: Number of processes that share each step.
    """

    def __init__(
        self,
        recipe: ResolvedRecipe,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._recipe = recipe
        self._first_step = first_step
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of one forward pass at a time."""
        for _, draws in self.passes():
            yield draws

    def passes(self) -> Iterator[tuple[int, list[Draw]]]:
        """Yield the step and the draws of one forward pass at a time."""
        epoch, order = -1, torch.empty(0)
        for step in range(self._first_step, self._recipe.steps):
            span = span_of(step, self._recipe)
            if span.epoch != epoch:
                epoch, order = span.epoch, epoch_order(self._recipe, span.epoch)
            for start, stop in span.share(self._rank, self._world_size).micro_batches:
                images = order[start:stop].tolist()
                if images and self._recipe.mixes_images:
                    before = start - 1 if start > span.start else span.stop - 1
                    images.insert(0, int(order[before]))
                yield step, [Draw(epoch, image) for image in images]
