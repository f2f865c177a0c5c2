"""Decode and augment training images, and count the ones that cannot be read.

The augmentation of an image is seeded by (seed, epoch, image index). The same draws thus give the
same pixels for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.loading import ImageDataset, ImageItem, UnreadableImage, load_batches
from wiseft_cli.errors import CommonDatasetError
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.training.batches import Draw, Purpose, derive_seed, seeded_cpu_generator


class UnreadableImages:
    """The unreadable images of a run, each counted once, however often it is drawn.

    Which images these are depends on the data alone, so a run without them gives the same bytes
    for any number of workers. Several processes count together.

    Args:
        max_bad: How many images may be unreadable.
        on_warning: Called with the reason, path included, when an image is first found.
        processes: The processes of the run.
    """

    def __init__(
        self,
        max_bad: int = 0,
        on_warning: Callable[[str], None] = lambda _: None,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._processes = processes
        self._max_bad = max_bad
        self._on_warning = on_warning
        self._reasons: dict[str, None] = {}
        self._of_this_process: list[str] = []

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each image could not be read, in the order in which they were found."""
        return tuple(self._reasons)

    def add(self, reasons: Sequence[str]) -> None:
        """Add the unreadable images of a batch of this process.

        Raises:
            DatasetError: There are more than allowed. Of several processes, `share` raises it.
        """
        self._of_this_process += reasons
        if self._processes.is_single:
            self.share()

    def share(self) -> None:
        """Exchange the images added since the last call; every process calls this.

        Raises:
            DatasetError: There are more than allowed; raised in every process.
        """
        reasons = self._processes.gather(self._of_this_process)
        self._of_this_process = []
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self._reasons]
        self._reasons.update(dict.fromkeys(new))
        if len(self._reasons) > self._max_bad:
            raise self._too_many()
        for reason in new:
            self._on_warning(reason)

    def _too_many(self) -> CommonDatasetError:
        hint = "replace or remove the files; --max-bad N ignores up to N unreadable images"
        if len(self._reasons) == 1:
            return CommonDatasetError(self.reasons[0], hint=hint)
        return CommonDatasetError(
            f"{len(self._reasons)} images cannot be read, expected at most {self._max_bad}",
            faults=self.reasons,
            hint=hint,
        )


class RotatedImages:
    """The training images whose EXIF orientation is ignored, each counted once.

    Args:
        image_set: The training images.
        preprocess: The checkpoint's preprocessing.
        on_warning: Called with the number of images, as a sentence.
        processes: The processes of the run, which count together.
    """

    def __init__(
        self,
        image_set: ImageSet,
        preprocess: Mapping[str, Any],
        on_warning: Callable[[str], None] = lambda _: None,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._image_set = image_set
        self._on_warning = on_warning
        self._processes = processes
        self._is_counted = image_set.misses_orientation(preprocess)
        self._found: set[int] = set()

    def add(self, rotated: Iterable[int]) -> None:
        """Add the rotated images of a batch, by their position in the set."""
        if self._is_counted:
            self._found.update(rotated)

    def report(self, n_rotated: int | None = None) -> int:
        """Warn of the images found in one pass over the set, once; every process calls this.

        Args:
            n_rotated: Number of images, if it is known without decoding them.
        Returns:
            Number of images of all processes.
        """
        if n_rotated is None:
            n_rotated = sum(self._processes.gather([len(self._found)]))
        if n_rotated and self._is_counted:
            text = describe_ignored_orientation(n_rotated, len(self._image_set.records))
            self._on_warning(
                f"image set {self._image_set.name!r}: {text};"
                " ?exif_orientation=apply turns the images of this set upright"
            )
        self._is_counted = False
        return n_rotated


class AugmentedImages(Dataset["ImageItem | UnreadableImage"]):
    """An image dataset indexed by draws; each draw has its own random numbers.

    Args:
        images: The dataset, with the training transform.
        seed: The run's seed.
    """

    def __init__(self, images: ImageDataset, *, seed: int) -> None:
        self._images = images
        self._seed = seed

    def __getitem__(self, draw: Draw) -> ImageItem | UnreadableImage:
        """Return (image (3, H, W), class index, index), or why the image cannot be read."""
        with seeded_cpu_generator(derive_seed(self._seed, Purpose.AUGMENTATION, *draw)):
            return self._images[draw.image]


def load_training_batches(
    images: ImageDataset,
    draws: Iterable[list[Draw]],
    *,
    seed: int,
    workers: int,
    device: torch.device,
    unreadable: UnreadableImages | None = None,
    rotated: RotatedImages | None = None,
    placeholder: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode and augment the images of each batch and move them to the device.

    Args:
        images: The dataset, with the training transform.
        draws: The batches in order; workers read ahead.
        seed: The run's seed.
        workers: Number of decoding processes; 0 decodes in this process.
        device: Device of the model.
        unreadable: Counts unreadable images; by default none is allowed.
        rotated: Counts images whose EXIF orientation is ignored.
        placeholder: An input (1, 3, H, W) for batches without readable images; None if the model
            is not run on them.
    Yields:
        Readable images (B, 3, H, W) and class indices (B,), on the device. If there are none: the
        placeholder or an empty tensor (0,), and class indices (0,).
    Raises:
        DatasetError: More images are unreadable than allowed, or a worker died.
    """
    unreadable = unreadable or UnreadableImages()
    for batch in load_batches(
        AugmentedImages(images, seed=seed), draws, workers=workers, device=device
    ):
        unreadable.add(list(batch.unreadable.values()))
        if rotated:
            rotated.add(batch.rotated)
        if placeholder is None or len(batch.targets):
            yield batch.images, batch.targets
        else:
            yield placeholder.to(device), batch.targets


def black_image(preprocess: Mapping[str, Any]) -> torch.Tensor:
    """Return an input (1, 3, H, W) for forward passes whose result is ignored."""
    return eval_transform(preprocess)(Image.new("RGB", (8, 8))).unsqueeze(0)
