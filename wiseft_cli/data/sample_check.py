"""Whether the images of a set decode, tried on an even spread of them."""

from __future__ import annotations

from collections.abc import Callable

from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError


def unreadable_in_sample(
    images: ImageSet, n_tried: int, on_tried: Callable[[], None] = lambda: None
) -> list[str]:
    """Decode some images of a set, the first and the last with them, and return what is wrong.

    Args:
        n_tried: How many, at most all.
        on_tried: Called after each.
    """
    from wiseft_cli.data.images import load_image_of  # lazy: Pillow and numpy cost a while

    n_images = len(images.records)
    taken = min(n_tried, n_images)
    unreadable = []
    for number in range(taken):
        at = number * (n_images - 1) // max(taken - 1, 1)
        try:
            load_image_of(images, at)
        except DatasetError as error:
            unreadable.append(error.message)
        on_tried()
    return unreadable
