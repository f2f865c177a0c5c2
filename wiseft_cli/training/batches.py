"""Which image stands in which batch: a pure function of the seed, the step and the process.

A batch is named by draws, pairs of (epoch, image index). The epoch travels with the index, so
that workers that live for the whole run know an image's augmentation without being told, and a
run can begin at any step. Which images make up a step does not depend on how many processes
share it. It does not read images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from wiseft_cli.training.recipe import ResolvedRecipe
from wiseft_cli.training.seeding import Purpose, derive_seed


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
        stop: One after the last.
        micro_batch_size: Images of one forward pass of one process.
    """

    epoch: int
    start: int
    stop: int
    micro_batch_size: int

    @property
    def n_images(self) -> int:
        """Images of the span; 0 for a process that has none in this step."""
        return self.stop - self.start

    @property
    def micro_batches(self) -> list[tuple[int, int]]:
        """(start, stop) of each forward pass; the last may be smaller.

        A share without an image has one pass too, an empty one: all processes exchange
        gradients in each step, and that happens in the backward pass.
        """
        size = self.micro_batch_size
        passes = [(at, min(at + size, self.stop)) for at in range(self.start, self.stop, size)]
        return passes or [(self.start, self.start)]

    def share(self, rank: int, world_size: int) -> StepSpan:
        """Return the part that one of several processes computes.

        Shares are contiguous and differ by one image at most, the first ones being larger.

        Args:
            rank: The process, from 0.
            world_size: How many there are.
        """
        size, extra = divmod(self.n_images, world_size)
        start = self.start + rank * size + min(rank, extra)
        return replace(self, start=start, stop=start + size + (rank < extra))


def span_of(step: int, recipe: ResolvedRecipe) -> StepSpan:
    """Return what an optimizer step covers; the last one of an epoch may be smaller."""
    epoch, step_of_epoch = divmod(step, recipe.steps_per_epoch)
    start = step_of_epoch * recipe.batch_size
    stop = min(start + recipe.batch_size, recipe.n_images)
    return StepSpan(epoch, start, stop, recipe.micro_batch_size)


def largest_pass(recipe: ResolvedRecipe, world_size: int = 1) -> int:
    """Return the images of the largest forward pass of any process."""
    share = span_of(0, recipe).share(0, world_size)
    return max(stop - start for start, stop in share.micro_batches)


def epoch_order(recipe: ResolvedRecipe, epoch: int) -> torch.Tensor:
    """Return the image indices in the order of an epoch, int64, shape (n_images,)."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(recipe.seed, Purpose.SHUFFLING, epoch))
    return torch.randperm(recipe.n_images, generator=generator)


class MicroBatches(Sampler[list[Draw]]):
    """The draws of every forward pass of one process in a run, in order, from one step on.

    A process without an image in a step has one pass without a draw.

    Args:
        recipe: Sizes and seed.
        first_step: The step to begin with.
        rank: The process, from 0.
        world_size: How many processes share each step.
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
        """Yield one forward pass at a time."""
        epoch, order = -1, torch.empty(0)
        for step in range(self._first_step, self._recipe.steps):
            span = span_of(step, self._recipe)
            if span.epoch != epoch:
                epoch, order = span.epoch, epoch_order(self._recipe, span.epoch)
            for start, stop in span.share(self._rank, self._world_size).micro_batches:
                yield [Draw(epoch, image) for image in order[start:stop].tolist()]
