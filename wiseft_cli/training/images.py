"""Decode and augment training images, and count the ones that cannot be read.

The augmentation of an image is seeded by (seed, epoch, image index). The same draws thus give the
same pixels for any number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.loading import ImageDataset, ImageItem, UnreadableImage, load_batches
from wiseft_cli.errors import CommonDatasetError, counted
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.training.batches import (
    Draw,
    MicroBatches,
    Purpose,
    derive_seed,
    seeded_cpu_generator,
)
from wiseft_cli.training.mixing import Mixing


class UnreadableImages:
    """The unreadable images of a run, each counted once, however often it is drawn.

    Which images these are depends on the data alone, so a run without them gives the same bytes
    for any number of workers. Several processes count together.

    Args:
        max_bad: How many images may be unreadable.
        on_warning: Called with the reason, path included, when an image is first found, and when
            all images of a class are unreadable.
        processes: The processes of the run.
        classes: Name of the class of each image of the set; empty if classes are not counted.
        known: Positions of the images that an earlier part of the run found.
    """

    def __init__(
        self,
        max_bad: int = 0,
        on_warning: Callable[[str], None] = lambda _: None,
        processes: ProcessGroup = SINGLE_PROCESS,
        *,
        classes: Sequence[str] = (),
        known: Iterable[int] = (),
    ) -> None:
        self._processes = processes
        self._max_bad = max_bad
        self._on_warning = on_warning
        self._classes = classes
        self._images_of = Counter(classes)
        self._reasons = dict.fromkeys(known, "an image that was unreadable in an earlier part")
        self._of_this_process: dict[int, str] = {}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each image could not be read, in the order in which they were found."""
        return tuple(self._reasons.values())

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the images in the set, sorted."""
        return tuple(sorted(self._reasons))

    def add(self, reasons: Mapping[int, str]) -> None:
        """Add the unreadable images of a batch of this process: reason by position in the set.

        Raises:
            DatasetError: There are more than allowed. Of several processes, `share` raises it.
        """
        self._of_this_process.update(reasons)
        if self._processes.is_single:
            self.share()

    def share(self) -> None:
        """Exchange the images added since the last call; every process calls this.

        Raises:
            DatasetError: There are more than allowed, or no image is readable; raised in every
                process.
        """
        found = dict(self._processes.gather(list(self._of_this_process.items())))
        self._of_this_process = {}
        new = {at: reason for at, reason in found.items() if at not in self._reasons}
        self._reasons.update(new)
        if len(self._reasons) > self._max_bad or 0 < len(self._classes) <= len(self._reasons):
            raise self._too_many()
        for reason in new.values():
            self._on_warning(reason)
        if self._classes and new:
            self._warn_of_lost_classes({self._classes[at] for at in new})

    def _warn_of_lost_classes(self, candidates: set[str]) -> None:
        """Warn of classes that just lost their last image."""
        lost = Counter(self._classes[at] for at in self._reasons)
        for name in sorted(candidates):
            if lost[name] == self._images_of[name]:
                images = counted(lost[name], "training image")
                self._on_warning(
                    f"class {name!r} has no readable training image left ({images}, none readable)"
                )

    def _too_many(self) -> CommonDatasetError:
        if len(self._reasons) == len(self._classes):
            return CommonDatasetError(
                f"none of the {len(self._classes)} training images can be read",
                faults=self.reasons,
                hint="replace the files; without images nothing can be trained",
            )
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
    mixing: Mixing | None = None,
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
        mixing: Mixes the images of each pass; `draws` is then a `MicroBatches`.
        workers: Number of decoding processes; 0 decodes in this process.
        device: Device of the model.
        unreadable: Counts unreadable images; by default none is allowed.
        rotated: Counts images whose EXIF orientation is ignored.
        placeholder: An input (1, 3, H, W) for batches without readable images; None if the model
            is not run on them.
    Yields:
        Readable images (B, 3, H, W) and class indices (B,), on the device; of mixed images, labels
        as probabilities (B, C). If there are none: the placeholder or an empty tensor (0,), and
        no target.
    Raises:
        DatasetError: More images are unreadable than allowed, or a worker died.
    """
    unreadable = unreadable or UnreadableImages()
    passes = draws.passes() if isinstance(draws, MicroBatches) else repeat((0, []))
    batches = load_batches(
        AugmentedImages(images, seed=seed), draws, workers=workers, device=device
    )
    for batch, (step, drawn) in zip(batches, passes, strict=False):
        unreadable.add(batch.unreadable)
        if rotated:
            rotated.add(batch.rotated)
        inputs, targets = batch.images, batch.targets
        if mixing:
            inputs, targets = mixing(step, drawn, batch)
        if placeholder is None or len(targets):
            yield inputs, targets
        else:
            yield placeholder.to(device), targets


def black_image(preprocess: Mapping[str, Any]) -> torch.Tensor:
    """Return an input (1, 3, H, W) for forward passes whose result is ignored."""
    return eval_transform(preprocess)(Image.new("RGB", (8, 8))).unsqueeze(0)
