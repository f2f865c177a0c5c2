"""Top-1 and top-5 accuracy of a classifier on one image set.

An image counts for the classes that its set has: logits of other classes of the head take no
part. It does not know several weight sets or files of results; `sweep.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from wiseft_cli.data.dataset import (
    ImageBatch,
    ImageDataset,
    collate_images,
    refuse_unreadable,
)
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_space import LabelJoin
from wiseft_cli.data.workers import leave_signals_to_the_parent
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.metrics import SetAccuracy, metric_names
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import eval_transform


@dataclass
class Tally:
    """Adds up correct predictions batch by batch, in memory that does not grow.

    Args:
        class_indices: The classes to score over, ascending.
    """

    class_indices: Sequence[int]
    n_images: int = 0
    n_correct: dict[str, int] = field(default_factory=dict)

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Count one batch.

        Args:
            logits: Over all classes of the head, shape (B, C).
            targets: Class index of each image, int64, shape (B,).
        Raises:
            ModelError: A logit is infinite or NaN.
        """
        ranks = target_ranks(logits, targets, self.class_indices)
        self.n_images += len(targets)
        for name in metric_names(len(self.class_indices)):
            correct = int((ranks < int(name.removeprefix("top"))).sum())
            self.n_correct[name] = self.n_correct.get(name, 0) + correct

    def finish(self, *, n_unreadable: int) -> SetAccuracy:
        """Return the counts."""
        return SetAccuracy(
            self.n_images, dict(self.n_correct), n_unreadable, len(self.class_indices)
        )


def target_ranks(
    logits: torch.Tensor, targets: torch.Tensor, class_indices: Sequence[int]
) -> torch.Tensor:
    """Return how many of the given classes stand before each image's own.

    Equal logits stand in the order of the classes, so that the rank is defined and the same
    on every device; rank 0 is a correct top-1 prediction.

    Args:
        logits: Shape (B, C).
        targets: Class indices, each among `class_indices`, int64, shape (B,).
        class_indices: The classes that compete, ascending, K of them.
    Returns:
        Ranks from 0 to K - 1, int64, shape (B,).
    Raises:
        ModelError: A logit is infinite or NaN.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the classifier's logits are not finite",
            hint="its weights are damaged: `wiseft inspect` shows how they came to be",
        )
    competing = torch.tensor(class_indices, dtype=torch.int64, device=logits.device)
    own = logits.gather(1, targets[:, None])
    others = logits[:, competing]
    before = (others > own) | ((others == own) & (competing < targets[:, None]))
    return before.sum(dim=1)


def image_loader(
    image_set: ImageSet,
    targets: Sequence[int],
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> DataLoader[Any]:
    """Return a loader over the set in its order, through open_clip's own eval transform.

    Its batches are `ImageBatch`es and do not depend on the number of workers.
    """
    return DataLoader(
        ImageDataset(image_set, targets, eval_transform(preprocess)),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_images,
        pin_memory=device.type == "cuda",
        # Without its own generator a loader draws from the global one, and an evaluation
        # between two epochs would change the training after it.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_signals_to_the_parent,
    )


def evaluate_image_set(
    classifier: ImageClassifier,
    image_set: ImageSet,
    join: LabelJoin,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
) -> SetAccuracy:
    """Count how many images of a set the classifier gets right.

    The classifier is used in evaluation mode and left in the mode it was in; no random number
    is drawn.

    Args:
        classifier: On `device`.
        join: From `join_labels` of the set's labels with the classifier's classes.
        preprocess: The card's preprocessing.
        on_progress: Called with the number of images of each finished batch.
    Raises:
        DatasetError: An image cannot be read.
        ModelError: A logit is infinite or NaN.
    """
    targets = [join.index[record.label] for record in image_set.records]
    loader = image_loader(
        image_set, targets, preprocess, batch_size=batch_size, workers=workers, device=device
    )
    tally = Tally(join.class_indices)
    with _evaluation_mode(classifier):
        for batch in loader:
            refuse_unreadable(batch.unreadable)
            tally.add(logits_of(classifier, batch, device), batch.targets.to(device))
            if on_progress is not None:
                on_progress(len(batch.targets))
    return tally.finish(n_unreadable=0)


@contextmanager
def _evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put every part into evaluation mode, and back into the mode that part was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training  # frozen batch norm stays frozen


def logits_of(classifier: ImageClassifier, batch: ImageBatch, device: torch.device) -> torch.Tensor:
    """Return the float32 logits of a batch, shape (B, C), on `device`."""
    with torch.inference_mode():
        logits: torch.Tensor = classifier(batch.images.to(device, non_blocking=True)).float()
    return logits
