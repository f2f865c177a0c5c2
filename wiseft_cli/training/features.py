"""The features of a frozen image encoder, computed once, as inputs of a linear classifier.

Source: Wortsman et al. 2021, arXiv 2109.01903, section D.3. Nothing is kept on disk here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from wiseft_cli.data.dataset import ImageDataset
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.images import load_batches


def compute_features(
    encode_image: Callable[[torch.Tensor], torch.Tensor],
    images: ImageDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Encode every image of a dataset, in the dataset's order.

    Args:
        encode_image: From images (B, 3, H, W) to L2-normalised features (B, D), in
            evaluation mode.
        images: The dataset, with a transform without random numbers.
        batch_size: Images of one forward pass.
        workers: Processes that decode.
        device: Where the encoder computes.
        on_progress: Called with the number of images of each pass.
    Returns:
        Features (N, D) on the device.
    Raises:
        DatasetError: An image cannot be read.
    """
    draws = [
        [Draw(0, index) for index in range(start, min(start + batch_size, len(images)))]
        for start in range(0, len(images), batch_size)
    ]
    features = []
    with torch.no_grad():
        for batch, _ in load_batches(images, draws, seed=0, workers=workers, device=device):
            features.append(encode_image(batch))
            if on_progress is not None:
                on_progress(len(batch))
    return torch.cat(features)


def feature_batches(
    features: torch.Tensor, targets: torch.Tensor, draws: Iterable[list[Draw]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the features (B, D) and class indices (B,) of each batch of draws.

    Args:
        features: Shape (N, D).
        targets: Class indices, int64, shape (N,), on the same device.
        draws: The batches in order.
    """
    for batch in draws:
        rows = torch.tensor([draw.image for draw in batch], device=features.device)
        yield features[rows], targets[rows]
