"""Counts anchor frames that are right, alone and with all the frames around them: pm-0 and pm-10.

Which frames are right comes in batch by batch, from any process, and is kept until the set is
done: a frame's anchor may be in another batch. An unreadable anchor does not count; an
unreadable frame around one is as if it were not there.
Source: Shankar et al. 2021, Do Image Classifiers Generalize Across Time?, arXiv 1906.02168.
"""

from __future__ import annotations

import torch

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError
from wiseft_cli.evaluation.metrics import AnchorCount

_UNREAD, _WRONG, _RIGHT = 0, 1, 2


class FrameTally:
    """Remembers which frames of a set are right; nothing for a set of single images.

    Args:
        image_set: Where the neighbourhoods stand.
        device: Where the counts are kept.
    """

    def __init__(self, image_set: ImageSet, device: torch.device) -> None:
        self._image_set = image_set
        n_frames = len(image_set.records) if image_set.neighbourhoods else 0
        self._states = torch.full((n_frames,), _UNREAD, dtype=torch.int64, device=device)

    def add(self, indices: torch.Tensor, is_right: torch.Tensor) -> None:
        """Remember the frames of one batch.

        Args:
            indices: Position of each in the set, int64, shape (B,).
            is_right: Whether its highest score is of a class that is right for it, shape (B,).
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
        states = processes.sum_tensor(self._states).tolist()  # each frame was in one process
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
