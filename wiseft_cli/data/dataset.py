"""Image sets as torch datasets, with unreadable images reported instead of raised.

An exception that crosses from a worker process arrives as the text of a traceback. The
dataset therefore returns what could not be read as a value, and the consumer decides:
`refuse_unreadable` for training, a count for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import Dataset

from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.images import load_image_of
from wiseft_cli.errors import DatasetError, list_some

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be decoded: its position in the set, and why."""

    index: int
    reason: str


class ImageBatch(NamedTuple):
    """What `collate_images` makes of several items.

    Attributes:
        images: The readable images, float, shape (B, 3, H, W); (0,) where none was readable.
        targets: Class index of each, int64, shape (B,).
        indices: Position of each in the set, int64, shape (B,).
        unreadable: The others, one message each.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    unreadable: tuple[str, ...]


ImageItem = tuple[torch.Tensor, int, int]


class ImageDataset(Dataset["ImageItem | UnreadableImage"]):
    """The images of a set, decoded and transformed on access.

    Use it with `collate_fn=collate_images`.

    Args:
        image_set: The images; item i is record i.
        targets: Class index of each record.
        transform: From the decoded picture to a tensor of shape (3, H, W).
    """

    def __init__(
        self,
        image_set: ImageSet,
        targets: Sequence[int],
        transform: Callable[[Image.Image], torch.Tensor],
    ) -> None:
        if len(targets) != len(image_set.records):
            raise ValueError(f"{len(targets)} targets for {len(image_set.records)} images")
        self._image_set = image_set
        self._targets = list(targets)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> ImageItem | UnreadableImage:
        """Return (image (3, H, W), class index, index), or the reason why there is none."""
        try:
            image = load_image_of(self._image_set, index)
        except DatasetError as error:
            return UnreadableImage(index, error.message)
        return self._transform(image), self._targets[index], index


def collate_images(items: Sequence[ImageItem | UnreadableImage]) -> ImageBatch:
    """Stack the readable images of a batch and keep the messages of the others."""
    readable = [item for item in items if not isinstance(item, UnreadableImage)]
    unreadable = tuple(item.reason for item in items if isinstance(item, UnreadableImage))
    images = torch.stack([image for image, _, _ in readable]) if readable else torch.empty(0)
    targets = torch.tensor([target for _, target, _ in readable], dtype=torch.int64)
    indices = torch.tensor([index for _, _, index in readable], dtype=torch.int64)
    return ImageBatch(images, targets, indices, unreadable)


def refuse_unreadable(unreadable: Sequence[str]) -> None:
    """Raise if any image of a batch could not be read.

    Raises:
        DatasetError: Names every unreadable image of the batch.
    """
    if unreadable:
        raise DatasetError(
            "\n".join(list_some(list(unreadable))),
            hint="replace or remove the files, then start again",
        )
