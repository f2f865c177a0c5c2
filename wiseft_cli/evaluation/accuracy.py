"""Accuracy of one classifier on one image set, and the loader of its images.

An image counts for the classes that its set has: logits of other classes of the head take no
part. It does not know several weight sets or files of results; `sweep.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_join import LabelJoin
from wiseft_cli.data.loading import ImageBatch, ImageDataset, load_batches
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.neighbourhoods import FrameTally
from wiseft_cli.evaluation.tally import Columns, Tally
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import eval_transform


def load_images(
    image_set: ImageSet,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[ImageBatch]:
    """Yield this process's share of a set, in its order, through open_clip's own eval transform.

    The targets are positions among the set's labels. The batches do not depend on the number of
    workers, nor on the number of processes that share them.

    Raises:
        DatasetError: A worker process died.
    """
    position = {label: at for at, label in enumerate(image_set.labels)}
    dataset = ImageDataset(
        image_set,
        [position[record.label] for record in image_set.records],
        eval_transform(preprocess),
    )
    batches = processes.share_of_batches(len(image_set.records), batch_size)
    return load_batches(dataset, batches, workers=workers, device=device)


class GroupPositions:
    """The groups of a set's images, looked up by position in the set.

    Args:
        image_set: Its images may all be without a group.
    """

    def __init__(self, image_set: ImageSet) -> None:
        self.names = image_set.groups
        at = {name: position for position, name in enumerate(self.names)}
        groups = [at.get(record.group or "", -1) for record in image_set.records if self.names]
        self._of_image = torch.tensor(groups, dtype=torch.int64)

    def of(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Return the group of each image, -1 for none, int64 (B,); None for a set without any."""
        return self._of_image[indices] if self.names else None


def evaluate_image_set(
    classifier: ImageClassifier,
    image_set: ImageSet,
    join: LabelJoin,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SetAccuracy:
    """Count how many images of a set the classifier gets right.

    The classifier is used in evaluation mode and left in the mode it was in; no random number
    is drawn. All processes of a run call this; each takes a share of the images, and returns the
    counts of all.

    Args:
        classifier: On `device`.
        join: From `join_labels` of the set's labels with the classifier's classes.
        preprocess: The card's preprocessing.
        logits: From images (B, 3, H, W) to logits (B, C); the classifier itself where None.
        on_progress: Called with the number of images of each finished batch of this process.
    Raises:
        DatasetError: An image cannot be read, or a worker process died.
        ModelError: A logit is infinite or NaN.
    """
    batches = load_images(
        image_set,
        preprocess,
        batch_size=batch_size,
        workers=workers,
        device=device,
        processes=processes,
    )
    groups = GroupPositions(image_set)
    tally = Tally(Columns(join, image_set.labels, device), groups.names, device)
    frames = FrameTally(image_set, device)
    compute = logits or classifier
    with evaluation_mode(classifier), torch.inference_mode():
        for batch in batches:
            batch.require_readable()
            of_group = groups.of(batch.indices)
            is_right = tally.add(
                compute(batch.images).float(),
                batch.targets,
                None if of_group is None else of_group.to(device),
            )
            frames.add(batch.indices, is_right)
            if on_progress is not None:
                on_progress(len(batch.targets))
        return replace(tally.finish(processes, n_unreadable=0), anchors=frames.finish(processes))


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put every part into evaluation mode, and back into the mode that part was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training  # frozen batch norm stays frozen
