"""The features of a frozen image encoder, computed once, as inputs of a linear classifier.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.3. Nothing is kept on disk here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.evaluation.accuracy import load_images
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.unreadable import UnreadableImages


class Features(NamedTuple):
    """What a frozen encoder makes of an image set.

    Attributes:
        values: L2-normalised features, float32, shape (N, D), on the device.
        is_readable: Whether image i could be read, bool, shape (N,); its row is 0 where not.
    """

    values: torch.Tensor
    is_readable: torch.Tensor


def compute_features(
    encode_image: Callable[[torch.Tensor], torch.Tensor],
    image_set: ImageSet,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
    unreadable: UnreadableImages | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Features:
    """Encode every image of a set, in the set's order.

    All processes of a run call this; each encodes a share of the images, and returns the
    features of all.

    Args:
        encode_image: From images (B, 3, H, W) to L2-normalised features (B, D), in
            evaluation mode.
        preprocess: The card's preprocessing.
        batch_size: Images of one forward pass.
        workers: Processes that decode.
        device: Where the encoder computes.
        processes: The processes that share the images.
        unreadable: Notes the images that cannot be read; by default none may be.
        on_progress: Called with the number of images of each pass.
    Raises:
        DatasetError: More images cannot be read than may be left out.
    """
    unreadable = unreadable or UnreadableImages(processes=processes)
    batches = load_images(
        image_set,
        preprocess,
        batch_size=batch_size,
        workers=workers,
        device=device,
        processes=processes,
    )
    n_images, rows, parts = len(image_set.records), [], []
    with torch.no_grad():
        for batch in batches:
            unreadable.note([*batch.unreadable.values()])
            if len(batch.indices):
                parts.append(encode_image(batch.images))
                rows.append(batch.indices)
            if on_progress is not None:
                on_progress(len(batch.indices) + len(batch.unreadable))
        unreadable.settle()
        width = max(processes.gather([part.shape[1] for part in parts[:1]]), default=0)
        values = torch.zeros(n_images, width, device=device)
        is_readable = torch.zeros(n_images, dtype=torch.int64, device=device)
        if parts:
            indices = torch.cat(rows).to(device)
            values[indices], is_readable[indices] = torch.cat(parts), 1
        # Each row comes from one process, and is 0 in the others.
        return Features(processes.sum_tensor(values), processes.sum_tensor(is_readable).bool())


def feature_batches(
    features: Features, targets: torch.Tensor, draws: Iterable[list[Draw]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the features (B, D) and class indices (B,) of each batch of draws.

    Images that could not be read are left out; B may be 0.

    Args:
        features: Of the N images.
        targets: Class indices, int64, shape (N,), on the same device.
        draws: The batches in order.
    """
    for batch in draws:
        rows = torch.tensor([draw.image for draw in batch], dtype=torch.int64).to(targets.device)
        rows = rows[features.is_readable[rows]]
        yield features.values[rows], targets[rows]
