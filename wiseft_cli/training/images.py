"""Training images in batches: decoded by workers, augmented by what they are, not by who does it.

An image's augmentation is seeded by (seed, epoch, image index), and the loader has a generator
of its own (its iterator would draw from the global one otherwise). The same draws thus give the
same pixels for any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import Dataset

from wiseft_cli.data.loading import (
    ImageDataset,
    ImageItem,
    UnreadableImage,
)
from wiseft_cli.data.loading import load_batches as load_images
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.seeding import Purpose, derive_seed, seeded_cpu_generator
from wiseft_cli.training.unreadable import UnreadableImages


class AugmentedImages(Dataset["ImageItem | UnreadableImage"]):
    """An image dataset whose items are draws, each with random numbers of its own.

    Args:
        images: The dataset, with the training transform.
        seed: The run's seed.
    """

    def __init__(self, images: ImageDataset, *, seed: int) -> None:
        self._images = images
        self._seed = seed

    def __getitem__(self, draw: Draw) -> ImageItem | UnreadableImage:
        """Return (image (3, H, W), class index, index), or the reason why there is none."""
        with seeded_cpu_generator(derive_seed(self._seed, Purpose.AUGMENTATION, *draw)):
            return self._images[draw.image]


def load_batches(
    images: ImageDataset,
    draws: Iterable[list[Draw]],
    *,
    seed: int,
    workers: int,
    device: torch.device,
    unreadable: UnreadableImages | None = None,
    stand_in: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode and augment the images of each batch and move them to the device.

    Args:
        images: The dataset, with the training transform.
        draws: The batches in order; read ahead by the workers.
        seed: The run's seed.
        workers: Processes that decode; 0 decodes in this one.
        device: Where the model computes.
        unreadable: Notes the images that cannot be read; by default none may be.
        stand_in: An input (1, 3, H, W) for a pass that has none, where one must be run.
    Yields:
        images (B, 3, H, W) and class indices (B,), on the device; without the images that
        cannot be read. Where none is left: the stand-in or (0,), and class indices (0,).
    Raises:
        DatasetError: More images cannot be read than may be left out, or a worker died.
    """
    unreadable = unreadable or UnreadableImages()
    augmented = AugmentedImages(images, seed=seed)
    for batch in load_images(augmented, draws, workers=workers, device=device):
        unreadable.note([*batch.unreadable.values()])
        inputs = batch.images if len(batch.targets) or stand_in is None else stand_in.to(device)
        yield inputs, batch.targets
