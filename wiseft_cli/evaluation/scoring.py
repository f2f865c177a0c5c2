"""Count right predictions batch by batch, over the columns of a label join.

A column is one class of the head, or several; its score is then the highest of their logits. An
image is right if the highest score is that of a column that its label accepts. Logits of other
classes are ignored. Memory does not grow with the number of images, except by one number per video
frame, and the device is not synchronised after every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_join import LabelJoin
from wiseft_cli.data.loading import ImageBatch, ImageDataset, load_batches
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation.metrics import (
    MIN_COLUMNS_FOR_TOP5,
    AnchorCount,
    LabelCount,
    SetAccuracy,
    predicts_labels,
)
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.model.transforms import eval_transform

BATCHES_BETWEEN_CHECKS = 64
"""Batches between two checks for logits that are not finite; a check waits for the device."""

_UNREAD, _WRONG, _RIGHT = 0, 1, 2
"""States of a video frame."""


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
    on_progress: Callable[[int], None] | None = None,
) -> SetAccuracy:
    """Count how many images of a set a classifier gets right.

    The classifier is put into evaluation mode and back into its mode; no random number is drawn.
    All processes of a run call this function; each evaluates a share of the images, and returns
    the counts of all.

    Args:
        classifier: A classifier on `device`.
        join: Join of the set's labels with the classifier's classes.
        preprocess: Preprocessing of the card.
        batch_size: Images per forward pass.
        workers: Processes that decode.
        processes: The processes that share the images.
        on_progress: Called with the number of images of each finished batch of this process.
    Raises:
        DatasetError: An image cannot be read, or a worker process died.
        ModelError: A logit is infinite or NaN.
    """
    tally = Tally(ScoredSet(image_set, device), join)
    is_counted = image_set.misses_orientation(preprocess)
    n_rotated = 0
    with evaluation_mode(classifier), torch.inference_mode():
        # No variable holds the iterator: an error ends its workers, although its traceback lives.
        for batch in load_images(
            image_set,
            preprocess,
            batch_size=batch_size,
            workers=workers,
            device=device,
            processes=processes,
        ):
            batch.require_readable()
            n_rotated += len(batch.rotated) if is_counted else 0
            tally.add(classifier(batch.images).float(), batch)
            if on_progress is not None:
                on_progress(len(batch.targets))
        accuracy = tally.finish(processes)
        return replace(accuracy, n_rotated=sum(processes.gather([n_rotated])))


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and afterwards back into its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training  # frozen batch norm stays frozen


def load_images(
    image_set: ImageSet,
    preprocess: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[ImageBatch]:
    """Yield this process's share of a set in order, transformed as by open_clip.

    Targets are positions among the set's labels. The batches depend neither on the number of
    workers nor on the number of processes.

    Raises:
        DatasetError: A worker process died.
    """
    position = {label: at for at, label in enumerate(image_set.labels)}
    targets = image_set.records.map_labels(position)
    return load_batches(
        ImageDataset(image_set, targets, eval_transform(image_set.preprocess(preprocess))),
        processes.share_of_batches(len(image_set.records), batch_size),
        workers=workers,
        device=device,
    )


class ScoredSet:
    """Labels and groups of an image set, shared by all classifiers on it.

    Args:
        image_set: The images.
        device: Where logits are computed.

    Attributes:
        labels: Labels of the set, sorted.
        groups: Groups of the set, sorted.
        group_of_image: Position of each image's group, int64, shape (N,); for an image without a
            group it is `len(groups)`. Empty if no image has a group.
    """

    def __init__(self, image_set: ImageSet, device: torch.device) -> None:
        self.image_set, self.device = image_set, device
        self.labels, self.groups = image_set.labels, image_set.groups
        at = {name: position for position, name in enumerate(self.groups)}
        groups = [at.get(record.group or "", len(at)) for record in image_set.records if at]
        self.group_of_image = torch.tensor(groups, dtype=torch.int64, device=device)


class LabelColumns:
    """A label join as tensors.

    Args:
        join: The join of a set's labels with a head.
        labels: The set's labels; a target is a position among them.
        device: Where logits are computed.
    """

    def __init__(self, join: LabelJoin, labels: Sequence[str], device: torch.device) -> None:
        self.count = len(join.columns)
        self._classes = _padded(join.columns, device)
        accepted = [join.accepted[label] for label in labels]
        self._accepted = _padded([right or (0,) for right in accepted], device)
        self._has_right = torch.tensor([bool(right) for right in accepted], device=device)
        self.label_of_column: dict[int, int] | None = None
        """Position of the one label that each column is right for; None if one has several."""
        if predicts_labels(join.accepted):
            self.label_of_column = {
                column: at for at, right in enumerate(accepted) for column in right
            }

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the score of each column, shape (B, K), from logits of the head, (B, C)."""
        if self._classes.shape[1] == 1:
            return logits[:, self._classes[:, 0]]
        return logits[:, self._classes].amax(dim=2)

    def ranks(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return how many columns rank before the first right one of each image.

        Columns with equal scores keep their order, so that ranks are the same on every device.
        Rank 0 is a right top-1 prediction.

        Args:
            scores: Shape (B, K).
            targets: Position of each image's label, int64, shape (B,).
        Returns:
            Ranks from 0 to K - 1, or K if no column is right, int64, shape (B,).
        """
        order = torch.arange(self.count, device=scores.device)
        ranks = []
        for own in self._accepted[targets].T:
            score = scores.gather(1, own[:, None])
            before = (scores > score) | ((scores == score) & (order < own[:, None]))
            ranks.append(before.sum(dim=1))
        best = torch.stack(ranks).amin(dim=0)
        return torch.where(self._has_right[targets], best, self.count)

    def winning_classes(self, logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the class whose logit is the score of each image's column, shape (B,)."""
        classes = self._classes[columns]
        return classes.gather(1, logits.gather(1, classes).argmax(dim=1, keepdim=True))[:, 0]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return rows of indices as an int64 tensor; shorter rows repeat their last entry.

    Repetition changes no maximum.
    """
    width = max(map(len, rows), default=1)
    full = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.int64, device=device).reshape(len(rows), width)


class Tally:
    """Counts what a classifier gets right on an image set.

    Args:
        scored: The image set.
        join: The join of its labels with the classifier's head.
    """

    def __init__(self, scored: ScoredSet, join: LabelJoin) -> None:
        device, n_labels = scored.device, len(scored.labels)
        self.columns = LabelColumns(join, scored.labels, device)
        self._scored = scored
        self._frames = FrameTally(scored.image_set, device)
        self._n_batches = 0
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._n_top5 = torch.zeros(1, dtype=torch.int64, device=device)
        # Images, and right ones: of each label, and of each group, the last for no group.
        self._of_label = torch.zeros((2, n_labels), dtype=torch.int64, device=device)
        self._of_group = torch.zeros((2, len(scored.groups) + 1), dtype=torch.int64, device=device)
        self._of_column = torch.zeros(self.columns.count, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, batch: ImageBatch) -> None:
        """Count one batch.

        Args:
            logits: Over all classes of the head, shape (B, C).
            batch: The images; only targets and indices are used.
        Raises:
            ModelError: A logit of this batch or of one shortly before is infinite or NaN.
        """
        scores = self.columns.scores(logits)
        ranks = self.columns.ranks(scores, batch.targets)
        is_right = (ranks == 0).long()
        is_one = torch.ones_like(is_right)
        self._n_top5 += (ranks < 5).sum()
        _count(self._of_label, batch.targets, is_right)
        self._of_column.index_add_(0, scores.argmax(dim=1), is_one)
        if self._scored.groups:
            indices = batch.indices.to(logits.device, non_blocking=True)
            _count(self._of_group, self._scored.group_of_image[indices], is_right)
        self._frames.add(batch.indices, ranks == 0)
        self._is_finite &= torch.isfinite(logits).all()
        if self._n_batches % BATCHES_BETWEEN_CHECKS == 0:
            self._check_finite()
        self._n_batches += 1

    def _check_finite(self) -> None:
        if not bool(self._is_finite):
            raise ModelError(
                "the classifier's logits are not finite",
                hint="its weights are damaged, or --precision fp16 is too narrow for it; look for"
                " numbers that are not finite with `wiseft inspect --verify`",
            )

    def finish(
        self, processes: ProcessGroup = SINGLE_PROCESS, *, n_unreadable: int = 0
    ) -> SetAccuracy:
        """Return the counts, summed over all processes.

        Args:
            processes: The processes that share the images; all of them call this method.
            n_unreadable: Images of all processes that could not be decoded.
        Raises:
            DatasetError: No anchor frame of a set of video frames was readable.
            ModelError: A logit was infinite or NaN.
        """
        self._check_finite()
        parts = (self._n_top5, self._of_label, self._of_column, self._of_group)
        counts = torch.cat([part.flatten() for part in parts])
        total = processes.sum_tensor(counts).cpu()
        n_top5, of_label, of_column, of_group = torch.split(total, [part.numel() for part in parts])
        n_images, n_right = of_label.reshape(2, -1).tolist()
        n_correct = {"top1": sum(n_right)}
        if self.columns.count >= MIN_COLUMNS_FOR_TOP5:
            n_correct["top5"] = int(n_top5)
        group_counts = of_group.reshape(2, -1)[:, :-1].T.tolist()
        return SetAccuracy(
            sum(n_images),
            n_correct,
            n_unreadable,
            self.columns.count,
            tuple(map(LabelCount, n_images, n_right, self._predictions(of_column.tolist()))),
            dict(zip(self._scored.groups, map(tuple, group_counts), strict=True)),
            self._frames.finish(processes),
        )

    def _predictions(self, of_column: Sequence[int]) -> list[int] | list[None]:
        """Return how many images were predicted to have each label."""
        n_labels = len(self._scored.labels)
        if self.columns.label_of_column is None:
            return [None] * n_labels
        predictions = [0] * n_labels
        for column, label in self.columns.label_of_column.items():
            predictions[label] += of_column[column]
        return predictions


def _count(counts: torch.Tensor, positions: torch.Tensor, is_right: torch.Tensor) -> None:
    """Add images, and right ones, to the two rows of counts."""
    counts[0].index_add_(0, positions, torch.ones_like(is_right))
    counts[1].index_add_(0, positions, is_right)


class FrameTally:
    """Counts anchor frames that are right, alone and with all frames around them.

    The state of every frame is kept until the set is done, because an anchor can be in another
    batch or process than its neighbours. An unreadable anchor does not count, and an unreadable
    frame around an anchor is ignored. Sets of single images have no counts.

    Args:
        image_set: The images with their neighbourhoods.
        device: Where logits are computed.
    Source: Shankar et al. 2021, arXiv:1906.02168, section 3 (pm-k metric).
    """

    def __init__(self, image_set: ImageSet, device: torch.device) -> None:
        self._image_set = image_set
        n_frames = len(image_set.records) if image_set.neighbourhoods else 0
        self._states = torch.full((n_frames,), _UNREAD, dtype=torch.int64, device=device)

    def add(self, indices: torch.Tensor, is_right: torch.Tensor) -> None:
        """Record the frames of one batch.

        Args:
            indices: Position of each frame in the set, int64, shape (B,).
            is_right: Whether its top-1 prediction is right, bool, shape (B,).
        """
        if len(self._states):
            at = indices.to(self._states.device, non_blocking=True)
            self._states[at] = torch.where(is_right, _RIGHT, _WRONG)

    def finish(self, processes: ProcessGroup = SINGLE_PROCESS) -> AnchorCount | None:
        """Return the counts of all processes' frames; None for a set of single images.

        Raises:
            DatasetError: No anchor frame was readable.
        """
        if not len(self._states):
            return None
        states = processes.sum_tensor(self._states).tolist()  # each frame is in one process
        position = {record.path: at for at, record in enumerate(self._image_set.records)}
        n_anchors = n_right = n_all_right = 0
        for anchor, around in self._image_set.neighbourhoods.items():
            if states[position[anchor]] == _UNREAD:
                continue
            n_anchors += 1
            if states[position[anchor]] == _RIGHT:
                n_right += 1
                n_all_right += all(states[position[path]] != _WRONG for path in around)
        if not n_anchors:
            raise DatasetError(
                f"image set {self._image_set.name!r}: none of its"
                f" {len(self._image_set.neighbourhoods)} anchor frames is readable"
            )
        return AnchorCount(n_anchors, n_right, n_all_right)
