"""Load images in batches: datasets, batches, and decoding in worker processes.

An exception raised in a worker process arrives as the text of a traceback. Datasets therefore
return the reason in place of an image that cannot be read, and the caller decides what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wiseft_cli.compute.workers import initialize_worker, raise_on_dead_worker
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.images import (
    UPRIGHT,
    exif_orientation,
    load_image,
    load_image_of,
    transform_image,
)
from wiseft_cli.errors import DatasetError, counted

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[["Image.Image"], torch.Tensor]
"""From a decoded image to a tensor of shape (3, H, W)."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be decoded: its position in the set, and the reason."""

    index: int
    reason: str


class ImageBatch(NamedTuple):
    """A batch of images.

    Attributes:
        images: The readable images, float, shape (B, 3, H, W); (0,) if there are none.
        targets: Class index of each, int64, shape (B,).
        indices: Position of each in the set, int64, shape (B,), on the CPU.
        unreadable: For every other image its position in the set and the reason.
        rotated: Positions in the set of the readable images whose EXIF orientation is not upright.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    unreadable: dict[int, str]
    rotated: tuple[int, ...] = ()

    def require_readable(self) -> None:
        """Raise if any image of the batch could not be read.

        Raises:
            DatasetError: Names every unreadable image of the batch.
        """
        if self.unreadable:
            raise DatasetError(
                f"{counted(len(self.unreadable), 'image')} cannot be read",
                faults=list(self.unreadable.values()),
                hint="replace or remove the files, then start again",
            )


class ImageItem(NamedTuple):
    """An image (3, H, W), its class index, its position in the set, and whether it is rotated."""

    image: torch.Tensor
    target: int
    position: int
    is_rotated: bool = False


class ImageDataset(Dataset[ImageItem | UnreadableImage]):
    """The images of a set, decoded and transformed on access.

    Args:
        image_set: The images; item i is record i.
        targets: Class index of each record.
        transform: Applied to each decoded image.
    """

    def __init__(self, image_set: ImageSet, targets: Sequence[int], transform: Transform) -> None:
        if len(targets) != len(image_set.records):
            raise ValueError(f"{len(targets)} targets for {len(image_set.records)} images")
        self._image_set = image_set
        self._targets = np.asarray(targets, np.int32)  # small, and forks share it
        self._transform = transform

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> ImageItem | UnreadableImage:
        try:
            image = load_image_of(self._image_set, index)
            transformed = transform_image(image, self._transform, self._image_set.name_of(index))
        except DatasetError as error:
            return UnreadableImage(index, error.message)
        is_rotated = exif_orientation(image) != UPRIGHT
        return ImageItem(transformed, int(self._targets[index]), index, is_rotated)


def collate_images(items: Sequence[ImageItem | UnreadableImage]) -> ImageBatch:
    """Stack the readable images of a batch, and collect the reasons of the others."""
    readable = [item for item in items if not isinstance(item, UnreadableImage)]
    return ImageBatch(
        torch.stack([item.image for item in readable]) if readable else torch.empty(0),
        torch.tensor([item.target for item in readable], dtype=torch.int64),
        torch.tensor([item.position for item in readable], dtype=torch.int64),
        {item.index: item.reason for item in items if isinstance(item, UnreadableImage)},
        tuple(item.position for item in readable if item.is_rotated),
    )


def load_batches(
    dataset: Dataset[ImageItem | UnreadableImage],
    batches: Iterable[list[Any]],
    *,
    workers: int,
    device: torch.device,
) -> Iterator[ImageBatch]:
    """Decode batches of a dataset in worker processes, and move them to a device.

    The batches do not depend on the number of workers, and no global random number is drawn.

    Args:
        batches: The keys of each batch's items, in order; the workers read ahead.
        workers: Processes that decode; 0 decodes in this process.
        device: Destination of images and targets.
    Raises:
        DatasetError: A worker process died.
    """
    loader: DataLoader[Any] = _image_loader(
        dataset, batches, collate_images, workers=workers, pin_memory=device.type == "cuda"
    )
    for batch in raise_on_dead_worker(loader, workers):
        # A batch that stays in shared memory would use it, and three open files, while it lives.
        own = _copy_from_shared_memory(batch) if workers else batch
        yield own._replace(
            images=own.images.to(device, non_blocking=True),
            targets=own.targets.to(device, non_blocking=True),
        )


def _copy_from_shared_memory(batch: ImageBatch) -> ImageBatch:
    images, targets, indices = (
        tensor.clone() if tensor.untyped_storage().is_shared() else tensor
        for tensor in (batch.images, batch.targets, batch.indices)
    )
    return batch._replace(images=images, targets=targets, indices=indices)


def _image_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    collate: Callable[[Any], Any],
    *,
    workers: int,
    **options: Any,
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        # Without its own generator a loader draws from the global one.
        generator=torch.Generator(),
        worker_init_fn=initialize_worker,
        **options,
    )


class PathBatch(NamedTuple):
    """A batch of images that are named by path alone.

    Attributes:
        paths: All paths of the batch, in order.
        unreadable: The reason for each image that could not be read, by position in `paths`.
        images: The other images, float, shape (B, 3, H, W); (0,) if there are none.
        rotated: Positions in `paths` of the images whose EXIF orientation is not upright.
    """

    paths: tuple[str, ...]
    unreadable: dict[int, str]
    images: torch.Tensor
    rotated: tuple[int, ...] = ()


def load_paths(
    paths: Iterable[str], transform: Transform, *, batch_size: int, workers: int, read_ahead: bool
) -> Iterator[PathBatch]:
    """Decode images named by path, in order and in worker processes.

    Memory does not grow with the number of paths.

    Args:
        paths: Read as they are needed.
        transform: Applied to each decoded image.
        workers: Processes that decode; 0 decodes in this process.
        read_ahead: Decode the following batches in the background. If False, no path is read
            before the previous batch is consumed, so that a slow stream of paths delays nothing.
    Raises:
        DatasetError: A worker process died.
    """
    sampler = _ReplaceableBatches()
    loader = _image_loader(
        _PathDataset(transform),
        sampler,
        _collate_paths,
        workers=workers,
        persistent_workers=workers > 0,
    )
    batches = _batched(paths, batch_size)
    if read_ahead:
        sampler.batches = batches
        yield from raise_on_dead_worker(loader, workers)
        return
    for batch in batches:
        # One epoch per batch, split over the workers: the loader does not ask for a next batch.
        sampler.batches = _batched(batch, -(-batch_size // max(1, workers)))
        yield _concatenate(list(raise_on_dead_worker(loader, workers)))


class _ReplaceableBatches:
    """A batch sampler whose batches can be replaced between epochs."""

    batches: Iterable[list[str]] = ()

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self.batches)


class _PathDataset(Dataset[Any]):
    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def __getitem__(self, path: str) -> tuple[str, torch.Tensor | str, bool]:
        """Return the path, the image or why it cannot be read, and whether it is rotated."""
        try:
            image = load_image(path)
            transformed = transform_image(image, self._transform, path)
        except DatasetError as error:
            return path, error.message, False
        return path, transformed, exif_orientation(image) != UPRIGHT


def _collate_paths(items: list[tuple[str, torch.Tensor | str, bool]]) -> PathBatch:
    paths = tuple(path for path, _, _ in items)
    unreadable = {at: reason for at, (_, reason, _) in enumerate(items) if isinstance(reason, str)}
    images = [image for _, image, _ in items if not isinstance(image, str)]
    rotated = tuple(at for at, (_, _, is_rotated) in enumerate(items) if is_rotated)
    return PathBatch(paths, unreadable, torch.stack(images) if images else torch.empty(0), rotated)


def _concatenate(parts: list[PathBatch]) -> PathBatch:
    unreadable: dict[int, str] = {}
    paths: tuple[str, ...] = ()
    rotated: tuple[int, ...] = ()
    for part in parts:
        unreadable |= {len(paths) + at: reason for at, reason in part.unreadable.items()}
        rotated += tuple(len(paths) + at for at in part.rotated)
        paths += part.paths
    readable = [part.images for part in parts if len(part.images)]
    images = torch.cat(readable) if readable else torch.empty(0)
    return PathBatch(paths, unreadable, images, rotated)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
