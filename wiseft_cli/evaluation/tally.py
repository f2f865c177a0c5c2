"""Counts right predictions batch by batch, over the columns of a label join.

A column is one class of the head, or several: then its score is the highest of their logits. An
image is right where the highest score is that of a column its label accepts. Memory does not
grow with the images, and nothing waits for an accelerator between batches.
It computes no metric; `metrics.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.label_join import LabelJoin
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.metrics import (
    MIN_COLUMNS_FOR_TOP5,
    LabelCount,
    SetAccuracy,
    tells_labels,
)

BATCHES_BETWEEN_LOOKS = 64
"""Batches after which it is looked whether all logits were finite; a look waits for the device."""


class Columns:
    """A label join as tensors.

    Args:
        join: The join of a set's labels with a head.
        labels: The set's labels; a target is a position among them.
        device: Where the logits are.
    """

    def __init__(self, join: LabelJoin, labels: Sequence[str], device: torch.device) -> None:
        self.n_labels = len(labels)
        self.count = len(join.columns)
        # Columns and labels of fewer entries repeat their last one, which changes no maximum.
        self._classes = _padded(join.columns, device)
        accepted = [join.accepted[label] for label in labels]
        self._accepted = _padded([right or (0,) for right in accepted], device)
        self._has_right = torch.tensor([bool(right) for right in accepted], device=device)
        self.label_of_column = _sole_labels(join, labels)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the score of each column, shape (B, K), of logits over the head, (B, C)."""
        if self._classes.shape[1] == 1:
            return logits[:, self._classes[:, 0]]
        return logits[:, self._classes].amax(dim=2)

    def ranks(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return how many columns stand before the first that is right for each image.

        Equal scores stand in the order of the columns, so that the rank is defined and the same
        on every device; rank 0 is a right top-1 prediction.

        Args:
            scores: Shape (B, K).
            targets: Position of each image's label, int64, shape (B,).
        Returns:
            Ranks from 0 to K - 1, or K where no column is right, int64, shape (B,).
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
        """Return the class of the head whose logit made each image's column score, shape (B,)."""
        classes = self._classes[columns]
        return classes.gather(1, logits.gather(1, classes).argmax(dim=1, keepdim=True))[:, 0]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return rows of indices as one int64 tensor, the last entry of shorter ones repeated."""
    width = max(map(len, rows), default=1)
    full = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.int64, device=device).reshape(len(rows), width)


def _sole_labels(join: LabelJoin, labels: Sequence[str]) -> dict[int, int] | None:
    """Return the label each column is right for, or None where one is right for several."""
    if not tells_labels(join.accepted):
        return None
    return {column: at for at, label in enumerate(labels) for column in join.accepted[label]}


class Tally:
    """Adds up what a classifier got right on one image set.

    Args:
        columns: What is scored.
        groups: Names of the set's groups; empty where it has none.
        device: Where the logits are.
    """

    def __init__(self, columns: Columns, groups: Sequence[str], device: torch.device) -> None:
        self._columns = columns
        self._groups = tuple(groups)
        self._n_batches = 0
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._n_top5 = torch.zeros(1, dtype=torch.int64, device=device)
        self._of_label = torch.zeros((2, columns.n_labels), dtype=torch.int64, device=device)
        self._of_column = torch.zeros(columns.count, dtype=torch.int64, device=device)
        # The last group is of the images that are in none.
        self._of_group = torch.zeros((2, len(groups) + 1), dtype=torch.int64, device=device)

    def add(
        self, logits: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Count one batch, and return which of its images are right, shape (B,).

        Args:
            logits: Over all classes of the head, shape (B, C).
            targets: Position of each image's label, int64, shape (B,).
            groups: Position of each image's group, -1 for none, int64, shape (B,).
        Raises:
            ModelError: A logit of this batch or of one shortly before is infinite or NaN.
        """
        scores = self._columns.scores(logits)
        ranks = self._columns.ranks(scores, targets)
        is_right = (ranks == 0).long()
        is_one = torch.ones_like(is_right)
        self._n_top5 += (ranks < 5).sum()
        self._of_label[0].index_add_(0, targets, is_one)
        self._of_label[1].index_add_(0, targets, is_right)
        self._of_column.index_add_(0, scores.argmax(dim=1), is_one)
        if groups is not None:
            at = torch.where(groups < 0, len(self._groups), groups)
            self._of_group[0].index_add_(0, at, is_one)
            self._of_group[1].index_add_(0, at, is_right)
        self._is_finite &= torch.isfinite(logits).all()
        if self._n_batches % BATCHES_BETWEEN_LOOKS == 0:
            self._check_finite()
        self._n_batches += 1
        return ranks == 0

    def _check_finite(self) -> None:
        if not bool(self._is_finite):
            raise ModelError(
                "the classifier's logits are not finite",
                hint="its weights are damaged, or --precision fp16 is too narrow for it:"
                " `wiseft inspect --verify` looks for numbers that are not finite",
            )

    def finish(self, processes: ProcessGroup = SINGLE_PROCESS, *, n_unreadable: int) -> SetAccuracy:
        """Return the counts, added up over all processes.

        Args:
            processes: The processes that share the images; all of them call this.
            n_unreadable: Images of all processes that could not be decoded.
        Raises:
            ModelError: A logit was infinite or NaN.
        """
        self._check_finite()
        parts = (self._n_top5, self._of_label, self._of_column, self._of_group)
        counts = torch.cat([part.flatten() for part in parts])
        total = processes.sum_tensor(counts).cpu()
        n_top5, of_label, of_column, of_group = torch.split(total, [part.numel() for part in parts])
        n_images, n_right = of_label.reshape(2, -1).tolist()
        n_correct = {"top1": sum(n_right)}
        if self._columns.count >= MIN_COLUMNS_FOR_TOP5:
            n_correct["top5"] = int(n_top5)
        group_counts = of_group.reshape(2, -1)[:, :-1].T.tolist()
        return SetAccuracy(
            sum(n_images),
            n_correct,
            n_unreadable,
            self._columns.count,
            tuple(map(LabelCount, n_images, n_right, self._predicted(of_column.tolist()))),
            dict(zip(self._groups, map(tuple, group_counts), strict=True)),
        )

    def _predicted(self, of_column: Sequence[int]) -> list[int] | list[None]:
        """Return how many images were predicted to be of each label."""
        if self._columns.label_of_column is None:
            return [None] * self._columns.n_labels
        predicted = [0] * self._columns.n_labels
        for column, label in self._columns.label_of_column.items():
            predicted[label] += of_column[column]
        return predicted
