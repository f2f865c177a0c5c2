"""Decodes and transforms a stream of images, in order, in processes of its own.

The paths are not known beforehand and not held: memory does not grow with their number. Image
sets, which are, have `dataset.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from wiseft_cli.compute.workers import initialize_worker, raise_on_dead_worker
from wiseft_cli.data.images import load_image
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image


class DecodedBatch(NamedTuple):
    """The images of some paths.

    Attributes:
        paths: All of them, in their order.
        unreadable: Why there is no image, by the position of the path.
        images: Those of the other paths, float, shape (B, 3, H, W); (0,) for none.
    """

    paths: tuple[str, ...]
    unreadable: dict[int, str]
    images: torch.Tensor


Item = TypeVar("Item")


def decode_images(
    paths: Iterable[str],
    transform: Callable[[Image.Image], torch.Tensor],
    *,
    batch_size: int,
    workers: int,
    read_ahead: bool,
) -> Iterator[DecodedBatch]:
    """Yield the images of each batch of paths, the unreadable ones with the reason.

    Args:
        paths: Of any number; read as they are needed.
        transform: From the decoded picture to a tensor of shape (3, H, W).
        workers: Processes that decode; 0 decodes in this one.
        read_ahead: Whether batches to come are decoded meanwhile. Without it no path is asked for
            before the batch ahead of it was consumed, so that a slow stream holds nothing back.
    Raises:
        DatasetError: A worker process died.
    """
    source = _Batches()
    loader: DataLoader[Any] = DataLoader(
        _Images(transform),
        batch_sampler=source,
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        # Without its own generator a loader draws from the global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=initialize_worker,
    )
    batches = _batched(paths, batch_size)
    if read_ahead:
        source.batches = batches
        yield from raise_on_dead_worker(loader, workers)
        return
    for batch in batches:
        # An epoch a batch, of a part for each worker: it ends without looking for a next one.
        source.batches = _batched(batch, -(-batch_size // max(1, workers)))
        yield _join(list(raise_on_dead_worker(loader, workers)))


class _Batches:
    """Gives the loader, as its sampler, whatever batches stand here when an epoch begins."""

    batches: Iterable[list[str]] = ()

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self.batches)


class _Images(Dataset[Any]):
    """Images by path, which is their index too, with the reason in place of an unreadable one."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._transform = transform

    def __getitem__(self, path: str) -> tuple[str, torch.Tensor | str]:
        try:
            return path, self._transform(load_image(path))
        except DatasetError as error:
            return path, error.message


def _collate(items: list[tuple[str, torch.Tensor | str]]) -> DecodedBatch:
    """Stack the images: one tensor a batch crosses from a worker, not one an image."""
    unreadable = {at: what for at, (_, what) in enumerate(items) if isinstance(what, str)}
    images = [what for _, what in items if not isinstance(what, str)]
    paths = tuple(path for path, _ in items)
    return DecodedBatch(paths, unreadable, torch.stack(images) if images else torch.empty(0))


def _join(parts: list[DecodedBatch]) -> DecodedBatch:
    unreadable: dict[int, str] = {}
    paths: tuple[str, ...] = ()
    for part in parts:
        unreadable |= {len(paths) + at: reason for at, reason in part.unreadable.items()}
        paths += part.paths
    readable = [part.images for part in parts if len(part.images)]
    return DecodedBatch(paths, unreadable, torch.cat(readable) if readable else torch.empty(0))


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
